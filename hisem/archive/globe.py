"""The Earth as a globe: coordinates that repeat around it, poles on maps, and outlines between -180 and 180 degrees.

A longitude and the same plus 360 degrees are one place, but two numbers. In some coordinate reference systems (CRS) so
are two values of x: all geographic ones, and cylindrical ones such as Web Mercator.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import shapely
from rasterio.crs import CRS
from rasterio.env import hasenv
from rasterio.warp import transform

from hisem.archive.gdal import GDAL_ERRORS, gdal_env

WGS84 = CRS.from_epsg(4326)

TURN = 360.0
"""Degrees."""
LARGEST_LONGITUDE = 720.0
"""Degrees; what lies beyond are no longitudes, but metres in most cases."""
MAX_TURNS = 4
"""By which two longitudes of one place may differ."""
ROUNDING = 1e-11
"""Degrees (a micrometer) by which an outline may pass the antimeridian or a pole and still end there."""
SLIVER = 1e-9
"""Share of an outline below which a part of it is a residue of rounding."""
SMALL_HOLE = 0.01
"""Share of an outline below which a hole is a gap between two pieces that were projected one by one."""

Floats = npt.NDArray[np.float64]
Geometries = npt.NDArray[np.object_]


def projected(source: CRS, target: CRS, points: Floats) -> Floats:
    """Return points, N V 2, of `source` in `target`. A row, V 2, with a point that has no place there is NaN."""
    try:
        # Without any, rasterio makes an environment for each call: with credentials of AWS around, a session of boto3.
        with nullcontext() if hasenv() else gdal_env():
            x, y = transform(source, target, points[..., 0].ravel(), points[..., 1].ravel())
    except GDAL_ERRORS:
        # One point outside of a projection's domain fails the whole call.
        if len(points) <= 1:
            return np.full(points.shape, np.nan)
        middle = len(points) // 2
        return np.concatenate([projected(source, target, part) for part in (points[:middle], points[middle:])])
    found = np.stack([x, y], axis=-1).reshape(points.shape)
    found[~np.isfinite(found).all(axis=(1, 2))] = np.nan
    return found


def to_degrees(crs: CRS, points: Floats, *, strict: bool = False, sizes: Floats | None = None) -> Floats:
    """Return longitudes and latitudes of points, N V 2, as `projected` does.

    With `strict`, points that `crs` has for no place on Earth (beyond the edge of a sinusoidal map) count as having
    none; by itself PROJ gives them the longitude of another one. They may be off by a thousandth of `sizes`, one a row;
    without them, of what the row spans.
    """
    degrees = projected(crs, WGS84, points)
    if strict:
        again = projected(WGS84, crs, degrees)
        spans = np.ptp(points, axis=1).max(axis=-1) if sizes is None else sizes
        # Equal-area maps are centimeters off beside a pole, as PROJ finds latitudes from sines.
        allowed = 1e-3 * spans + 1e-6 * np.abs(points).max(axis=(1, 2)) + _meter(crs)
        with np.errstate(invalid="ignore"):
            away = ~(np.abs(again - points).max(axis=(1, 2)) <= allowed)
        degrees[away] = np.nan
    return degrees


def _meter(crs: CRS) -> float:
    """A meter in units of a projected CRS, else 0."""
    return 0.0 if crs.is_geographic else 1 / float(crs.linear_units_factor[1] or 1.0)


@lru_cache(maxsize=1024)
def turn_of(crs: CRS) -> float | None:
    """Return the width of the whole Earth in units of x, or None where places have one x only."""
    if crs.is_geographic:
        return float(2 * np.pi / crs.units_factor[1])
    # Cylindrical: x depends on the longitude alone, evenly, and y on the latitude alone. One of these three stretches
    # does not meet the edge of the map.
    for middle in (0.0, 120.0, 240.0):
        longitudes = np.remainder(middle + np.linspace(-50, 50, 5) + 180, 360) - 180
        places = [np.stack([longitudes, np.full(5, latitude)], axis=-1) for latitude in (0.0, 40.0)]
        low, high = projected(WGS84, crs, np.array(places))
        steps = np.diff(low[:, 0])
        turn = float(steps.mean() * TURN / 25)
        if not np.isfinite(turn) or turn == 0 or not np.isfinite(high).all():
            continue
        close = 1e-6 * abs(turn)
        if np.ptp(steps) > close or np.ptp(low[:, 1]) > close or np.ptp(high[:, 1]) > close:
            continue
        if np.abs(high[:, 0] - low[:, 0]).max() > close:
            continue
        here = projected(crs, WGS84, np.array([[low[2], low[2] + (turn, 0)]]))[0]
        apart = np.remainder(here[1, 0] - here[0, 0] + TURN / 2, TURN) - TURN / 2
        return abs(turn) if abs(apart) < 1e-6 else None
    return None


def turns_between(low: float, high: float, first: float, last: float, turn: float | None) -> list[float]:
    """Return by how much an interval `low` to `high` of x is moved so that it meets `first` to `last`, least first.

    Without `turn` it lies in one place alone, wherever that is.
    """
    if turn is None:
        return [0.0]
    lowest, highest = np.ceil((first - high) / turn), np.floor((last - low) / turn)
    numbers = range(max(int(lowest), -MAX_TURNS), min(int(highest), MAX_TURNS) + 1)
    return sorted((number * turn for number in numbers), key=abs)


def poles_of(crs: CRS) -> list[tuple[float, float, float]]:
    """Return x, y and latitude (90 or -90) of each pole that is one point in `crs`; in cylindrical CRS it is a line."""
    found = []
    for latitude in (90.0, -90.0):
        around = np.array([[[longitude, latitude]] for longitude in (0.0, 90.0, 180.0, -90.0)])
        places = projected(WGS84, crs, around)[:, 0]
        if not np.isfinite(places).all() or np.ptp(places, axis=0).max() > 1e-6 * (1 + np.abs(places).max()):
            continue
        back = projected(crs, WGS84, places[:1, None])[0, 0]
        if abs(back[1] - latitude) < 1e-6:
            x, y = places.mean(axis=0)
            found.append((float(x), float(y), latitude))
    return found


def unwrapped(longitudes: Floats, turn: float = TURN) -> Floats:
    """Return longitudes along lines, N V, without jumps from one side of the antimeridian to the other.

    Of each line the first one stays. Neighbors are taken to be less than half a turn apart.
    """
    with np.errstate(invalid="ignore"):
        turns = np.rint(np.diff(longitudes, axis=-1) / turn)
    return longitudes - turn * np.concatenate([np.zeros((*turns.shape[:-1], 1)), np.cumsum(turns, axis=-1)], axis=-1)


def on_earth(outlines: Geometries) -> Geometries:
    """Return polygons in degrees between -180 and 180, valid; what crosses the antimeridian becomes a multipolygon.

    Their longitudes may be any; their latitudes are cut at the poles. None stands for one without area, or whose
    coordinates are no degrees.
    """
    bounds = shapely.bounds(outlines)
    with np.errstate(invalid="ignore"):
        inside = (bounds >= (-180, -90, -180, -90)).all(axis=1) & (bounds <= (180, 90, 180, 90)).all(axis=1)
        near = np.abs(bounds[:, [0, 2]]).max(axis=1) <= LARGEST_LONGITUDE
        # Most of a grid from 0 to 360 degrees lies between two antimeridians: a shift is all that it needs.
        turns = np.floor((bounds[:, 0] + ROUNDING + 180) / TURN)
        within = (bounds[:, 2] - ROUNDING <= turns * TURN + 180) & (np.abs(bounds[:, [1, 3]]) <= 90).all(axis=1)
    found = outlines.copy()
    found[~inside] = None
    moved = np.flatnonzero(~inside & near & within)
    found[moved] = _shifted(outlines[moved], -TURN * turns[moved])
    for number in np.flatnonzero(~inside & near & ~within):
        found[number] = _split(outlines[number])
    broken = np.flatnonzero(~shapely.is_missing(found) & ~shapely.is_valid(found))
    for number in broken:
        found[number] = polygonal(shapely.make_valid(found[number]))
    found[shapely.is_empty(found)] = None
    return found


def _shifted(outlines: Geometries, by: Floats) -> Geometries:
    """Return outlines with degrees, one value each, added to their longitudes."""
    points, owners = shapely.get_coordinates(outlines, return_index=True)
    points[:, 0] += by[owners]
    return shapely.set_coordinates(outlines, _settled(points))


def _split(outline: shapely.Geometry) -> shapely.Geometry | None:
    """One polygon of `on_earth` that is not there already."""
    if not outline.is_valid:
        outline = shapely.make_valid(outline)
    west, _, east, _ = outline.bounds
    parts = []
    for number in range(int(np.floor((west + ROUNDING + 180) / TURN)), int(np.ceil((east - ROUNDING + 180) / TURN))):
        here = shapely.transform(outline, lambda points, by=number * TURN: _settled(points - (by, 0.0)))
        parts.append(polygonal(shapely.intersection(here, shapely.box(-180, -90, 180, 90))))
    if not parts:
        return None
    area = sum(part.area for part in parts)
    kept = [part for whole in parts for part in shapely.get_parts(whole) if part.area > SLIVER * area]
    return joined(kept)


def joined(pieces: list[shapely.Geometry]) -> shapely.Geometry | None:
    """Return the ground of several polygons, without the gaps that rounding leaves between them."""
    if len(pieces) <= 1:
        return pieces[0] if pieces else None
    whole = polygonal(shapely.union_all(pieces))
    parts = []
    for part in shapely.get_parts(whole):
        holes = [ring for ring in part.interiors if shapely.Polygon(ring).area > SMALL_HOLE * whole.area]
        parts.append(shapely.Polygon(part.exterior, holes))
    parts = [part for part in parts if part.area > SLIVER * whole.area]
    return parts[0] if len(parts) == 1 else shapely.multipolygons(parts)


def polygonal(geometry: shapely.Geometry) -> shapely.Geometry:
    """Return the polygons of `geometry`, without the lines and points that repairs leave."""
    parts = shapely.get_parts(geometry)
    while (deep := shapely.get_type_id(parts) > shapely.GeometryType.POLYGON).any():
        parts = np.concatenate([parts[~deep], shapely.get_parts(parts[deep])])
    polygons = parts[shapely.get_type_id(parts) == shapely.GeometryType.POLYGON]
    return polygons[0] if len(polygons) == 1 else shapely.multipolygons(polygons)


def _settled(points: Floats) -> Floats:
    """Points of which those within ROUNDING of the antimeridian or a pole lie there."""
    for axis, limit in enumerate((180.0, 90.0)):
        side = np.sign(points[:, axis]) * limit
        points[:, axis] = np.where(np.abs(points[:, axis] - side) <= ROUNDING, side, points[:, axis])
    return points
