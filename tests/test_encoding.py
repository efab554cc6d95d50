"""Text is UTF-8 whatever the locale: in files, in what commands print, and in what other programs print."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path for folder in ("hisem", "pipelines", "tune", "cluster") for path in (ROOT / folder).rglob("*.py"))
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}


def mode_of(call: ast.Call, place: int) -> str:
    """The mode that a call of `open` has, at this place among its arguments or by name."""
    given = [word.value for word in call.keywords if word.arg == "mode"] or call.args[place : place + 1]
    return str(given[0].value) if given and isinstance(given[0], ast.Constant) else "r"


def opens_text(call: ast.Call) -> bool:
    """Whether a call reads or writes text in a file or of another program."""
    name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
    words = {word.arg: word.value for word in call.keywords}
    if name in ("read_text", "write_text"):
        return True
    if name == "open" and isinstance(call.func, ast.Name):
        return "b" not in mode_of(call, 1)
    if name == "open" and not (isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) in NOT_FILES):
        return "b" not in mode_of(call, 0)
    texts = [words[key] for key in ("text", "universal_newlines") if key in words]
    return any(isinstance(value, ast.Constant) and value.value is True for value in texts)


NOT_FILES = {
    "direct",
    "os",
    "memory",
    "rasterio",
    "Image",
    "RunFile",
    "SweepFile",
    "pystac_client.Client",
    "webbrowser",
}
"""What has an `open` that opens no text."""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_text_names_its_encoding(path: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    silent = [call for call in calls if opens_text(call) and "encoding" not in {word.arg for word in call.keywords}]
    assert [f"line {call.lineno}: {ast.unparse(call)}" for call in silent] == []


COMMAND = r"""
import logging
from pathlib import Path
from hisem import cli, storage
from hisem.report.summary import counts_table, show, print_lines

def main(options):
    name = "gr\u00f6\u00dfe \U0001f3e0"
    folder = Path("{folder}") / name
    storage.write_bytes(folder / "a.txt", b"x")
    assert [path.name for path in folder.iterdir()] == ["a.txt"]
    logging.getLogger("hisem.x").info("log %s", name)
    show(counts_table(f"table {{name}}", {{name: name}}), f"note {{name}}")
    print_lines(f"line {{name}}")
    raise cli.HisemError(f"end {{name}}")

cli.run(main, lambda: cli.parse(cli.Common, "h\u00e9lp"))
"""


@pytest.mark.parametrize("utf8", ["0", None])
def test_a_terminal_without_unicode_gets_escapes(tmp_path: Path, utf8: str | None) -> None:
    environment = {**os.environ, **ASCII}
    if utf8 is None:
        environment |= {"PYTHONCOERCECLOCALE": "0"}
        del environment["PYTHONUTF8"]
    script = [sys.executable, "-c", COMMAND.format(folder=tmp_path)]
    done = subprocess.run(script, env=environment, capture_output=True, timeout=120, check=False)
    out, err = done.stdout.decode("ascii"), done.stderr.decode("ascii")
    shown = r"gr\xf6\xdfe \U0001f3e0"
    assert (done.returncode, out.count(shown)) == (1, 5)
    assert err.splitlines() == [f"log {shown}", f"error: end {shown}"]
    help_ = subprocess.run([*script, "--help"], env=environment, capture_output=True, timeout=120, check=False)
    assert help_.returncode == 0
    assert rb"h\xe9lp" in help_.stdout
