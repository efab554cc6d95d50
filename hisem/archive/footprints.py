"""Footprints: where an acquisition lies on Earth, repaired, and on a plane where areas compare.

Coordinates are longitude and latitude in degrees (EPSG:4326).
"""

from __future__ import annotations

from collections.abc import Sequence

import antimeridian
import numpy as np
import numpy.typing as npt
import shapely

from hisem.archive.globe import polygonal

Floats = npt.NDArray[np.float64]
Geometries = npt.NDArray[np.object_]


MAX_GIVEN = 10_000
"""Points of a footprint; one with more is refused."""
MAX_POINTS = 256
"""Points of a footprint as it is compared with others; one with more is simplified."""
MIN_RING = 4
"""Points of a triangle, whose last is its first."""
STRAIGHT = 0.002
"""Share of its extent by which a footprint that is simplified may be off."""
MAX_CROSSINGS = 100
"""Pairs of edges that meet away from their ends, and steps over the antimeridian. Repairs take the square of it."""


def repaired(geometry: shapely.Geometry) -> shapely.Geometry:
    """The ground that `geometry` covers, as a valid polygon or multipolygon between -180 and 180 degrees.

    A ring with an edge longer than half the way around the Earth is taken to cross the antimeridian, as
    one that runs beyond 180 degrees is, and is split there. Heights are dropped. Of more than MAX_POINTS points
    those are dropped without which it is off by less than STRAIGHT of its extent.

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
    merged = polygonal(shapely.union_all(shapely.make_valid(np.array(split, dtype=object))))
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
    """The polygons with MAX_POINTS points together at most."""
    given = int(shapely.get_num_coordinates(polygons).sum())
    if given <= MAX_POINTS:
        return polygons
    if given > MAX_GIVEN:
        raise ValueError(f"{given} points, more than {MAX_GIVEN}; simplify it")
    west, south, east, north = shapely.total_bounds(polygons)
    tolerance = STRAIGHT * max(east - west, north - south)
    found = [plain for polygon in polygons if (plain := _plain(polygon, tolerance)) is not None]
    parts = np.array(found, dtype=object)
    if (left := int(shapely.get_num_coordinates(parts).sum())) > MAX_POINTS:
        raise ValueError(f"{given} points, and {left} of them once simplified, more than {MAX_POINTS}; simplify it")
    return parts


def _plain(polygon: shapely.Polygon, tolerance: float) -> shapely.Polygon | None:
    """A polygon without the points within `tolerance` of its other edges; None where it is smaller than that."""
    # Line by line: of a polygon the result would be repaired, which takes hours where it crosses itself.
    lines = [shapely.LineString(shapely.get_coordinates(ring)) for ring in shapely.get_rings(polygon)]
    plain = [shapely.get_coordinates(line) for line in shapely.simplify(lines, tolerance, preserve_topology=False)]
    if len(plain[0]) < MIN_RING:
        return None
    return shapely.Polygon(plain[0], [ring for ring in plain[1:] if len(ring) >= MIN_RING])


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
    """How many later edges one edge meets, neighbors aside."""
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
    try:
        return antimeridian.fix_polygon(polygon, fix_winding=True, great_circle=False)
    except (LookupError, TypeError, AssertionError) as error:
        raise ValueError(f"a polygon that cannot be split at the antimeridian ({error})") from error
