"""What Ray writes by itself: nothing in a run that is healthy, and log lines where something is wrong."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest
import ray._private.worker

from hisem.distributed import ray_output

HEALTHY = """
import logging, os, sys, time
logging.basicConfig(level=logging.INFO, format="%(message)s")
import hisem.distributed
import numpy as np, ray
from hisem.distributed import session
with session.cluster():
    @ray.remote(num_cpus=0, max_restarts=-1)
    class Actor:
        def __init__(self, argument):
            pass
        def level(self):
            return os.environ.get("RAY_BACKEND_LOG_LEVEL")
    large = ray.put(np.zeros(10**6))  # in the object store, as what Ray Data gives its actors
    actors = [Actor.remote(large) for _ in range(12 * int(session.cpus()))]
    print(set(ray.get([actor.level.remote() for actor in actors])))
    session.log.warning("ours")
    time.sleep(3)  # messages of nodes come by and by
"""


@pytest.mark.slow  # as many processes as give cause for a warning
def test_a_healthy_run_prints_nothing_of_rays() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", HEALTHY],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=True,
    )
    assert done.stdout == "{None}\n"  # processes that Ray starts log as ever
    first, *rest = done.stderr.splitlines()
    assert first.startswith("Ray: local")
    assert rest == ["ours"]


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("3 worker(s) were killed due to the node running low on memory.", True),
        ("The autoscaler failed with the following error:\nTerminated with signal 15\n  File", False),
        ("WARNING: 8 PYTHON worker processes have been started on node: 1 with address: 2, which is 4x", False),
    ],
)
def test_messages_of_nodes_are_log_lines(
    line: str, shown: bool, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    with ray_output.filtered():
        pass
    ray._private.worker.print_to_stdstream({"lines": [line], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    (record,) = caplog.records
    assert line in record.getMessage()
    assert (record.levelno >= logging.WARNING) == shown
    assert capsys.readouterr().out == ""


def failing() -> None:
    """A start of Ray that writes and fails."""
    with ray_output.filtered():
        os.write(
            2, b"[1 W 2] one\n[2 W 2] one\nSet ray log level from environment variable RAY_BACKEND_LOG_LEVEL to 3\ntwo"
        )
        raise KeyError


def test_what_else_is_written_meanwhile_is_kept(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(ray_output.LEVEL, raising=False)
    monkeypatch.setattr(logging.getLogger(), "level", logging.INFO)
    with pytest.raises(KeyError):
        failing()
    assert capfd.readouterr().err == "[2 W 2] one\ntwo"
