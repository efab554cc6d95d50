"""Outlines of windows in degrees: rectangles of a map as the ground that they cover.

A straight edge of a map is curved in degrees, so that edges are densified before they are projected. That is all for
nearly every window. Where it is not enough (a pole lies inside, or the window is large), `rings` gives its edges as
many vertices as they need. What lies off the Earth in part is cut into cells, and the outlines of those on it are
joined.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import shapely
from rasterio.crs import CRS

from hisem.archive.globe import WGS84, joined, on_earth, poles_of, projected, to_degrees, turn_of, unwrapped
from hisem.archive.rings import MAX_ERROR, MAX_STEP, NEAR, SEGMENTS, Poles, ring_outlines

SEGMENTS_PER_EDGE = 4
"""Of the shorter edge; those of the longer one are as long."""
MAX_SEGMENTS = 64
"""Of one edge, however much longer than the other it is."""
MAX_DEPTH = 7
"""Times that a window is cut in four: cells are then less than a hundredth of it high and wide."""
FIRST_LOOK = 3
"""Times that it is cut before a cell without a point on Earth is dropped."""
MAX_CELLS = 20_000
"""Cells at once, beyond which no more are cut."""
CUT_AT_ONCE = 64
"""Windows that are cut into cells together."""
LATTICE = 17
"""Points along either side of all windows together, where it is looked whether they lie on Earth."""
AT_ONCE = 65_536
"""Windows that are projected together."""

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Geometries = npt.NDArray[np.object_]


def outlines(crs: CRS, boxes: Floats) -> Geometries:
    """Return the ground of each box, N 4 (left, bottom, right and top in units of `crs`), in degrees.

    These are valid polygons, or multipolygons where the antimeridian crosses them, between -180 and 180; None where
    nothing of a box lies on Earth.
    """
    if crs == WGS84 or not len(boxes):
        return on_earth(shapely.box(*boxes.T))
    lattice = _lattice(boxes)
    somewhere = np.isfinite(projected(crs, WGS84, lattice)[:, 0, 0])
    if not somewhere.any():
        return np.full(len(boxes), None, object)
    strict = turn_of(crs) is None and not (somewhere.all() and _comes_back(crs, lattice))
    parts = [_outlines(crs, boxes[first : first + AT_ONCE], strict) for first in range(0, len(boxes), AT_ONCE)]
    return np.concatenate(parts)


def _outlines(crs: CRS, boxes: Floats, strict: bool) -> Geometries:
    """Outlines of some of the boxes."""
    sides = np.stack([boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]])
    step = sides.min() / SEGMENTS_PER_EDGE
    across, down = (int(min(np.ceil(side.max() / step - 1e-6), MAX_SEGMENTS)) for side in sides)
    poles = poles_of(crs)
    rings, fine = _projected_rings(crs, boxes, (across, down), poles, strict)
    found = np.full(len(boxes), None, object)
    once = ~_edge_starts(across, down)
    once[0] = True
    found[fine] = on_earth(shapely.polygons(rings[fine][:, once]))
    if not fine.all():
        coarse = np.flatnonzero(~fine)
        for first in range(0, len(coarse), CUT_AT_ONCE):
            some = coarse[first : first + CUT_AT_ONCE]
            found[some] = _cut(crs, boxes[some], poles, strict)
    return found


def _cut(crs: CRS, boxes: Floats, poles: Poles, strict: bool) -> Geometries:
    """Outlines of boxes that need more vertices, or have to be cut into cells."""
    owners, cells = np.arange(len(boxes)), boxes
    pieces: list[list[shapely.Geometry]] = [[] for _ in boxes]
    for depth in range(MAX_DEPTH + 1):
        rings, done = _projected_rings(crs, cells, (SEGMENTS, SEGMENTS), poles, strict)
        there = np.isfinite(rings[..., 0]).all(axis=1)
        found = np.full(len(cells), None, object)
        found[done] = on_earth(shapely.polygons(rings[done]))
        found[~done & there] = ring_outlines(crs, cells[~done & there], poles, strict)
        left = shapely.is_missing(found) & ~done
        for owner, piece in zip(owners, found, strict=True):
            if piece is not None:
                pieces[owner].append(piece)
        if depth >= FIRST_LOOK:
            away = np.flatnonzero(~there)
            left[away[~_touch_earth(crs, cells[away], strict)]] = False
        if not left.any() or 4 * left.sum() > MAX_CELLS:
            break
        owners, cells = np.repeat(owners[left], 4), _quarters(cells[left])
    whole = np.empty(len(boxes), object)
    whole[:] = [joined(some) for some in pieces]
    return whole


def _projected_rings(
    crs: CRS, boxes: Floats, segments: tuple[int, int], poles: Poles, strict: bool
) -> tuple[Floats, Flags]:
    """The rings of `edges` in degrees, and which of them are outlines as they are."""
    rings = to_degrees(crs, edges(boxes, *segments), strict=strict)
    rings[..., 0] = unwrapped(rings[..., 0])
    steps = np.abs(np.diff(rings[..., 0], axis=1)).max(axis=1)
    with np.errstate(invalid="ignore"):
        closed = np.abs(rings[:, -1, 0] - rings[:, 0, 0]) < 1e-6  # what winds around the Earth does not
        fine = closed & (steps <= MAX_STEP) & (_errors(rings, _edge_starts(*segments)) <= MAX_ERROR)
    rings[:, -1] = rings[:, 0]
    near = NEAR * np.minimum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    for x, y, _ in poles:
        across = (x >= boxes[:, 0] - near) & (x <= boxes[:, 2] + near)
        fine &= ~(across & (y >= boxes[:, 1] - near) & (y <= boxes[:, 3] + near))
    return rings, fine


def edges(boxes: Floats, across: int, down: int) -> Floats:
    """Rings around boxes, N V 2, counterclockwise from the lower right corner; each corner is there twice.

    Left and right edges have `down` segments, the others `across`.
    """
    left, bottom, right, top = (side[:, None] for side in boxes.T)
    y, x = np.linspace(0, 1, down + 1), np.linspace(0, 1, across + 1)
    up, leftwards = bottom + (top - bottom) * y, right + (left - right) * x
    downwards, rightwards = top + (bottom - top) * y, left + (right - left) * x
    ones = np.ones_like
    sides = [(right * ones(up), up), (leftwards, top * ones(leftwards))]
    sides += [(left * ones(downwards), downwards), (rightwards, bottom * ones(rightwards))]
    return np.concatenate([np.stack(edge, axis=-1) for edge in sides], axis=1)


def _edge_starts(across: int, down: int) -> Flags:
    """Which vertices of `edges` are the first of an edge."""
    starts = np.zeros(2 * (across + down) + 4, bool)
    starts[[0, down + 1, down + across + 2, 2 * down + across + 3]] = True
    return starts


def _errors(rings: Floats, starts: Flags) -> Floats:
    """Which share of the area within each ring lies between it and the curves that it stands for."""
    radians = np.radians(rings)
    before, here, after = radians[:, :-2], radians[:, 1:-1], radians[:, 2:]
    narrowing = np.cos(here[..., 1])
    off, along = here - (before + after) / 2, (after - before) / 2
    # A vertex is four times as far from the chord of its neighbors as the curve is from the next chord, and between
    # a chord and a flat curve lie two thirds of their rectangle.
    strips = np.hypot(off[..., 0] * narrowing, off[..., 1]) * np.hypot(along[..., 0] * narrowing, along[..., 1]) / 6
    ends = np.roll(starts, -1)
    between = ~(starts | ends)[1:-1]
    # Near a pole the differences of sines have no digits left.
    middle, half = (radians[..., 1] + radians[:, :1, 1]) / 2, (radians[..., 1] - radians[:, :1, 1]) / 2
    east, height = radians[..., 0] - radians[:, :1, 0], 2 * np.cos(middle) * np.sin(half)
    area = np.abs(np.sum(east[:, :-1] * height[:, 1:] - east[:, 1:] * height[:, :-1], axis=1)) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        return strips[:, between].sum(axis=1) / area


def _quarters(cells: Floats) -> Floats:
    left, bottom, right, top = cells.T
    x, y = (left + right) / 2, (bottom + top) / 2
    four = [(left, bottom, x, y), (x, bottom, right, y), (left, y, x, top), (x, y, right, top)]
    return np.stack([np.stack(one, axis=-1) for one in four], axis=1).reshape(-1, 4)


def _touch_earth(crs: CRS, cells: Floats, strict: bool) -> Flags:
    """Whether a corner or the center of each cell lies on Earth."""
    left, bottom, right, top = cells.T
    points = [(left, bottom), (right, bottom), (right, top), (left, top), ((left + right) / 2, (bottom + top) / 2)]
    places = np.stack([np.stack(point, axis=-1) for point in points], axis=1).reshape(-1, 1, 2)
    degrees = to_degrees(crs, places, strict=strict)
    return np.asarray(np.isfinite(degrees[:, 0, 0]).reshape(-1, len(points)).any(axis=1))


def _lattice(boxes: Floats) -> Floats:
    """Points, N 1 2, all over what the boxes span."""
    left, bottom = boxes[:, :2].min(axis=0)
    right, top = boxes[:, 2:].max(axis=0)
    x, y = np.meshgrid(np.linspace(left, right, LATTICE), np.linspace(bottom, top, LATTICE))
    return np.stack([x.ravel(), y.ravel()], axis=-1)[:, None]


def _comes_back(crs: CRS, places: Floats) -> bool:
    """True if all places, N 1 2, are the ones that their degrees have in `crs`; no others have a place on Earth."""
    return bool(np.isfinite(to_degrees(crs, places, strict=True)).all())
