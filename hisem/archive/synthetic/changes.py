"""Changes: drafts settled in a tile, at a place where each lies wholly inside and touches nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from hisem.archive.synthetic.drafts import DRAFTS, Draft, Make, free_road
from hisem.archive.synthetic.geometry import Bounds
from hisem.archive.synthetic.road import VERGE_WIDTH, Road
from hisem.archive.synthetic.site import Part, Site
from hisem.archive.synthetic.truth import ANCHORS, Kind, Place, Truth

Generator = np.random.Generator
ROADSIDE_SHARE = 0.45
"""How often a draft that may stand along a road does so where there is one."""
SHORTEST_BRANCH, LONGEST_BRANCH = 22.0, 46.0
"""Metres of a side road."""
SLACK = 3.5
"""Metres by which a change may miss the exact position of its place."""


@dataclass(frozen=True)
class Change:
    """A change settled in its tile. All that differs between the dates lies within `extent`."""

    truth: Truth
    extent: Bounds
    before: tuple[Part, ...]
    after: tuple[Part, ...]

    @classmethod
    def of(cls, kind: Kind, place: Place, draft: Draft, dx: float, dy: float) -> Self:
        """The draft with its origin moved to (`dx`, `dy`)."""
        before = tuple(part.moved(dx, dy) for part in draft.before)
        after = tuple(part.moved(dx, dy) for part in draft.after)
        return cls(Truth(kind, place, draft.count), draft.bounds().moved(dx, dy), before, after)


def plan(kind: Kind, site: Site, rng: Generator) -> Change | None:
    """A change of `kind` somewhere in `site`, or None where none fits."""
    if kind is Kind.ROAD_WIDENED:
        return _widening(site, rng)
    if kind is Kind.ROAD_BUILT:
        return _branch(site, rng) if site.roads else _anchored(kind, free_road(rng), site, rng)
    draft = DRAFTS[kind]
    if site.roads and rng.random() < ROADSIDE_SHARE:
        change = _along_road(kind, draft, site, rng)
        if change is not None:
            return change
    angle = float(rng.choice([0.0, math.pi / 2]) + rng.uniform(-0.12, 0.12))
    return _anchored(kind, draft(rng, angle, False), site, rng)


def _anchored(kind: Kind, draft: Draft, site: Site, rng: Generator) -> Change | None:
    """The draft at the first of its places, in random order, where it fits."""
    bounds = draft.bounds()
    room_x, room_y = site.inner.width - bounds.width, site.inner.height - bounds.height
    if room_x < 0 or room_y < 0:
        return None
    for index in rng.permutation(len(draft.places)):
        place = draft.places[index]
        slack_x, slack_y = rng.uniform(-SLACK, SLACK, 2).tolist()
        x = min(max(ANCHORS[place][0] * room_x + slack_x, 0.0), room_x)
        y = min(max(ANCHORS[place][1] * room_y + slack_y, 0.0), room_y)
        dx, dy = site.inner.left + x - bounds.left, site.inner.top + y - bounds.top
        if site.occupancy.free(bounds.moved(dx, dy)):
            return Change.of(kind, place, draft, dx, dy)
    return None


def _along_road(kind: Kind, make: Make, site: Site, rng: Generator) -> Change | None:
    """The draft beside a road of the tile, turned to the road's heading."""
    road = site.roads[int(rng.integers(len(site.roads)))]
    stations = site.stations(road, 4.0)
    if not stations:
        return None
    middle = stations[len(stations) // 2]
    x, y, heading = road.point(middle)
    draft = make(rng, heading, True)
    if draft.half_depth is None:
        return None
    bounds = draft.bounds()
    away = road.half_width + VERGE_WIDTH + 1.5 + draft.half_depth
    for side in rng.permutation([-1, 1]):
        at_x, at_y = x - side * away * math.sin(heading), y + side * away * math.cos(heading)
        extent = bounds.moved(at_x, at_y)
        fits = site.inner.contains(extent) and site.occupancy.free_of_parts(extent)
        if fits and site.clear_of(at_x, at_y, road, draft.half_depth + 10.0):
            return Change.of(kind, Place.ROADSIDE, draft, at_x, at_y)
    return None


def _widening(site: Site, rng: Generator) -> Change | None:
    """A stretch of an existing road becomes more than twice as wide."""
    for index in rng.permutation(len(site.roads)):
        road = site.roads[index]
        half_width = road.half_width * float(rng.uniform(2.2, 2.5))
        stations = site.stations(road, half_width + VERGE_WIDTH + 0.5)
        if not stations or stations[-1] - stations[0] < 30.0:
            continue
        wide = replace(
            road,
            start=stations[0],
            end=stations[-1],
            half_width=half_width,
            end_half_width=road.half_width,
            lanes=4,
        )
        crossing_free = all(
            site.clear_of(x, y, road, 6.0) for x, y in road.points(np.array([*stations[::4], stations[-1]]))
        )
        extent = wide.bounds()
        if crossing_free and site.inner.contains(extent) and site.occupancy.free_of_parts(extent):
            return Change(Truth(Kind.ROAD_WIDENED, Place.ROADSIDE), extent, (), (wide,))
    return None


def _branch(site: Site, rng: Generator) -> Change | None:
    """A side road that leaves an existing road of the tile at about a right angle."""
    road = site.roads[int(rng.integers(len(site.roads)))]
    stations = site.stations(road, 6.0)
    half_width = float(rng.uniform(3.2, 4.0))
    for index in rng.permutation(len(stations))[:6]:
        x, y, heading = road.point(stations[index])
        for side in rng.permutation([-1, 1]):
            angle = heading + side * math.pi / 2 + float(rng.uniform(-0.15, 0.15))
            stub = Road(
                x=x, y=y, angle=angle, half_width=half_width, end_half_width=half_width,
                start=road.half_width - 0.3, end=road.half_width + LONGEST_BRANCH, fresh=True,
            )  # fmt: skip
            end = _free_until(stub, site)
            if end - stub.start >= SHORTEST_BRANCH:
                stub = replace(stub, end=end)
                extent = stub.bounds()
                return Change(Truth(Kind.ROAD_BUILT, _place_of(extent, site.tile)), extent, (), (stub,))
    return None


def _free_until(stub: Road, site: Site) -> float:
    """How far along `stub` it stays within the tile and clear of parts and of other roads."""
    reach = stub.half_width + VERGE_WIDTH
    room = site.inner.padded(-reach)
    clear = stub.start
    for along in np.arange(stub.start, stub.end, 2.0):
        x, y, _ = stub.point(float(along))
        here = Bounds(x, y, x, y)
        if not room.contains(here) or not site.occupancy.free_of_parts(here.padded(reach)):
            break
        # The first metres lie on the road that it leaves.
        if along > stub.start + 9.0 and not site.occupancy.free(here.padded(reach + 3.0)):
            break
        clear = float(along)
    return clear


def _place_of(extent: Bounds, tile: Bounds) -> Place:
    """The place in whose ninth of the tile the middle of `extent` lies."""
    across = ((extent.left + extent.right) / 2 - tile.left) / tile.width
    down = ((extent.top + extent.bottom) / 2 - tile.top) / tile.height
    anchor = (min(int(across * 3), 2) / 2, min(int(down * 3), 2) / 2)
    return next(place for place, at in ANCHORS.items() if at == anchor)
