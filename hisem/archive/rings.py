"""Outlines of map rectangles in degrees, edge by edge: with as many vertices as their curves need, and around poles.

A pole is one point on Earth, but all longitudes in degrees: a rectangle around it is what lies between its edges, which
wind around the Earth, and the line of the pole.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely
from rasterio.crs import CRS

from hisem.archive.globe import TURN, on_earth, to_degrees

SEGMENTS = 8
"""Of each edge, at least."""
MAX_HALVINGS = 28
"""Of a segment: one that passes a pole at NEAR of it is short enough then."""
MAX_CURVED = 256
"""Segments of one rectangle at once, beyond which it is rounding that bends them."""
NEAR = 1e-6
"""Share of a rectangle's shorter side within which a pole counts as on its edge."""
MAX_STEP = 60.0
"""Degrees of longitude between neighbors on an outline, beyond which it is cut."""
MAX_ERROR = 0.003
"""Share of a rectangle's area that may lie between its curved edges and the straight ones of its outline."""
EXACT = 2.0**40
"""Parts of a degree in which whole turns can be added to a longitude without rounding."""

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int64]
Geometries = npt.NDArray[np.object_]
Poles = list[tuple[float, float, float]]
"""x, y and latitude of each, as `globe.poles_of` returns them."""


@dataclass(frozen=True)
class Segments:
    """Pieces of rings: each is one straight line of an outline."""

    owner: Numbers
    """The number of the rectangle."""
    span: Floats
    """Start and end on the ring, N 2: whole numbers are corners, counterclockwise from the lower right one."""
    ends: Floats
    """Longitude and latitude of both, N 2 2."""
    polar: Flags
    """Which of the two is a pole, N 2; its longitude is that of the other one."""

    def __getitem__(self, which: Flags | Numbers | slice) -> Segments:
        return Segments(self.owner[which], self.span[which], self.ends[which], self.polar[which])


def ring_outlines(crs: CRS, boxes: Floats, poles: Poles, strict: bool) -> Geometries:
    """Return the ground of each box, N 4 (left, bottom, right and top in units of `crs`), as `globe.on_earth` does.

    None stands for a box that has to be cut: a part of its edge lies nowhere on Earth, the map is interrupted within
    it, or both poles lie in it. For `strict` see `globe.to_degrees`.
    """
    found = np.full(len(boxes), None, object)
    if not len(boxes):
        return found
    inside, breaks, latitudes = _breaks(boxes, poles)
    segments, sound = _begun(crs, boxes, breaks, latitudes, strict)
    done, continuous = _halved(crs, boxes, segments[sound[segments.owner]], strict)
    sound &= continuous
    done = done[np.lexsort((done.span[:, 0], done.owner))]
    for number, part in zip(*_by_owner(done), strict=True):
        if sound[number]:
            found[number] = _closed(done[part], inside[number])
    whole = ~shapely.is_missing(found)
    found[whole] = on_earth(found[whole])
    return found


def _breaks(boxes: Floats, poles: Poles) -> tuple[list[list[float]], list[Floats], list[Floats]]:
    """Latitudes of the poles inside each box, where its ring is broken at first, and the latitudes of poles there."""
    regular = np.linspace(0, 4, 4 * SEGMENTS + 1)
    inside: list[list[float]] = [[] for _ in boxes]
    breaks, latitudes = [regular] * len(boxes), [np.zeros(len(regular))] * len(boxes)
    left, bottom, right, top = boxes.T
    near = NEAR * np.minimum(right - left, top - bottom)
    for x, y, latitude in poles:
        met = (x >= left - near) & (x <= right + near) & (y >= bottom - near) & (y <= top + near)
        for number in np.flatnonzero(met):
            place = _on_ring(boxes[number], x, y, near[number])
            if place is None:
                inside[number].append(latitude)
                continue
            here = {0.0, 4.0} if place % 4 == 0 else {place}
            kept = np.abs(breaks[number][:, None] - list(here)).min(axis=1) > 1e-9
            joined = np.append(breaks[number][kept], list(here))
            there = np.append(latitudes[number][kept], [latitude] * len(here))
            order = np.argsort(joined)
            breaks[number], latitudes[number] = joined[order], there[order]
    return inside, breaks, latitudes


def _on_ring(box: Floats, x: float, y: float, near: float) -> float | None:
    """Where a point of the box lies on its ring, as `Segments.span` counts; None for one that lies inside."""
    left, bottom, right, top = box.tolist()
    along = np.clip([y - bottom, right - x, top - y, x - left], 0, None)
    length = np.array([top - bottom, right - left] * 2)
    away = np.abs([right - x, top - y, x - left, y - bottom])
    if away.min() > near:
        return None
    edge = int(away.argmin())
    share = min(float(along[edge] / length[edge]), 1.0)
    # A corner is one place on both of its edges.
    return edge + (round(share) if min(share, 1 - share) * length[edge] <= near else share)


def _places(boxes: Floats, owner: Numbers, place: Floats) -> Floats:
    """Points of the rings of some boxes, N 2, in map coordinates."""
    corners = boxes[:, [[2, 1], [2, 3], [0, 3], [0, 1], [2, 1]]][owner]
    edge = np.minimum(place.astype(int), 3)
    row = np.arange(len(owner))
    share = (place - edge)[:, None]
    return np.asarray(corners[row, edge] * (1 - share) + corners[row, edge + 1] * share)


def _begun(
    crs: CRS, boxes: Floats, breaks: list[Floats], latitudes: list[Floats], strict: bool
) -> tuple[Segments, Flags]:
    """The first segments of each ring, and which of the boxes may have an outline."""
    owner = np.repeat(np.arange(len(boxes)), [len(places) for places in breaks])
    place, latitude = np.concatenate(breaks), np.concatenate(latitudes)
    polar = latitude != 0
    degrees = _degrees(crs, boxes, owner, place, strict)
    degrees[polar] = np.stack([np.zeros(polar.sum()), latitude[polar]], axis=-1)
    same = owner[1:] == owner[:-1]
    pairs = [np.stack([values[:-1], values[1:]], axis=1)[same] for values in (place, degrees, polar)]
    segments = Segments(owner[1:][same], *pairs)
    off = np.bincount(owner, ~np.isfinite(degrees).all(axis=1), len(boxes)) > 0
    on_edges = np.bincount(owner[polar & (place < 4)], minlength=len(boxes))
    return segments, ~off & (on_edges <= 1)


def _degrees(crs: CRS, boxes: Floats, owner: Numbers, place: Floats, strict: bool) -> Floats:
    """Longitudes and latitudes of points on rings, N 2; NaN for those that lie nowhere on Earth."""
    sizes = np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])[owner]
    return to_degrees(crs, _places(boxes, owner, place)[:, None], strict=strict, sizes=sizes)[:, 0]


def _halved(crs: CRS, boxes: Floats, segments: Segments, strict: bool) -> tuple[Segments, Flags]:
    """Segments so short that they are straight, and the boxes all of whose segments are that."""
    sound = np.ones(len(boxes), bool)
    allowed = MAX_ERROR * _areas(segments, len(boxes)) / (4 * SEGMENTS)
    done, left = [], segments
    for _ in range(MAX_HALVINGS):
        if not len(left.owner):
            break
        middle = left.span.mean(axis=1)
        degrees = _degrees(crs, boxes, left.owner, middle, strict)
        sound[left.owner[~np.isfinite(degrees).all(axis=1)]] = False
        curved, jumping = _bends(left, degrees, allowed)
        half = Segments(
            np.repeat(left.owner, 2),
            np.stack([left.span[:, 0], middle, middle, left.span[:, 1]], axis=-1).reshape(-1, 2),
            np.stack([left.ends[:, 0], degrees, degrees, left.ends[:, 1]], axis=1).reshape(-1, 2, 2),
            np.stack([left.polar[:, 0], 0 * middle, 0 * middle, left.polar[:, 1]], axis=-1).reshape(-1, 2) > 0,
        )
        many = np.bincount(left.owner[curved | jumping], minlength=len(boxes)) > MAX_CURVED
        sound[left.owner[jumping & many[left.owner]]] = False
        again = np.repeat((curved | jumping) & ~many[left.owner] & sound[left.owner], 2)
        done.append(half[~again])
        left, torn = half[again], np.repeat(jumping, 2)[again]
    if len(left.owner):
        sound[left.owner[torn]] = False
        done.append(left)
    empty = segments[np.zeros(len(segments.owner), bool)]
    fields = zip(*((part.owner, part.span, part.ends, part.polar) for part in [empty, *done]), strict=True)
    return Segments(*(np.concatenate(field) for field in fields)), sound


def _areas(segments: Segments, count: int) -> Floats:
    """Roughly the area of each box in square radians: that of its ring in space, seen from straight above."""
    longitude, latitude = np.moveaxis(np.radians(segments.ends), -1, 0)
    flat = np.cos(latitude)
    space = np.stack([flat * np.cos(longitude), flat * np.sin(longitude), np.sin(latitude)], axis=-1)
    first = np.zeros((count, 3))
    first[segments.owner[::-1]] = space[::-1, 0]
    space -= first[segments.owner][:, None]
    crosses = np.cross(space[:, 0], space[:, 1])
    sums = [np.bincount(segments.owner, crosses[:, axis], count) for axis in range(3)]
    return np.linalg.norm(sums, axis=0) / 2


def _turned(degrees: Floats) -> Floats:
    """Differences of longitudes the short way around."""
    with np.errstate(invalid="ignore"):
        return degrees - TURN * np.rint(degrees / TURN)


def _steps(segments: Segments, longitudes: Floats) -> tuple[Floats, Floats]:
    """Steps in longitude from the start of each segment to a point of it, and from there to its end."""
    first, last = segments.ends[:, 0, 0], segments.ends[:, 1, 0]
    first = np.where(segments.polar[:, 0], last, first)
    last = np.where(segments.polar[:, 1], first, last)
    return _turned(longitudes - first), _turned(last - longitudes)


def _bends(segments: Segments, middles: Floats, allowed: Floats) -> tuple[Flags, Flags]:
    """Which segments are too far from their curve, and which of them jump from one longitude to another."""
    before, after = _steps(segments, middles[:, 0])
    south, north = segments.ends[:, 0, 1], segments.ends[:, 1, 1]
    narrowing = np.cos(np.radians(np.stack([south, middles[:, 1], north]))).max(axis=0)
    off = np.hypot((before - after) / 2 * narrowing, middles[:, 1] - (south + north) / 2)
    along = np.hypot((before + after) * narrowing, north - south)
    # Between a chord and a flat curve lie two thirds of their rectangle.
    strips = np.radians(off) * np.radians(along) * 2 / 3
    jumping = np.maximum(np.abs(before), np.abs(after)) > MAX_STEP
    return strips > allowed[segments.owner], jumping


def _by_owner(segments: Segments) -> tuple[Numbers, list[slice]]:
    owners, starts = np.unique(segments.owner, return_index=True)
    stops = [*starts[1:], len(segments.owner)]
    return owners, [slice(int(start), int(stop)) for start, stop in zip(starts, stops, strict=True)]


def _closed(ring: Segments, inside: list[float]) -> shapely.Geometry | None:
    """The outline of one box in degrees, whose longitudes may be any; None where it cannot be one."""
    polar = np.flatnonzero(ring.polar[:, 0])
    if len(polar) + len(inside) > 1:
        return None
    # A ring through a pole begins and ends there: it is closed along the line of the pole.
    ring = ring[np.roll(np.arange(len(ring.owner)), -int(polar[0]) if len(polar) else 0)]
    first, last = ring.ends[:, 0, 0], ring.ends[:, 1, 0]
    first = np.where(ring.polar[:, 0], last, first)
    last = np.where(ring.polar[:, 1], first, last)
    begin = np.rint(first[0] * EXACT) / EXACT
    longitudes = begin + np.append(0, np.cumsum(_turned(last - first)))
    path = np.stack([longitudes, np.append(ring.ends[:, 0, 1], ring.ends[-1, 1, 1])], axis=-1)
    around = path[-1, 0] - begin
    if len(polar):
        return shapely.polygons(path)
    if abs(around - TURN * np.rint(around / TURN)) > 1e-3 or abs(np.rint(around / TURN)) != len(inside):
        return None
    path[-1] = begin + TURN * np.rint(around / TURN), path[0, 1]
    for latitude in inside:
        path = np.append(path, [(path[-1, 0], latitude), (begin, latitude)], axis=0)
    return shapely.polygons(path)
