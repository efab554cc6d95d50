"""Outlines of windows in degrees: rectangles of a map as the ground that they cover.

A straight edge of a map is curved in degrees, so that edges are densified before they are projected. That is all for
nearly every window. Where it is not enough (a pole lies inside, the window is large, or a part of it is off the Earth),
the window is cut into cells until it is, and their outlines are joined.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import shapely
from rasterio.crs import CRS

from hisem.archive.globe import WGS84, joined, on_earth, poles_of, projected, to_degrees, turn_of, unwrapped

SEGMENTS_PER_EDGE = 4
"""Of the shorter edge; those of the longer one are as long."""
MAX_SEGMENTS = 64
"""Of one edge, however much longer than the other it is."""
CELL_SEGMENTS = 8
"""Of each edge of a cell."""
MAX_DEPTH = 7
"""Times that a window is cut in four: cells are then less than a hundredth of it high and wide."""
FIRST_LOOK = 3
"""Times that it is cut before a cell without a point on Earth is dropped."""
MAX_CELLS = 20_000
"""Cells at once, beyond which no more are cut."""
CUT_AT_ONCE = 64
"""Windows that are cut into cells together."""
MAX_STEP = 60.0
"""Degrees of longitude between neighbors on an outline, beyond which it is cut."""
MAX_ERROR = 0.003
"""Share of a window's area that may lie between its curved edges and the straight ones of its outline."""
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
    places = edges(boxes, across, down)
    poles = poles_of(crs)
    rings, fine = _projected_rings(crs, places, (across, down), poles, strict)
    for x, y, _ in poles:
        near = 1e-6 * sides.min(axis=0)
        fine &= (
            (x < boxes[:, 0] - near) | (x > boxes[:, 2] + near) | (y < boxes[:, 1] - near) | (y > boxes[:, 3] + near)
        )
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


def _cut(crs: CRS, boxes: Floats, poles: list[tuple[float, float, float]], strict: bool) -> Geometries:
    """Outlines of boxes that have to be cut into cells."""
    owners, cells = _cut_at_poles(boxes, poles)
    pieces: list[list[shapely.Geometry]] = [[] for _ in boxes]
    for depth in range(MAX_DEPTH + 1):
        last = depth == MAX_DEPTH or 4 * len(cells) > MAX_CELLS
        segments = CELL_SEGMENTS, CELL_SEGMENTS
        rings, done = _projected_rings(crs, edges(cells, *segments), segments, poles, strict, anyhow=last)
        for owner, piece in zip(owners[done], on_earth(shapely.polygons(rings[done])), strict=True):
            if piece is not None:
                pieces[owner].append(piece)
        left = ~done
        if depth >= FIRST_LOOK:
            away = np.flatnonzero(left & np.isnan(rings[:, 0, 0]))
            left[away[~_touch_earth(crs, cells[away], strict)]] = False
        if last or not left.any():
            break
        owners, cells = np.repeat(owners[left], 4), _quarters(cells[left])
    found = np.empty(len(boxes), object)
    found[:] = [joined(some) for some in pieces]
    return found


def _projected_rings(
    crs: CRS,
    places: Floats,
    segments: tuple[int, int],
    poles: list[tuple[float, float, float]],
    strict: bool,
    anyhow: bool = False,
) -> tuple[Floats, Flags]:
    """Rings as `edges` gives them in degrees, and which of them are outlines as they are; `anyhow`, coarse ones too."""
    rings = to_degrees(crs, places, strict=strict)
    _settle_poles(rings, places, _edge_starts(*segments), poles)
    rings[..., 0] = unwrapped(rings[..., 0])
    steps = np.abs(np.diff(rings[..., 0], axis=1)).max(axis=1)
    with np.errstate(invalid="ignore"):
        closed = np.abs(rings[:, -1, 0] - rings[:, 0, 0]) < 1e-6  # what winds around the Earth does not
        fine = closed & (steps <= (179.0 if anyhow else MAX_STEP))
        if not anyhow:
            fine &= _errors(rings, _edge_starts(*segments)) <= MAX_ERROR
    rings[:, -1] = rings[:, 0]
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


def _settle_poles(rings: Floats, places: Floats, starts: Flags, poles: list[tuple[float, float, float]]) -> None:
    """Give the vertices of `rings` that are a pole its latitude, and the longitude of the edge that they end."""
    for x, y, latitude in poles:
        size = np.ptp(places, axis=1).min(axis=-1)[:, None]
        row, col = np.nonzero(np.abs(places - (x, y)).max(axis=-1) <= 1e-6 * size)
        rings[row, col, 1] = latitude
        rings[row, col, 0] = rings[row, col + np.where(starts[col], 1, -1), 0]


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
    east, height = radians[..., 0] - radians[:, :1, 0], np.sin(radians[..., 1]) - np.sin(radians[:, :1, 1])
    area = np.abs(np.sum(east[:, :-1] * height[:, 1:] - east[:, 1:] * height[:, :-1], axis=1)) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        return strips[:, between].sum(axis=1) / area


def _cut_at_poles(boxes: Floats, poles: list[tuple[float, float, float]]) -> tuple[npt.NDArray[np.int64], Floats]:
    """Cells of which no pole lies inside or on an edge, but at a corner at most, and the box of each."""
    owners, cells = [], []
    for number, (left, bottom, right, top) in enumerate(boxes.tolist()):
        xs, ys = {left, right}, {bottom, top}
        near = 1e-6 * min(right - left, top - bottom)
        for x, y, _ in poles:
            if left - near <= x <= right + near and bottom - near <= y <= top + near:
                xs |= {x} if left + near < x < right - near else set()
                ys |= {y} if bottom + near < y < top - near else set()
        columns, rows = sorted(xs), sorted(ys)
        for low, high in pairwise(rows):
            cells += [(west, low, east, high) for west, east in pairwise(columns)]
        owners += [number] * ((len(columns) - 1) * (len(rows) - 1))
    return np.array(owners), np.array(cells)


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
