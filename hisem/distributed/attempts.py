"""Tiles on which captioners die: who has begun what and not ended it, and when a tile or a run is given up.

A process that the kernel kills says nothing, so each captioner says beforehand what it begins. Ray starts dead ones
anew and gives them the same tiles for ever: that has an end here.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow as pa
import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hisem.distributed.waiting import QUIET_SECONDS, STALL_SECONDS, Asked, beside, free
from hisem.errors import CaptioningError

DEATHS = 2
"""How often captioners may die on a batch before its tiles are tried one by one, and on a tile alone before it is a
failed row."""
STARTS = 10
"""How often each captioner may start, on an average, without that one of them ends a batch."""

SPARED = 32
"""Tiles that may be given up before anything was captioned: where there are more, the tiles are not to blame."""

Key = tuple[str, int]
"""First tile of some, and their number."""


def key(tiles: pa.Table) -> Key:
    """What `tiles` are called here."""
    return tiles.column("tile_id")[0].as_py(), len(tiles)


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Attempts:
    """Hears from each captioner what it begins and ends. One that had to start anew itself has forgotten all."""

    def __init__(self, captioners: int, deaths: int, starts: int) -> None:
        self._deaths, self._limit = deaths, starts * captioners
        self._begun: Counter[Key] = Counter()
        self._starts = 0
        self._given_up = 0
        self._last: Key | None = None
        self._running = False
        self._told: list[str] = []
        self._error: CaptioningError | None = None

    def start(self) -> None:
        """A captioner starts. Raises what the run is given up for, where they start again and again for nothing."""
        self._starts += 1
        if self._starts > self._limit:
            at = f"at last on {_named(self._last)}" if self._last else "before they had loaded the model"
            self._error = self._error or CaptioningError(
                f"captioners have died {self._limit} times and nothing was captioned between, {at}. Memory may not "
                "suffice: give fewer --captioners or a smaller --batch-size. What was captioned before is kept aside, "
                "and the same command goes on from there."
            )
        if self._error:
            raise self._error

    def begin(self, tiles: Key) -> bool:
        """Whether the captioner may try `tiles`: not where captioners have died on them too often."""
        self._running, self._last = True, tiles
        died = self._begun[tiles]
        self._begun[tiles] += 1
        if 0 < died <= self._deaths:
            alone = "they are tried one by one" if tiles[1] > 1 else "it is a failed row"
            then = "another one tries" if died < self._deaths else alone
            self._told.append(f"captioners have died {died} time(s) on {_named(tiles)}: {then}")
        if died >= self._deaths and tiles[1] == 1:
            self._given_up += 1
            if self._given_up <= SPARED:  # a scene of such tiles must not end the night
                self._starts = 0
        return died < self._deaths

    def end(self, tiles: Key) -> None:
        """They are done."""
        del self._begun[tiles]
        self._starts = self._given_up = 0

    def news(self) -> tuple[bool, list[str]]:
        """Whether a captioner has begun anything yet, and what is to be told since the last call."""
        told, self._told = self._told, []
        return self._running, told

    def error(self) -> CaptioningError | None:
        """What the run was given up for."""
        return self._error


def _named(tiles: Key) -> str:
    first, count = tiles
    return f"tile {first}" if count == 1 else f"the {count} tiles from {first} on"


@contextmanager
def attempted(
    asked: Asked, tell: Callable[[str], None], warn: Callable[[str], None]
) -> Iterator[tuple[Any, Callable[[], None]]]:
    """An `Attempts` actor for the captioners that are `asked` for, and what to call as rows come.

    `tell` hears what is waited for where none come, `warn` what captioners died on. Where Ray fails in the block
    because the run was given up, it raises that `CaptioningError`.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"scheduling_strategy": here}
    attempts = Attempts.options(**options).remote(asked.count, DEATHS, STARTS)  # type: ignore[attr-defined]
    heard = time.monotonic()

    def hear() -> None:
        nonlocal heard
        heard = time.monotonic()

    def look() -> None:
        running, told = ray.get(attempts.news.remote())
        for line in told:
            warn(line)
        if time.monotonic() - heard > (STALL_SECONDS if running else QUIET_SECONDS):
            hear()
            tell(f"nothing was captioned for {STALL_SECONDS:.0f} s; {free()}" if running else asked.missing())

    try:
        with beside(look, tell):
            yield attempts, hear
    except ray.exceptions.RayError as error:
        if given_up := ray.get(attempts.error.remote()):
            raise given_up from error
        raise
    finally:
        with suppress(ray.exceptions.RayError):  # which would hide why the block ended
            look()
            ray.kill(attempts)
