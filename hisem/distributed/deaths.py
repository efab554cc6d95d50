"""Trials whose process has died: Ray Tune ends a whole sweep where Ray gives another reason than it expects.

A process that Ray's memory monitor ends is such a case: its error is none of an actor's or a task's (Ray 2.60). What is
private in Ray is replaced here; `tests/faults/test_sweep.py` shows that it still works.
"""

from __future__ import annotations

from typing import Any

from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import RayActorError, RayError, RayTaskError

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
