"""Logs: JSON lines that hold what a line is about, and commands whose standard error is nothing else."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from hisem import logs
from hisem.escapes import UNSAFE

ROOT = Path(__file__).resolve().parents[1]


def line(level: int = logging.INFO, message: str = "%d tiles", *args: Any, **fields: Any) -> dict[str, Any]:
    """What becomes of a record."""
    record = logging.getLogger("hisem.here").makeRecord("hisem.here", level, __file__, 1, message, args, **fields)
    text = logs.JsonLines().format(record)
    assert "\n" not in text
    parsed: dict[str, Any] = json.loads(text)
    when = datetime.fromisoformat(parsed.pop("time"))
    assert when.tzinfo == UTC
    assert abs(when.timestamp() - record.created) < 0.001
    return parsed


def test_a_line_has_what_it_is_about() -> None:
    plain = {"level": "INFO", "logger": "hisem.here", "message": "3 tiles"}
    assert line(logging.INFO, "%d tiles", 3, exc_info=None) == plain
    ids = {"pair_id": "p", "tile_id": "p/0", "failure": "missing"}
    about = line(logging.WARNING, "%s:\nno such file", "p/0", exc_info=None, extra={**ids, "password": "secret"})
    assert about == {"level": "WARNING", "logger": "hisem.here", "message": "p/0:\nno such file", **ids}


def test_lines_of_all_threads_have_the_run() -> None:
    found: list[dict[str, Any]] = []
    with logs.of_run("night"):
        thread = threading.Thread(target=lambda: found.append(line(logging.INFO, "x", exc_info=None)))
        thread.start()
        thread.join()
        with logs.of_run("inner"):
            found.append(line(logging.INFO, "x", exc_info=None))
        found.append(line(logging.INFO, "x", exc_info=None))
    found.append(line(logging.INFO, "x", exc_info=None))
    assert [one.get("run") for one in found] == ["night", "inner", "night", None]


COMMAND = """
import logging, sys, warnings
from hisem import cli, logs

def main(options):
    with logs.of_run("r"):
        logging.getLogger("hisem.x").info("begun")
    warnings.warn("old")
    print("result")
    return {ends}

cli.run(main, lambda: cli.parse(cli.Common, "test"))
"""


def command(ends: str, *arguments: str, log: str = "json") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HISEM_LOG": log, "PYTHONPATH": str(ROOT)}
    script = [sys.executable, "-c", COMMAND.replace("{ends}", ends), *arguments]
    return subprocess.run(script, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("ends", "code", "level", "message"),
    [
        ("3", 3, None, None),
        ("(_ for _ in ()).throw(cli.HisemError('no\\n room'))", 1, "ERROR", "no room"),
        ("(_ for _ in ()).throw(KeyboardInterrupt)", 130, "ERROR", "interrupted"),
        ("1 / 0", 1, "CRITICAL", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_command_logs_json_whatever_ends_it(ends: str, code: int, level: str | None, message: str | None) -> None:
    done = command(ends)
    assert (done.returncode, done.stdout) == (code, "result\n")
    begun, warned, *last = map(json.loads, done.stderr.splitlines())
    assert (begun["message"], begun["run"], begun["logger"]) == ("begun", "r", "hisem.x")
    assert (warned["level"], warned["logger"]) == ("WARNING", "py.warnings")
    assert [(one["level"], one["message"]) for one in last] == ([] if level is None else [(level, message)])
    if level == "CRITICAL":
        assert "1 / 0" in last[0]["exception"] or "ZeroDivisionError" in last[0]["exception"]


def test_debug_adds_the_traceback() -> None:
    done = command("(_ for _ in ()).throw(cli.HisemError('full'))", "--debug")
    last = json.loads(done.stderr.splitlines()[-1])
    assert last["message"] == "full"
    assert last["exception"].startswith("Traceback")


def test_another_format_is_refused() -> None:
    done = command("3", log="xml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: HISEM_LOG=xml: must be one of text, json.\n"


EVIL = "p\nerror: all is well\r\x1b[2J\x9b1m\u2028\u202egnp"
ESCAPED = r"p\nerror: all is well\r\x1b[2J\x9b1m\u2028\u202egnp"


def test_a_line_of_text_is_one_line_whatever_is_in_it() -> None:
    try:
        raise ValueError(EVIL)
    except ValueError:
        info = sys.exc_info()
    logger = logging.getLogger("hisem.here")
    plain = logger.makeRecord("hisem.here", logging.WARNING, __file__, 1, "%s has failed: %s", (EVIL, "x"), None)
    assert logs.TextLines().format(plain) == f"{ESCAPED} has failed: x"
    traced = logger.makeRecord("hisem.here", logging.WARNING, __file__, 1, "%s", (EVIL,), info)
    first, begin, *_ = logs.TextLines().format(traced).split("\n")
    assert (first, begin) == (ESCAPED, "Traceback (most recent call last):")
    assert not UNSAFE.search(logs.TextLines().format(traced).replace("\n", ""))


@pytest.mark.parametrize("ends", ["raise cli.HisemError(EVIL)", "raise ValueError(EVIL)", "logging.error(EVIL)"])
@pytest.mark.parametrize("arguments", [(), ("--debug",)])
def test_a_command_prints_no_control_characters(ends: str, arguments: tuple[str, ...]) -> None:
    body = f"EVIL = {EVIL!r}\n" + COMMAND.replace("return {ends}", ends)
    environment = {**os.environ, "HISEM_LOG": "text", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", body, *arguments], env=environment, capture_output=True, timeout=60, check=False
    )
    shown = done.stderr.decode()
    assert r"\x1b[2J" in shown
    assert not UNSAFE.search(shown.replace("\n", ""))


def test_json_holds_what_was_logged() -> None:
    record = logging.getLogger("hisem.here").makeRecord("hisem.here", logging.INFO, __file__, 1, EVIL, (), None)
    text = logs.JsonLines().format(record)
    assert text.isascii()
    assert not UNSAFE.search(text)
    assert json.loads(text)["message"] == EVIL
