"""Predecessors: which earlier acquisition another is compared with, or why with none.

A predecessor is an earlier acquisition of the same collection that covers enough of the newer one, lies
neither too close nor too far in time, and is clear enough. The best one has least cloud (unknown counts
as most), then lies nearest in time, then has the smallest id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from hisem.archive.acquisitions import Acquisition, Reason
from hisem.archive.footprints import covered_fractions, equal_area
from hisem.errors import ConfigError
from hisem.ranges import Days, Overlap, Percent, require_ranges

TOLERANCE = 1e-9
"""Of overlaps, so that equal footprints cover each other wholly whatever the rounding."""
BATCH = 8
"""Candidates whose overlap is computed at once; mostly the first ones do."""


@dataclass(frozen=True, kw_only=True)
class PairingConfig:
    """What makes two acquisitions a pair."""

    min_overlap: Overlap = 0.5
    """Fraction of the newer footprint's area that the older one covers, above 0, at most 1."""
    min_days: Days = 30.0
    """Days between the two, 0 or more; the older one is always earlier."""
    max_days: Days = 1830.0
    """Days between the two, at least `min_days`, at most 100,000."""
    max_cloud: Percent = 20.0
    """Percent of clouds on either date, 0 to 100; an unknown cloud cover passes."""
    across_collections: bool = False
    """Whether a predecessor may be of another collection."""
    since: datetime | None = None
    """Acquisitions before it only serve as predecessors; with time zone. None: all want a predecessor."""

    def __post_init__(self) -> None:
        require_ranges(self)
        if self.min_days > self.max_days:
            raise ConfigError(f"min_days is {self.min_days:g} and max_days {self.max_days:g}: not more is needed.")


class Predecessors:
    """Acquisitions that may be each other's predecessors, the preferred ones first.

    All that may precede one acquisition are earlier, so that the nearest is the latest: least cloud, latest,
    smallest id is one order for all.
    """

    def __init__(self, acquisitions: Sequence[Acquisition], config: PairingConfig) -> None:
        self.config = config
        self.acquisitions = sorted(acquisitions, key=_preference)
        self.footprints = equal_area([one.footprint for one in self.acquisitions])
        self.tree = shapely.STRtree(self.footprints)
        naive = [one.time.astimezone(UTC).replace(tzinfo=None) for one in self.acquisitions]
        self.times = np.array(naive, "datetime64[us]")
        # Unknown compares false with any limit, and so passes.
        self.clouds = np.array([np.nan if one.cloud_cover is None else one.cloud_cover for one in self.acquisitions])

    def of(self, number: int) -> Acquisition | tuple[Reason, str]:
        """The best predecessor of an acquisition, or why it has none."""
        if self.clouds[number] > self.config.max_cloud:
            return Reason.TOO_CLOUDY, f"cloud cover {self.clouds[number]:.4g} % > {self.config.max_cloud:g} %"
        near = np.sort(self.tree.query(self.footprints[number]))
        earlier = near[self.times[near] < self.times[number]]
        eligible = earlier[self._in_time(number, earlier) & self._clear(earlier)]
        for first in range(0, len(eligible), BATCH):
            batch = eligible[first : first + BATCH]
            overlapping = batch[self._overlaps(number, batch) >= self.config.min_overlap - TOLERANCE]
            if len(overlapping):
                return self.acquisitions[overlapping[0]]
        return self._explained(number, earlier)

    def _explained(self, number: int, earlier: npt.NDArray[np.int64]) -> tuple[Reason, str]:
        """The criterion that eliminated the last of the `earlier` ones, in numbers."""
        config = self.config
        overlaps = self._overlaps(number, earlier)
        left, overlaps = earlier[overlaps > 0], overlaps[overlaps > 0]
        if not len(left):
            return Reason.NO_PREDECESSOR, "no earlier acquisition covers any of it"
        in_time = self._in_time(number, left)
        if not in_time.any():
            days = (self.times[number] - self.times[left]) / np.timedelta64(1, "D")
            limits = f"{config.min_days:g} to {config.max_days:g} days"
            found = f"{days.min():.4g} to {days.max():.4g} days before"
            return Reason.NO_PREDECESSOR_IN_TIME, f"{_counted(left)}, {found}, none of them {limits}"
        left, overlaps = left[in_time], overlaps[in_time]
        clear = self._clear(left)
        if not clear.any():
            least = f"least cloud cover {self.clouds[left].min():.4g} % > {config.max_cloud:g} %"
            return Reason.NO_CLEAR_PREDECESSOR, f"{_counted(left)} in time, {least}"
        best = f"best overlap {100 * overlaps[clear].max():.4g} % < {100 * config.min_overlap:g} %"
        return Reason.NO_OVERLAPPING_PREDECESSOR, f"{_counted(left[clear])} in time and clear, {best}"

    def _in_time(self, number: int, others: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        gaps = self.times[number] - self.times[others]
        shortest, longest = (np.timedelta64(timedelta(days=d)) for d in (self.config.min_days, self.config.max_days))
        return (gaps >= shortest) & (gaps <= longest)

    def _clear(self, others: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        return ~(self.clouds[others] > self.config.max_cloud)

    def _overlaps(self, number: int, others: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        return covered_fractions(self.footprints[number], self.footprints[others])


def _preference(one: Acquisition) -> tuple[Any, ...]:
    unknown = one.cloud_cover is None
    return unknown, one.cloud_cover or 0.0, -one.time.timestamp(), one.id, one.collection or ""


def _counted(numbers: npt.NDArray[np.int64]) -> str:
    return f"{len(numbers)} earlier acquisition{'' if len(numbers) == 1 else 's'}"
