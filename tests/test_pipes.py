"""Commands whose output nothing reads any more end quietly, with the code that a shell gives to SIGPIPE."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = sorted([*(ROOT / "pipelines").glob("*.py"), ROOT / "tune" / "sweep.py"])
BROKEN = 128 + signal.SIGPIPE

SCRIPT = """
import logging, socket, sys
from hisem import cli

def main(options):
    {does}

cli.run(main, lambda: cli.parse(cli.Common, "test"))
"""


def started(*command: str, error: bool = False, unbuffered: bool = False) -> subprocess.Popen[bytes]:
    """A command whose standard output, and error if so, is a pipe with a closed end."""
    end, start = os.pipe()
    os.close(end)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1" if unbuffered else ""}
    try:
        return subprocess.Popen(
            [sys.executable, *command], stdout=start, stderr=start if error else subprocess.PIPE, env=environment
        )
    finally:
        os.close(start)


@pytest.mark.parametrize("paths", [COMMANDS[:1], pytest.param(COMMANDS, marks=pytest.mark.slow)], ids=["one", "all"])
def test_help_of_every_command_into_a_closed_pipe(paths: list[Path]) -> None:
    running = {path.name: started(str(path), "--help") for path in paths}
    ended = {name: (process.communicate(timeout=240)[1], process.returncode) for name, process in running.items()}
    assert ended == dict.fromkeys(running, (b"", BROKEN))


@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize("does", ["print('result')", "print('result'); return 3", "print('x' * 10**6)"])
def test_results_into_a_closed_pipe(does: str, unbuffered: bool) -> None:
    process = started("-c", SCRIPT.format(does=does), unbuffered=unbuffered)
    assert (process.communicate(timeout=60)[1], process.returncode) == (b"", BROKEN)


@pytest.mark.parametrize("does", ["print('result')", "raise cli.HisemError('no room')", "logging.error('x'); print(1)"])
def test_both_outputs_into_a_closed_pipe(does: str) -> None:
    process = started("-c", SCRIPT.format(does=does), error=True)
    assert process.wait(timeout=60) == BROKEN


def test_a_connection_that_breaks_is_no_pipe_of_ours() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(does="raise BrokenPipeError('the server is gone')")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert b"BrokenPipeError: the server is gone" in done.stderr
