"""Drafts: what the before and after scenes show of each kind of change, built around the origin.

The same drafts, drawn alike on both dates, furnish the scenes with ponds, lots, houses and fields that
are no changes, so that neither date alone gives a change away.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from hisem.archive.synthetic import palette
from hisem.archive.synthetic.geometry import Bounds, FloatArray
from hisem.archive.synthetic.road import Road
from hisem.archive.synthetic.site import Part
from hisem.archive.synthetic.things import Hall, House, ParkingLot, Patch, Pond, yard
from hisem.archive.synthetic.trees import Trees
from hisem.archive.synthetic.truth import ANCHORS, Kind, Place

Generator = np.random.Generator


@dataclass(frozen=True)
class Draft:
    """A change around the origin. `half_depth`: metres it reaches across, where it may line a road."""

    before: tuple[Part, ...]
    after: tuple[Part, ...]
    count: int = 1
    places: tuple[Place, ...] = tuple(ANCHORS)
    half_depth: float | None = None

    def bounds(self) -> Bounds:
        """Bounds of both dates."""
        first, *others = [part.bounds() for part in (*self.before, *self.after)]
        for bounds in others:
            first = first.union(bounds)
        return first


Make = Callable[[Generator, float, bool], Draft]
"""Draws a draft at an angle (radians), in a row along it if the flag says so."""


def free_road(rng: Generator) -> Draft:
    """A road on open ground, mostly along an axis."""
    places, heading = [
        ((Place.TOP, Place.CENTER, Place.BOTTOM), 0.0),
        ((Place.LEFT, Place.CENTER, Place.RIGHT), math.pi / 2),
        ((Place.CENTER,), math.pi / 4),
        ((Place.CENTER,), -math.pi / 4),
    ][rng.choice(4, p=(0.4, 0.4, 0.1, 0.1))]
    half_length = float(rng.uniform(20.0, 25.0))
    half_width = float(rng.uniform(3.2, 4.0))
    road = Road(
        x=0.0,
        y=0.0,
        angle=heading + float(rng.uniform(-0.10, 0.10)),
        half_width=half_width,
        end_half_width=half_width,
        amplitude=float(rng.uniform(0.0, 1.5)),
        wavelength=70.0,
        phase=float(rng.uniform(0.0, 2 * math.pi)),
        start=-half_length,
        end=half_length,
        fresh=True,
    )
    return Draft((), (road,), places=places)


def _houses(rng: Generator, angle: float, row: bool) -> tuple[House, ...]:
    """One to three alike houses, in a row along `angle` or close together."""
    count = int(rng.choice([1, 2, 3], p=(0.55, 0.27, 0.18)))
    half_length, half_width = float(rng.uniform(5.4, 6.8)), float(rng.uniform(4.5, 5.4))
    if row:
        half_length = min(half_length, 5.8)
        offsets = [(2 * (half_length + 2.4) * (index - (count - 1) / 2), 0.0) for index in range(count)]
    else:
        step_u, step_v = half_length + 2.2, half_width + 2.4
        square = [(-step_u, -step_v), (step_u, -step_v), (-step_u, step_v), (step_u, step_v)]
        chosen = rng.permutation(4)[:count] if count != 2 else rng.permutation([[0, 1], [0, 2], [0, 3], [1, 2]])[0]
        offsets = [square[index] for index in chosen]
    cosine, sine = math.cos(angle), math.sin(angle)
    roof, hipped = int(rng.integers(len(palette.ROOFS))), bool(rng.random() < 0.5)
    return tuple(
        House(
            x=u * cosine - v * sine,
            y=u * sine + v * cosine,
            angle=angle,
            half_length=half_length,
            half_width=half_width,
            height=3.8,
            roof=roof,
            hipped=hipped,
        )
        for u, v in offsets
    )


def _house_built(rng: Generator, angle: float, row: bool) -> Draft:
    houses = _houses(rng, angle, row)
    yards = tuple(yard(house, 1.4, 0.5) for house in houses)
    return Draft((), (*yards, *houses), len(houses), half_depth=houses[0].half_width + 1.0)


def _house_demolished(rng: Generator, angle: float, row: bool) -> Draft:
    houses = _houses(rng, angle, row)
    rubble = tuple(
        Patch(
            x=house.x,
            y=house.y,
            angle=angle,
            half_length=house.half_length - 0.5,
            half_width=house.half_width - 0.5,
            colour=palette.DARK_SOIL,
            waves=_waves(rng, 0.10),
            opacity=0.85,
        )
        for house in houses
    )
    yards = tuple(yard(house, 1.4, 0.5) for house in houses)
    return Draft((*yards, *houses), rubble, len(houses), half_depth=houses[0].half_width + 1.0)


def _building_built(rng: Generator, angle: float, row: bool) -> Draft:
    hall = Hall(
        x=0.0,
        y=0.0,
        angle=angle,
        half_length=float(rng.uniform(11.5, 14.0)),
        half_width=float(rng.uniform(8.5, 10.0)),
        height=5.5,
        roof=int(rng.integers(len(palette.HALLS))),
        skylights=int(rng.integers(3, 6)),
    )
    return Draft((), (yard(hall, 1.5, 0.7), hall))


def _parking_built(rng: Generator, angle: float, row: bool) -> Draft:
    bays = int(rng.integers(7, 10))
    cars = np.where(rng.random((2, bays)) < 0.6, rng.integers(0, len(palette.CARS), (2, bays)), -1)
    half_width = float(rng.uniform(8.0, 9.5))
    lot = ParkingLot(
        x=0.0,
        y=0.0,
        angle=angle,
        half_length=bays * ParkingLot.bay_width / 2 + 1.2,
        half_width=half_width,
        cars=cars,
    )
    return Draft((), (lot,), half_depth=half_width - 1.5)


def _grove(rng: Generator, angle: float, row: bool) -> Trees:
    """Eight or so trees, in two staggered lines along `angle` or close together."""
    if row:
        along = np.arange(-16.0, 17.0, 6.2)
        u, v = np.concatenate([along, along + 3.1]), np.repeat([-2.2, 2.4], len(along))
    else:
        grid = np.arange(-2, 3) * 5.4
        u, v = (axis.ravel() for axis in np.meshgrid(grid, grid))
        v = v + 2.7 * ((np.arange(len(v)) % 5) % 2)
        near = (u / rng.uniform(8.5, 12.5)) ** 2 + (v / rng.uniform(8.5, 12.5)) ** 2 < 1.0
        u, v = u[near], v[near]
    u, v = u + rng.uniform(-0.8, 0.8, len(u)), v + rng.uniform(-0.8, 0.8, len(v))
    x: FloatArray = (u * math.cos(angle) - v * math.sin(angle)).astype(np.float32)
    y: FloatArray = (u * math.sin(angle) + v * math.cos(angle)).astype(np.float32)
    return Trees.at(rng, x, y, 2.6, 3.6)


def _trees_cut(rng: Generator, angle: float, row: bool) -> Draft:
    grove = _grove(rng, angle, row)
    return Draft((grove,), (), len(grove), half_depth=4.0)


def _trees_grown(rng: Generator, angle: float, row: bool) -> Draft:
    grove = _grove(rng, angle, row)
    return Draft((), (grove,), len(grove), half_depth=4.0)


def _waves(rng: Generator, amplitude: float) -> npt.NDArray[np.float64]:
    return amplitude * rng.uniform(-1.0, 1.0, (2, 4)) / np.array([1.0, 1.5, 2.0, 3.0])


def _pond(rng: Generator, angle: float) -> Pond:
    half_width = float(rng.uniform(9.5, 11.5))
    half_length = half_width * float(rng.uniform(1.05, 1.4))
    waves = _waves(rng, 0.16)
    return Pond(x=0.0, y=0.0, angle=angle, half_length=half_length, half_width=half_width, waves=waves)


def _pond_appeared(rng: Generator, angle: float, row: bool) -> Draft:
    return Draft((), (_pond(rng, angle),))


def _pond_dried(rng: Generator, angle: float, row: bool) -> Draft:
    pond = _pond(rng, angle)
    bed = Patch(
        x=0.0, y=0.0, angle=angle, half_length=pond.half_length, half_width=pond.half_width,
        colour=palette.MUD, waves=pond.waves, opacity=0.9,
    )  # fmt: skip
    return Draft((pond,), (bed,))


def _field(rng: Generator, angle: float, colour: FloatArray, contrast: float) -> Patch:
    half_length, half_width = float(rng.uniform(12.0, 15.0)), float(rng.uniform(10.0, 12.0))
    return Patch(
        x=0.0, y=0.0, angle=angle, half_length=half_length, half_width=half_width,
        colour=colour, row_contrast=contrast,
    )  # fmt: skip


def _field_cleared(rng: Generator, angle: float, row: bool) -> Draft:
    field = _field(rng, angle, palette.CROP, 0.14)
    return Draft((field,), (replace(field, colour=palette.SOIL, row_contrast=0.06),))


def _grass_grown(rng: Generator, angle: float, row: bool) -> Draft:
    ground = replace(_field(rng, angle, palette.SOIL, 0.0), waves=_waves(rng, 0.10))
    return Draft((ground,), (replace(ground, colour=palette.MEADOW * np.float32(0.9)),))


DRAFTS: dict[Kind, Make] = {
    Kind.HOUSE_BUILT: _house_built,
    Kind.HOUSE_DEMOLISHED: _house_demolished,
    Kind.BUILDING_BUILT: _building_built,
    Kind.PARKING_BUILT: _parking_built,
    Kind.TREES_CUT: _trees_cut,
    Kind.TREES_GROWN: _trees_grown,
    Kind.POND_APPEARED: _pond_appeared,
    Kind.POND_DRIED: _pond_dried,
    Kind.FIELD_CLEARED: _field_cleared,
    Kind.GRASS_GROWN: _grass_grown,
}
