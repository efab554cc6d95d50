"""Footprints: where an acquisition lies on Earth, repaired, and on a plane where areas compare.

Coordinates are longitude and latitude in degrees (EPSG:4326).
"""

from __future__ import annotations

from collections.abc import Sequence

import antimeridian
import numpy as np
import numpy.typing as npt
import shapely

Geometries = npt.NDArray[np.object_]


def repaired(geometry: shapely.Geometry) -> shapely.Geometry:
    """The ground that `geometry` covers, as a valid polygon or multipolygon between -180 and 180 degrees.

    A ring with an edge longer than half the way around the Earth is taken to cross the antimeridian, as
    one that runs beyond 180 degrees is, and is split there. Heights are dropped.

    Raises `ValueError` saying what is wrong: no area, or coordinates that are not degrees.
    """
    geometry = shapely.force_2d(geometry)
    _require_degrees(geometry)
    polygons = [part for part in shapely.get_parts(geometry) if part.geom_type == "Polygon"]
    split = [_split(part) if _crosses(part) else part for part in polygons]
    if len(split) == 1 and split[0].geom_type == "Polygon" and split[0].is_valid and not split[0].is_empty:
        return split[0]  # as nearly all are
    merged = _polygonal(shapely.union_all(shapely.make_valid(np.array(split, dtype=object))))
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
    return antimeridian.fix_polygon(polygon, fix_winding=True, great_circle=False)


def _polygonal(geometry: shapely.Geometry) -> shapely.Geometry:
    """The polygons of `geometry`, without the lines and points that repairs leave."""
    parts = shapely.get_parts(geometry)
    polygons = parts[shapely.get_type_id(parts) == shapely.GeometryType.POLYGON]
    return polygons[0] if len(polygons) == 1 else shapely.multipolygons(polygons)
