"""What stands between workers that may die and the driver: events for it, and whether the run goes on.

One process, the driver, owns the terminal and the MLflow run; workers tell it by an actor that lives beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
import ray.exceptions
from ray.train import UserCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hisem.distributed.waiting import QUIET_SECONDS, STALL_SECONDS, Asked, beside, brief, free
from hisem.errors import HisemError, TrainingError

Event = dict[str, Any]


class DrainError(Exception):
    """A node of the run is about to go and the checkpoint is written: the workers start anew elsewhere."""


@ray.remote(num_cpus=0)
class Supervisor:
    """Holds events until the driver takes them, and gives the run up after failures that come to nothing."""

    def __init__(self, max_failures: int) -> None:
        self._max_failures = max_failures
        self._failures = 0
        self._counted = False
        self._events: list[Event] = []
        self._error: HisemError | None = None

    def begin(self) -> None:
        """A worker starts: its failure would be another one."""
        self._counted = False

    def put(self, event: Event) -> None:
        """Add one event. A checkpoint is progress: failures are counted from it.

        Raises what the run was given up for, so that its workers end.
        """
        if self._error is not None:
            raise self._error
        self._events.append(event)
        if event["kind"] == "checkpoint":
            self._failures = 0

    def take(self) -> list[Event]:
        """All events since the last call, in order."""
        events, self._events = self._events, []
        return events

    def give_up(self, error: HisemError) -> None:
        """The run ends with `error`, which starting anew would not mend."""
        self._error = self._error or error

    def failed(self, reason: str) -> HisemError | None:
        """The workers failed for `reason`. None where they are to start anew, else what the run ends with."""
        if self._error is not None or self._counted:  # Ray Train tells of dead workers until it starts new ones
            return self._error
        self._counted = True
        self._failures += 1
        if self._failures > self._max_failures:
            self._error = TrainingError(
                f"the workers failed {self._failures} times without a checkpoint between, at last: {reason}"
            )
            return self._error
        self._events.append(
            {"kind": "failure", "reason": reason, "failures": self._failures, "limit": self._max_failures}
        )
        return None

    def drained(self) -> None:
        """The workers have left a node that is about to go, with a checkpoint, and start anew."""
        self._events.append({"kind": "drained"})

    def error(self) -> HisemError | None:
        """What the run was given up for."""
        return self._error


class Failures(UserCallback):
    """Asks the supervisor what becomes of a run whose workers ended with an exception or died."""

    def __init__(self, supervisor: Any) -> None:
        self._supervisor = supervisor

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called by Ray Train's controller before it decides."""
        if any(isinstance(error, DrainError) for error in worker_exceptions.values()):
            ray.get(self._supervisor.drained.remote())
            return
        # When one worker dies, the others fail in their collectives: what they say explains nothing.
        rank, error = min(worker_exceptions.items(), key=lambda pair: (isinstance(pair[1], RuntimeError), pair[0]))
        given_up = ray.get(self._supervisor.failed.remote(f"worker {rank}: {brief(error)}"))
        if given_up is not None:
            raise given_up  # the one way to keep Ray Train from starting them anew


@contextmanager
def supervised(
    on_event: Callable[[Event], None], max_failures: int, asked: Asked, tell: Callable[[str], None]
) -> Iterator[Any]:
    """A `Supervisor` whose events reach `on_event` in a thread of this process, the last ones before the block ends.

    `tell` hears what is waited for, while no worker runs.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    supervisor = Supervisor.options(scheduling_strategy=here).remote(max_failures)  # type: ignore[attr-defined]
    heard = time.monotonic()
    running = False

    def drain() -> None:
        nonlocal heard, running
        for event in ray.get(supervisor.take.remote()):
            heard, running = time.monotonic(), event["kind"] not in ("failure", "drained")
            on_event(event)

    def look() -> None:
        nonlocal heard
        drain()
        if time.monotonic() - heard > (STALL_SECONDS if running else QUIET_SECONDS):
            heard = time.monotonic()
            tell(f"no word from the workers for {STALL_SECONDS:.0f} s; {free()}" if running else asked.missing())

    try:
        with beside(look, tell):
            yield supervisor
    finally:
        with suppress(ray.exceptions.RayError):  # which would hide why the block ended
            drain()
            ray.kill(supervisor)
