"""A mailbox between workers and the driver, so that one process owns the terminal and the MLflow run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

Event = dict[str, Any]


@ray.remote(num_cpus=0)
class Mailbox:
    """Holds events until the driver takes them."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def put(self, event: Event) -> None:
        """Add one event."""
        self._events.append(event)

    def take(self) -> list[Event]:
        """All events since the last call, in order."""
        events, self._events = self._events, []
        return events


@contextmanager
def listening(on_event: Callable[[Event], None], every: float = 0.5) -> Iterator[Any]:
    """A mailbox whose events reach `on_event` in a thread of this process, the last ones before the block ends."""
    mailbox = Mailbox.remote()  # type: ignore[attr-defined]
    stop = threading.Event()

    def drain() -> None:
        for event in ray.get(mailbox.take.remote()):
            on_event(event)

    def listen() -> None:
        while not stop.wait(every):
            drain()

    thread = threading.Thread(target=listen, name="hisem-monitor", daemon=True)
    thread.start()
    try:
        yield mailbox
    finally:
        stop.set()
        thread.join()
        drain()
        ray.kill(mailbox)
