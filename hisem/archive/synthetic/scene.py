"""The composition of one scene: terrain, roads, what stands on both dates, and the changes of each tile."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage  # type: ignore[import-untyped]

from hisem.archive.synthetic import palette
from hisem.archive.synthetic.canvas import Canvas, Grid
from hisem.archive.synthetic.changes import Change, plan
from hisem.archive.synthetic.geometry import Bounds, FloatArray
from hisem.archive.synthetic.road import VERGE_WIDTH, Road
from hisem.archive.synthetic.site import Occupancy, Part, Site
from hisem.archive.synthetic.sun import Sun
from hisem.archive.synthetic.terrain import Terrain, make_terrain
from hisem.archive.synthetic.things import House, Patch, yard
from hisem.archive.synthetic.trees import MAX_RADIUS, Trees
from hisem.archive.synthetic.truth import Kind

TILE_METRES = 64.0
"""Ground shown by one tile, whatever its number of pixels."""
CHANGE_MARGIN = 3.0
"""Metres, and pixels, that every change keeps from its tile's border: more than any misregistration."""
CHANGE_COUNTS = (0.475, 0.345, 0.14, 0.04)
"""Probability of asking for 0, 1, 2 and 3 changes in a tile; not all find room, which leaves half unchanged."""
FIXTURE_COUNTS = (0.40, 0.40, 0.20)
"""Probability of 0, 1 and 2 unchanging objects in a tile that look like changes of other tiles."""
KIND_WEIGHTS: Mapping[Kind, float] = dict.fromkeys(Kind, 1.0) | {
    Kind.ROAD_WIDENED: 4.0,
    Kind.ROAD_BUILT: 2.6,
    Kind.BUILDING_BUILT: 1.7,
    Kind.FIELD_CLEARED: 1.4,
    Kind.GRASS_GROWN: 1.2,
}
"""Relative frequencies at which changes are tried; what is large fits in fewer tiles than the others."""
FIXTURE_WEIGHTS: Mapping[Kind, float] = dict.fromkeys(Kind, 1.0) | {Kind.ROAD_WIDENED: 0.4, Kind.ROAD_BUILT: 0.3}
"""Relative frequencies at which fixtures are tried; scenes have enough roads without them."""
ROAD_SPACING = 170.0
"""Metres between roads of about the same direction."""
TREE_SPACING = 5.4
"""Metres between neighbouring places where a tree may stand."""

Generator = np.random.Generator


@dataclass(frozen=True)
class Scene:
    """A composed scene. `ground` is painted with all that is flat and does not change."""

    ground: Canvas
    standing: tuple[Part, ...]
    changes: Mapping[tuple[int, int], tuple[Change, ...]]

    def paint(self, *, after: bool, sun: Sun) -> FloatArray:
        """The scene of one date in the light of `sun`, H by W by 4 as on a canvas."""
        differing = [part for changes in self.changes.values() for change in changes for part in _dated(change, after)]
        canvas = self.ground.copy()
        for part in differing:
            if not part.raised:
                part.draw(canvas, sun)
        raised = _gathered([part for part in (*self.standing, *differing) if part.raised])
        for part in raised:
            part.cast(canvas, sun)
        canvas.settle_shade()
        for part in raised:
            part.draw(canvas, sun)
        return canvas.paint


def _gathered(parts: Sequence[Part]) -> list[Part]:
    """The parts with all trees joined into one, last: many at once are painted faster."""
    others: list[Part] = []
    trees: Trees | None = None
    for part in parts:
        if isinstance(part, Trees):
            trees = part if trees is None else trees.join(part)
        else:
            others.append(part)
    return others if trees is None else [*others, trees]


def _dated(change: Change, after: bool) -> tuple[Part, ...]:
    return change.after if after else change.before


def compose(rng: Generator, tiles: int, tile_size: int, margin: int) -> Scene:
    """A scene of `tiles` by `tiles` tiles of `tile_size` pixels, with `margin` pixels more on each side."""
    pixel = TILE_METRES / tile_size
    size = tiles * tile_size + 2 * margin
    grid = Grid(-margin * pixel, -margin * pixel, pixel, size, size)
    terrain = make_terrain(rng, grid)
    roads = _network(rng, tiles * TILE_METRES)
    occupancy = Occupancy(grid, np.zeros((size, size), np.bool_), _road_mask(grid, roads))

    changes: dict[tuple[int, int], tuple[Change, ...]] = {}
    fixtures: list[Part] = []
    for row in range(tiles):
        for column in range(tiles):
            site = _site(row, column, pixel, roads, occupancy)
            changes[row, column] = _changes(rng, site)
            for change in _settle(rng, site, FIXTURE_COUNTS, FIXTURE_WEIGHTS):
                fixtures += _dated(change, bool(rng.random() < 0.5))
    fixtures += _street_houses(rng, roads, terrain, occupancy)
    trees = _trees(rng, terrain, occupancy)

    ground = Canvas.of(grid, terrain.paint)
    level = Sun(0.0, 0.0)
    for part in (*roads, *(part for part in fixtures if not part.raised)):
        part.draw(ground, level)
    standing = (*(part for part in fixtures if part.raised), trees)
    return Scene(ground, standing, changes)


def _network(rng: Generator, size: float) -> list[Road]:
    """Endless roads in two directions at about a right angle, evenly spread over the scene."""
    heading = float(rng.uniform(0.0, math.pi))
    roads = []
    for angle in (heading, heading + math.pi / 2 + float(rng.uniform(-0.2, 0.2))):
        count = max(1, round(size / ROAD_SPACING * float(rng.uniform(0.55, 1.05))))
        for index in range(count):
            offset = ((index + float(rng.uniform(0.25, 0.75))) / count - 0.5) * size
            half_width = float(rng.uniform(2.9, 3.6))
            road = Road(
                x=size / 2 - offset * math.sin(angle),
                y=size / 2 + offset * math.cos(angle),
                angle=angle + float(rng.uniform(-0.08, 0.08)),
                half_width=half_width,
                end_half_width=half_width,
                amplitude=float(rng.uniform(2.0, 9.0)),
                wavelength=float(rng.uniform(220.0, 400.0)),
                phase=float(rng.uniform(0.0, 2 * math.pi)),
            )
            roads.append(road)
    return roads


def _road_mask(grid: Grid, roads: Sequence[Road]) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    mask = np.zeros((grid.height, grid.width), np.bool_)
    for road in roads:
        _, across = road.along_across(grid.x, grid.y)
        mask |= np.abs(across) < road.half_width + VERGE_WIDTH + 0.5
    return mask


def _site(row: int, column: int, pixel: float, roads: Sequence[Road], occupancy: Occupancy) -> Site:
    left, top = column * TILE_METRES, row * TILE_METRES
    tile = Bounds(left, top, left + TILE_METRES, top + TILE_METRES)
    site = Site(tile, tile.padded(-CHANGE_MARGIN * max(1.0, pixel)), roads, occupancy)
    crossing = [road for road in roads if site.stations(road, 0.0)]
    return Site(site.tile, site.inner, crossing, occupancy)


def _changes(rng: Generator, site: Site) -> tuple[Change, ...]:
    """The changes of a tile, of different kinds, in the order in which sentences tell them."""
    changes = _settle(rng, site, CHANGE_COUNTS, KIND_WEIGHTS)
    order = list(Kind)
    return tuple(sorted(changes, key=lambda change: order.index(change.truth.kind)))


def _settle(rng: Generator, site: Site, counts: Sequence[float], weights: Mapping[Kind, float]) -> list[Change]:
    """Changes of different kinds that fit into `site`, marked as taken there.

    Their number is drawn by the probabilities `counts`, their kinds by `weights`.
    """
    settled: list[Change] = []
    count = int(rng.choice(len(counts), p=counts))
    if not count:
        return settled
    shares = np.array(list(weights.values()))
    for index in rng.choice(len(shares), size=len(shares), replace=False, p=shares / shares.sum()):
        change = plan(list(weights)[index], site, rng)
        if change is not None:
            site.occupancy.take(change.extent.padded(1.0))
            settled.append(change)
        if len(settled) == count:
            break
    return settled


def _street_houses(rng: Generator, roads: Sequence[Road], terrain: Terrain, occupancy: Occupancy) -> list[Part]:
    """Houses with drives on both sides of the roads, where the land is settled and nothing else stands."""
    grid = terrain.grid
    whole = Bounds(0.0, 0.0, grid.width * grid.pixel + 2 * grid.left, grid.height * grid.pixel + 2 * grid.top)
    reach = 0.75 * max(whole.width, whole.height)
    parts: list[Part] = []
    for road in roads:
        for side in (-1.0, 1.0):
            along = -reach
            while (along := along + float(rng.uniform(17.0, 27.0))) < reach:
                x, y, heading = road.point(along)
                if not whole.contains(Bounds(x, y, x, y)):
                    continue
                away = road.half_width + float(rng.uniform(10.0, 13.0))
                house = House(
                    x=x - side * away * math.sin(heading),
                    y=y + side * away * math.cos(heading),
                    angle=heading + float(rng.uniform(-0.06, 0.06)),
                    half_length=float(rng.uniform(5.2, 6.8)),
                    half_width=float(rng.uniform(4.4, 5.4)),
                    height=3.8,
                    roof=int(rng.integers(len(palette.ROOFS))),
                    hipped=bool(rng.random() < 0.5),
                )
                bounds, middle = house.bounds(), Bounds(house.x, house.y, house.x, house.y)
                clear = occupancy.free_of_parts(bounds) and occupancy.free(middle.padded(house.half_width + 1.0))
                if whole.contains(bounds) and clear:
                    row, column = int((house.y - grid.top) / grid.pixel), int((house.x - grid.left) / grid.pixel)
                    if rng.random() < float(terrain.settled[row, column]):
                        occupancy.take(bounds)
                        parts += [yard(house, 1.4, 0.5), _drive(house, side, heading), house]
    return parts


def _drive(house: House, side: float, heading: float) -> Patch:
    """The paved way from the road to a house's end."""
    gap = 10.0 - house.half_width
    shift = 0.5 * house.half_length
    middle = house.half_width + gap / 2 - 0.5
    return Patch(
        x=house.x + side * middle * math.sin(heading) + shift * math.cos(heading),
        y=house.y - side * middle * math.cos(heading) + shift * math.sin(heading),
        angle=heading,
        half_length=1.4,
        half_width=gap / 2 + 0.5,
        colour=palette.CONCRETE,
        opacity=0.7,
    )


def _trees(rng: Generator, terrain: Terrain, occupancy: Occupancy) -> Trees:
    """Woods, hedges along parcel borders and single trees, clear of roads and of all other parts."""
    grid = terrain.grid
    rows, columns = (int(extent * grid.pixel / TREE_SPACING) for extent in (grid.height, grid.width))
    jitter = rng.uniform(0.1, 0.9, (2, rows, columns))
    x = grid.left + (np.arange(columns)[None, :] + jitter[0]) * TREE_SPACING
    y = grid.top + (np.arange(rows)[:, None] + jitter[1]) * TREE_SPACING
    at = ((y - grid.top) / grid.pixel).astype(int), ((x - grid.left) / grid.pixel).astype(int)

    hedge = (terrain.border[at] < 2.0) & (terrain.settled[at] > 0.35)
    share = np.where(terrain.wood[at], 0.85, np.where(hedge, 0.40, 0.008 + 0.03 * terrain.settled[at]))
    reach = 2 * math.ceil(MAX_RADIUS / grid.pixel) + 1
    blocked = ndimage.maximum_filter(occupancy.taken.view(np.uint8), size=reach) > 0
    standing = (rng.random(share.shape) < share) & ~blocked[at]
    return Trees.at(rng, x[standing].astype(np.float32), y[standing].astype(np.float32), 2.2, 3.8)
