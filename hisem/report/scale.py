"""Axes for what is drawn in a sweep: numbers, evenly or by their logarithm, and names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.ticker import MaxNLocator

from hisem.report.sweep import Value, number

LOG_SPAN = 10.0
"""Numbers whose largest is so many times their smallest, or more, are drawn on a logarithmic axis."""

MOST_VALUES = 5
"""With more different numbers than these, ticks are at round numbers."""


@dataclass(frozen=True)
class Scale:
    """An axis: where its values lie, NaN for missing ones, and which places are labelled."""

    values: list[float]
    ticks: dict[float, str]
    log: bool
    names: bool

    def places(self, values: Sequence[float]) -> list[float]:
        """Heights of `values` where the axis goes from 0, its lowest value, to 1; one value alone is in the middle."""
        low, high = self._bent([np.nanmin(self.values), np.nanmax(self.values)])
        if high == low:
            return [math.nan if math.isnan(value) else 0.5 for value in values]
        heights: list[float] = ((self._bent(values) - low) / (high - low)).tolist()
        return heights

    def _bent(self, values: Sequence[float]) -> npt.NDArray[np.float64]:
        numbers = np.array(values, float)
        return np.log(numbers) if self.log else numbers

    def labels(self, gap: float, letter: float = 0.0) -> list[tuple[float, float, str]]:
        """(value, height, text) of ticks, less those nearer than `gap` and so much a letter to the one before."""
        kept: list[tuple[float, float, str]] = []
        for (value, text), height in zip(self.ticks.items(), self.places(list(self.ticks)), strict=True):
            if not kept or height - kept[-1][1] >= gap + letter * len(text):
                kept.append((value, height, text))
        return kept


def scale_of(values: Sequence[Value | None], log: bool | None = None) -> Scale:
    """The axis of what was drawn: names evenly spaced, numbers by themselves or by their logarithm."""
    known = {value for value in values if value is not None}
    if any(isinstance(value, str | bool) for value in known):
        order = {name: float(place) for place, name in enumerate(sorted(map(str, known)))}
        spaced = [math.nan if value is None else order[str(value)] for value in values]
        return Scale(spaced, {place: name for name, place in order.items()}, log=False, names=True)
    numbers = [math.nan if value is None else float(value) for value in values]
    low, high = np.nanmin(numbers), np.nanmax(numbers)
    log = bool(low > 0 and high / low >= LOG_SPAN) if log is None else log
    whole = all(isinstance(value, int) for value in known)
    if len(known) <= MOST_VALUES:
        ticks = sorted({float(value) for value in known})
    elif log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [float(f"{digit}e{decade}") for decade in decades for digit in (1, 3)]
    else:
        ticks = [float(tick) for tick in MaxNLocator(5, integer=whole, steps=[1, 2, 5, 10]).tick_values(low, high)]
    texts = {tick: number(round(tick) if whole and tick >= 1 else tick) for tick in ticks if low <= tick <= high}
    return Scale(numbers, texts, log, names=False)
