"""Metrics on their way to a tracking store, which may fail for a while: training does not die of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from hisem.errors import TrackingError

log = logging.getLogger(__name__)

PER_BATCH = 1000
"""MLflow's limit."""

PAUSE_SECONDS = 30.0
"""After a failure the store is left alone for so long: each try may wait for a minute."""


class Outbox:
    """Sends points in order, and keeps those that the store did not take until a later call.

    A point that arrived although the answer was lost is sent again; it is the same then, and stored once.
    """

    def __init__(self, send: Callable[[list[Any]], None]) -> None:
        """`send` takes up to PER_BATCH points, and raises `TrackingError` where the store fails."""
        self._send = send
        self._waiting: list[Any] = []
        self._failing = False
        self._next_try = 0.0

    def put(self, points: Sequence[Any]) -> None:
        """Send `points` behind those that wait; warns at the beginning of an outage."""
        self._waiting += points
        if time.monotonic() >= self._next_try:
            self._deliver()

    def close(self) -> None:
        """Try a last time, and tell how much could not be sent."""
        self._deliver()
        if self._waiting:
            log.error("%d metric points could not be logged: the tracking store still fails.", len(self._waiting))
            self._waiting = []

    def _deliver(self) -> None:
        try:
            while self._waiting:
                self._send(self._waiting[:PER_BATCH])
                del self._waiting[:PER_BATCH]
        except TrackingError as error:
            if not self._failing:
                log.warning("%s Metrics are kept, and sent when the store works again.", error)
            self._failing, self._next_try = True, time.monotonic() + PAUSE_SECONDS
            return
        if self._failing:
            log.info("The tracking store works again: all metrics are logged.")
        self._failing, self._next_try = False, 0.0
