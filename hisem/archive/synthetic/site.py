"""The room for changes: what is taken in a scene, and one tile as a building site."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from hisem.archive.synthetic.canvas import Canvas, Grid
from hisem.archive.synthetic.geometry import Bounds
from hisem.archive.synthetic.road import Road
from hisem.archive.synthetic.sun import Sun


class Part(Protocol):
    """What a scene is made of: roads, things and trees."""

    @property
    def raised(self) -> bool:
        """Whether it stands above the ground: raised parts are painted after all shadows."""

    def bounds(self) -> Bounds:
        """Bounds of all that it can paint, shadows included."""

    def moved(self, dx: float, dy: float) -> Self:
        """The same part elsewhere."""

    def cast(self, canvas: Canvas, sun: Sun) -> None:
        """Add its shadow."""

    def draw(self, canvas: Canvas, sun: Sun) -> None:
        """Paint itself."""


@dataclass(frozen=True)
class Occupancy:
    """Which pixels of a scene's grid are taken, H by W each: `parts` by all but roads, `taken` by anything."""

    grid: Grid
    parts: npt.NDArray[np.bool_]
    taken: npt.NDArray[np.bool_]

    def _view(self, bounds: Bounds) -> tuple[slice, slice]:
        grid = self.grid

        def span(low: float, high: float, origin: float, limit: int) -> slice:
            first = min(max(int((low - origin) / grid.pixel), 0), limit)
            return slice(first, min(max(math.ceil((high - origin) / grid.pixel), first), limit))

        rows = span(bounds.top, bounds.bottom, grid.top, grid.height)
        return rows, span(bounds.left, bounds.right, grid.left, grid.width)

    def free_of_parts(self, bounds: Bounds) -> bool:
        """Whether no part lies within `bounds`."""
        return not self.parts[self._view(bounds)].any()

    def free(self, bounds: Bounds) -> bool:
        """Whether neither a part nor a road lies within `bounds`."""
        return not self.taken[self._view(bounds)].any()

    def take(self, bounds: Bounds) -> None:
        """Mark `bounds` as taken by a part."""
        view = self._view(bounds)
        self.parts[view] = self.taken[view] = True


@dataclass(frozen=True)
class Site:
    """One tile: `tile` its bounds, `inner` those within which changes stay, `roads` those that cross it."""

    tile: Bounds
    inner: Bounds
    roads: Sequence[Road]
    occupancy: Occupancy

    def stations(self, road: Road, reach: float) -> list[float]:
        """Positions along `road` (metres, 2 apart) whose surroundings of `reach` metres lie within `inner`."""
        room = self.inner.padded(-reach)
        middle_x, middle_y = (self.tile.left + self.tile.right) / 2, (self.tile.top + self.tile.bottom) / 2
        here, aside = road.position(middle_x, middle_y)
        if abs(aside) > self.tile.width:
            return []
        along = np.arange(-48.0, 49.0, 2.0) + here
        x, y = road.points(along).T
        inside = (x >= room.left) & (x <= room.right) & (y >= room.top) & (y <= room.bottom)
        return along[inside].tolist()

    def clear_of(self, x: float, y: float, besides: Road, distance: float) -> bool:
        """Whether all roads but `besides` are at least `distance` metres from a point."""
        return all(
            abs(road.position(x, y)[1]) - road.half_width >= distance for road in self.roads if road is not besides
        )
