"""Trials whose process has died: Ray Tune ends a whole sweep where Ray gives another reason than it expects.

A process that Ray's memory monitor ends is such a case: its error is none of an actor's or a task's (Ray 2.60). What is
private in Ray is replaced here; `tests/faults/test_sweep.py` shows that it still works.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import RayActorError, RayError, RayTaskError

OF_CODE = ("Traceback", "in its creation task")
"""Signs of an error that code raised, in what Ray Tune writes of a trial."""

_task_failed: Any = RayActorManager._actor_task_failed


def _failed(manager: RayActorManager, tracked_actor_task: Any, exception: Exception) -> None:
    """Have the death of an actor handled as one, for any reason that Ray gives."""
    if isinstance(exception, RayError) and not isinstance(exception, (RayActorError, RayTaskError)):
        reason = f"{type(exception).__name__}: {exception}"
        exception = RayActorError(error_msg=reason)
    _task_failed(manager, tracked_actor_task, exception)


def fail_trials_alone() -> None:
    """Make each death of a trial's process the failure of that trial, in sweeps of this process from now on."""
    RayActorManager._actor_task_failed = _failed


def error_of(trial: Any) -> str:
    """Return what went wrong last in a trial of Ray Tune; empty where nothing did."""
    here = Path(trial.error_file or "")  # on the storage it is some seconds later
    text = here.read_text(encoding="utf-8") if here.is_file() else trial.get_error() or ""
    lines = [line.strip() for line in text.rpartition("Failure # ")[2].splitlines()[1:] if line.strip()]
    if any(sign in text for sign in OF_CODE):
        return next((line for line in reversed(lines) if re.match(r"[\w.]+Error: ", line)), lines[-1])
    return next(iter(lines), "")  # of a process that died; details follow
