"""Footprints: where an acquisition lies on Earth, repaired, and on a plane where areas compare.

Coordinates are longitude and latitude in degrees (EPSG:4326).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import antimeridian
import numpy as np
import numpy.typing as npt
import shapely

from hisem.archive.globe import TURN, polygonal, unwrapped

Floats = npt.NDArray[np.float64]
Geometries = npt.NDArray[np.object_]


MAX_GIVEN = 10_000
"""Points of a footprint; one with more is refused."""
MAX_POINTS = 256
"""Points of a footprint as it is compared with others; one with more is simplified."""
MAX_VALID = 1000
"""The same of one that needs no repairs. To compare two takes the square of it, a few seconds."""
MIN_RING = 4
"""Points of a triangle, whose last is its first."""
STRAIGHT = 0.002
"""Share of its extent by which a footprint that is simplified may be off."""
SHARES = (STRAIGHT, 0.004, 0.008, 0.016, 0.02)
"""The same, tried one after the other until few points are left."""
MAX_CROSSINGS = 100
"""Pairs of edges that meet away from their ends, and steps over the antimeridian. Repairs take the square of it."""


def repaired(geometry: shapely.Geometry) -> shapely.Geometry:
    """The ground that `geometry` covers, as a valid polygon or multipolygon between -180 and 180 degrees.

    A ring with an edge longer than half the way around the Earth is taken to cross the antimeridian, as
    one that runs beyond 180 degrees is, and is split there. Heights are dropped. Of more than MAX_POINTS points
    those are dropped without which it is off by less than STRAIGHT of its largest part's extent, or the least of
    SHARES that leaves few enough.

    Raises `ValueError` saying what is wrong: no area, coordinates that are not degrees, more points or crossings
    than are compared in bounded time.
    """
    geometry = shapely.force_2d(geometry)
    _require_degrees(geometry)
    polygons = _simple(shapely.get_parts(polygonal(geometry)))
    split = [_split(part) if _crosses(part) else part for part in polygons]
    if len(split) == 1 and split[0].geom_type == "Polygon" and split[0].is_valid and not split[0].is_empty:
        return split[0]  # as nearly all are
    _require_few_crossings(split)
    valid = np.array(split, dtype=object)
    broken = ~shapely.is_valid(valid)
    valid[broken] = shapely.make_valid(valid[broken])
    merged = polygonal(shapely.union_all(valid))
    if merged.is_empty:
        raise ValueError(f"a {geometry.geom_type} without area")
    return merged


def equal_area(footprints: Sequence[shapely.Geometry]) -> Geometries:
    """Footprints on Lambert's cylindrical equal-area projection of the unit sphere; areas are steradians."""

    def projected(degrees: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        longitude, latitude = np.radians(degrees).T
        return np.column_stack([longitude, np.sin(latitude)])

    plane = shapely.transform(np.array(footprints, dtype=object), projected)
    # Edges stay straight, so that one may come to lie across a vertex that it passed closely.
    crossed = ~shapely.is_valid(plane)
    plane[crossed] = shapely.buffer(plane[crossed], 0)
    return plane


def covered_fractions(footprint: shapely.Geometry, others: Geometries) -> npt.NDArray[np.float64]:
    """Which fraction of `footprint`, in [0, 1], each of `others` covers; all from `equal_area`."""
    shared = shapely.area(shapely.intersection(footprint, others))
    return np.minimum(shared / footprint.area, 1.0) if footprint.area > 0 else np.zeros(len(others))


def _require_degrees(geometry: shapely.Geometry) -> None:
    longitude, latitude = shapely.get_coordinates(geometry).T
    # Archives also count longitudes from 0 to 360; metres of a projection lie far beyond. NaN fails too.
    if not ((np.abs(longitude) <= 360).all() and (np.abs(latitude) <= 90).all()):
        raise ValueError(
            f"coordinates from {longitude.min():.6g}, {latitude.min():.6g} to {longitude.max():.6g}, "
            f"{latitude.max():.6g} are not longitudes and latitudes in degrees"
        )


def _simple(polygons: Geometries) -> Geometries:
    """Return polygons with MAX_POINTS points together, or valid ones with MAX_VALID, at most."""
    given = int(shapely.get_num_coordinates(polygons).sum())
    if given <= MAX_POINTS:
        return polygons
    if given > MAX_GIVEN:
        raise ValueError(f"{given} points, more than {MAX_GIVEN}; simplify it")
    parts = [_lines(polygon) for polygon in polygons if not polygon.is_empty]
    # A part's own, since parts on either side of the antimeridian are the whole Earth apart.
    extent = max(float(np.ptp(rings[0], axis=0).max()) for rings in parts)
    for share in SHARES:
        found = [plain for rings in parts if (plain := _plain(rings, share * extent)) is not None]
        left = sum(int(shapely.get_num_coordinates(one)) for one in found)
        if left <= MAX_POINTS:
            return np.array(found, dtype=object)
        for valid in (np.array(found, dtype=object), np.array([_polygon(rings) for rings in parts], dtype=object)):
            # Only what is not valid takes costly repairs.
            if shapely.get_num_coordinates(valid).sum() <= MAX_VALID and shapely.is_valid(valid).all():
                return valid
    raise ValueError(f"{given} points, and {left} of them once simplified, more than {MAX_POINTS}; simplify it")


def _lines(polygon: shapely.Polygon) -> list[Floats]:
    """Return the rings of a polygon, V 2 each, without jumps over the antimeridian; one around a pole has no end."""
    rings = [shapely.get_coordinates(ring) for ring in shapely.get_rings(polygon)]
    found = [_unwrapped(ring) for ring in rings]
    if found[0] is rings[0] or not _closed(found[0]):
        return found
    middle = found[0][:, 0].min() + np.ptp(found[0][:, 0]) / 2
    for hole in found[1:]:  # to where its shell went
        hole[:, 0] += TURN * np.rint((middle - hole[:, 0].min() - np.ptp(hole[:, 0]) / 2) / TURN)
    return found


def _unwrapped(ring: Floats) -> Floats:
    """Return a ring whose longitudes have no jumps; itself where it has none or goes around the Earth again."""
    steps = np.abs(np.diff(ring[:, 0]))
    if not ((steps > TURN / 2) & (steps < TURN)).any():
        return ring
    found = np.column_stack([unwrapped(ring[:, 0]), ring[:, 1]])
    return found if np.ptp(found[:, 0]) <= (TURN if _closed(found) else 1.5 * TURN) else ring


def _closed(line: Floats) -> bool:
    return bool(abs(line[0, 0] - line[-1, 0]) < TURN / 2)


def _plain(rings: Sequence[Floats], tolerance: float) -> shapely.Polygon | None:
    """Return a polygon without the points within `tolerance` of its other edges; None where it is smaller than that."""
    # Line by line: of a polygon the result would be repaired, which takes hours where it crosses itself.
    plain = [_plain_line(ring, tolerance) for ring in rings]
    if len(plain[0]) < MIN_RING:
        return None
    return _polygon([plain[0], *(ring for ring in plain[1:] if len(ring) >= MIN_RING)])


def _plain_line(line: Floats, tolerance: float) -> Floats:
    # Around a pole an edge longer than half a turn would be taken for one the other way around.
    turns = np.flatnonzero(np.diff(np.floor(line[:, 0] / 90))) + 1
    ends = np.unique([0, *([] if _closed(line) else turns), len(line) - 1])
    pieces = [shapely.LineString(line[start : end + 1]) for start, end in pairwise(ends)]
    plain = [shapely.get_coordinates(one) for one in shapely.simplify(pieces, tolerance, preserve_topology=False)]
    return np.concatenate([plain[0][:1], *(one[1:] for one in plain)])


def _polygon(rings: Sequence[Floats]) -> shapely.Polygon:
    """Return the polygon of rings; what runs around a pole is between -180 and 180 degrees again."""
    shell, *holes = rings
    if not _closed(shell):
        shell = np.column_stack([np.remainder(shell[:, 0] + TURN / 2, TURN) - TURN / 2, shell[:, 1]])
        shell[-1] = shell[0]
    return shapely.Polygon(shell, [hole for hole in holes if _closed(hole)])


def _require_few_crossings(polygons: Sequence[shapely.Geometry]) -> None:
    """Raise `ValueError` where repairs would have more to do than they do in bounded time."""
    lines = [shapely.get_coordinates(ring) for part in polygons for ring in shapely.get_rings(part)]
    starts, ends = (
        np.concatenate([line[piece] for line in lines] or [np.empty((0, 2))])
        for piece in (slice(None, -1), slice(1, None))
    )
    found = sum(_crossings(starts, ends, number) for number in range(len(starts)))
    if found > MAX_CROSSINGS:
        raise ValueError(f"edges that cross each other {found} times, more than {MAX_CROSSINGS}")


def _crossings(starts: Floats, ends: Floats, number: int) -> int:
    """Return how many later edges one edge meets, neighbors aside."""
    start, end = starts[number], ends[number]
    others, their_ends = starts[number + 1 :], ends[number + 1 :]

    def side(a: Floats, b: Floats, c: Floats) -> Floats:
        u, v = b - a, c - a
        return np.sign(u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0])

    apart = (np.maximum(others, their_ends) < np.minimum(start, end)) | (
        np.minimum(others, their_ends) > np.maximum(start, end)
    )
    across = side(start, end, others) * side(start, end, their_ends) <= 0
    across &= side(others, their_ends, start) * side(others, their_ends, end) <= 0
    joined = [(a == b).all(axis=-1) for a in (start, end) for b in (others, their_ends)]
    return int((across & ~apart.any(axis=-1) & ~np.logical_or.reduce(joined)).sum())


def _crosses(polygon: shapely.Polygon) -> bool:
    """Whether a polygon runs over the antimeridian, whichever way its longitudes say so."""
    west, _, east, _ = polygon.bounds
    if west < -180 or east > 180:
        return True
    rings = (polygon.exterior, *polygon.interiors)
    steps = (np.abs(np.diff(shapely.get_coordinates(ring)[:, 0])) for ring in rings)
    # A step of 360 runs along a parallel of the whole Earth instead.
    return any(((step > 180) & (step < 360)).any() for step in steps)


def _split(polygon: shapely.Polygon) -> shapely.Geometry:
    """The parts of a polygon on either side of the antimeridian; its edges are straight in degrees."""
    lines = [shapely.get_coordinates(ring)[:, 0] for ring in shapely.get_rings(polygon)]
    passed = sum(int((np.diff(np.floor((line + 180) / 360)) != 0).sum()) for line in lines)
    passed += sum(int((np.abs(np.diff(line)) > 180).sum()) for line in lines)
    if passed > MAX_CROSSINGS:
        raise ValueError(f"edges that cross the antimeridian {passed} times, more than {MAX_CROSSINGS}")
    # A hole that lies beyond 180 degrees as a whole is not found there.
    shifts = [-TURN * np.floor((hole.bounds[0] + TURN / 2) / TURN) for hole in polygon.interiors]
    whole = [np.ptp(np.floor((line + 180) / 360)) == 0 for line in lines[1:]]
    holes = [
        shapely.get_coordinates(hole) + np.array([shift if inside else 0.0, 0.0])
        for hole, shift, inside in zip(polygon.interiors, shifts, whole, strict=True)
    ]
    polygon = shapely.Polygon(polygon.exterior, holes)
    try:
        return antimeridian.fix_polygon(polygon, fix_winding=True, great_circle=False)
    except (LookupError, TypeError, AssertionError) as error:
        raise ValueError(f"a polygon that cannot be split at the antimeridian ({error})") from error
