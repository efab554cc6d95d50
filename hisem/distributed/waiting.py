"""What a run waits for while a cluster is busy, in words and numbers: nothing waits wordlessly."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray
import ray.exceptions

from hisem.distributed import budget
from hisem.errors import HisemError

QUIET_SECONDS = 15.0
"""How long processes may take to start before the driver says what it waits for, and how often it says so."""

STALL_SECONDS = 180.0
"""How long processes that run may be silent before the driver says so; validation, for one, tells nothing until it is
done."""

POLL_SECONDS = 0.5
"""Between two looks at what is waited for."""


@dataclass(frozen=True)
class Asked:
    """What the processes of a run ask of the cluster."""

    count: int
    cpu: float
    gpu: int
    name: str = "worker(s)"
    grouped: bool = False
    """They start together, as one placement group of Ray."""

    def missing(self) -> str:
        """What is waited for, with the numbers: room, or, where there is room, the start."""
        each = f"{self.cpu:g} CPUs" + (f" and {self.gpu} GPU" if self.gpu else "")
        if self._have_room():
            return f"{self.count} {self.name} of {each} each are starting"
        return f"waiting for {self.count} {self.name} of {each} each to start; {free()}"

    def _have_room(self) -> bool:
        """True if the room that is needed is free, or taken by those that wait for nothing but their start."""
        left = budget.sizes(ray.available_resources())
        if budget.places_for(self.cpu, self.gpu) < self.count:
            return False
        if all(left[kind] + 1e-9 >= self.count * each for kind, each in (("CPU", self.cpu), ("GPU", self.gpu))):
            return True
        states = {group["state"] for group in ray.util.placement_group_table().values()} if self.grouped else set()
        return states - {"REMOVED"} == {"CREATED"}


def free() -> str:
    """What of the cluster is free, in words."""
    left, there = budget.sizes(ray.available_resources()), budget.present()
    return "free are " + " and ".join(f"{left[kind]:g} of {there[kind]:g} {kind}s" for kind in there if there[kind])


def brief(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


@contextmanager
def beside(look: Callable[[], None], tell: Callable[[str], None]) -> Iterator[None]:
    """Call `look` every POLL_SECONDS in a thread of its own while the block runs; what it cannot learn is told."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(POLL_SECONDS):
            try:
                look()
            except (ray.exceptions.RayError, HisemError) as error:
                tell(f"how the run is doing cannot be heard at the moment ({brief(error)})")

    thread = threading.Thread(target=run, name="hisem-waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def told(waited_for: Callable[[], str], tell: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Tell `waited_for()` whenever QUIET_SECONDS have passed since the block began, or since it called what it gets."""
    heard = time.monotonic()

    def hear() -> None:
        nonlocal heard
        heard = time.monotonic()

    def look() -> None:
        if time.monotonic() - heard > QUIET_SECONDS:
            hear()
            tell(waited_for())

    with beside(look, tell):
        yield hear
