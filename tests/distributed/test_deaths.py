"""The error of a trial, from what Ray Tune writes of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from hisem.distributed.deaths import error_of

ERROR = "hisem.errors.ConfigError: model.hasd.moe.groups=2: must divide experts=5 into equal groups."
CREATION = (
    "The actor died because of an error raised in its creation task, \x1b[36mray::ResourceTrainable.__init__()\x1b[39m "
    f'(pid=7, repr=<object>)\n  File "trial.py", line 3, in setup\n    run()\n{ERROR}\n'
)
TASK = f'ray::TrialRun.train() (pid=7)\nTraceback (most recent call last):\n  File "trial.py", line 3\n{ERROR}\n'
KILLED = "OutOfMemoryError: Task was killed due to the node running low on memory.\nMemory on the node was 22 GB.\n"


@pytest.mark.parametrize(
    ("text", "error"), [(CREATION, ERROR), (TASK, ERROR), (KILLED, KILLED.splitlines()[0]), ("", "")]
)
def test_the_error_is_the_line_that_names_it(text: str, error: str) -> None:
    written = f"Failure # 1 (occurred at 2026-01-01_00-00-00)\nold: error\nFailure # 2 (occurred at ...)\n{text}"
    trial = SimpleNamespace(error_file=None, get_error=lambda: written if text else None)
    assert error_of(trial) == error
