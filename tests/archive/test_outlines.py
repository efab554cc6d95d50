"""Footprints all over the Earth, against areas and places computed without any projection of outlines."""

from __future__ import annotations

import math

import numpy as np
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import transform

from hisem.archive.grid import Grid, Window, windows

SQUARED_ECCENTRICITY = 6.694379990141e-3
RADIUS = 6_378_137.0

PLACES = [
    (0.0, 0.0),
    (11.5, 48.0),
    (-70.2, -33.4),
    (179.9, 10.0),
    (180.0, -17.0),
    (-179.999, 65.0),
    (-180.0, 71.3),
    (179.5, -84.0),
    (45.0, 89.3),
    (-45.0, 90.0),
    (10.0, -90.0),
    (123.0, -89.99),
]
"""Longitude and latitude of centers."""


def area_of(footprint: shapely.Geometry) -> float:
    """Square meters on the ellipsoid; edges are straight in degrees, which leaves an exact integral over latitude."""
    e = math.sqrt(SQUARED_ECCENTRICITY)

    def height(points: np.ndarray) -> np.ndarray:
        longitude, sine = np.radians(points[:, 0]), np.sin(np.radians(points[:, 1]))
        q = (1 - e**2) * (sine / (1 - (e * sine) ** 2) - np.log((1 - e * sine) / (1 + e * sine)) / (2 * e))
        return np.column_stack([longitude, q / 2]) * RADIUS

    # Lambert's cylinder keeps areas; edges are densified, as straight ones in degrees are curved on it.
    return shapely.transform(shapely.segmentize(footprint, 0.2), height).area


def true_area(grid: Grid, window: Window, cells: int = 40) -> float:
    """Square meters of a window: the sum over small cells of the cross product of their sides on the ellipsoid.

    Points are placed in space, so that neither longitudes nor poles matter.
    """
    left, bottom, right, top = grid.bounds_of(window)
    x, y = np.meshgrid(np.linspace(left, right, cells + 1), np.linspace(top, bottom, cells + 1))
    longitude, latitude = np.radians(transform(grid.crs, "EPSG:4326", x.ravel(), y.ravel()))
    n = RADIUS / np.sqrt(1 - SQUARED_ECCENTRICITY * np.sin(latitude) ** 2)
    flat = n * np.cos(latitude)
    space = [flat * np.cos(longitude), flat * np.sin(longitude), n * (1 - SQUARED_ECCENTRICITY) * np.sin(latitude)]
    points = np.stack(space, axis=-1).reshape(cells + 1, cells + 1, 3)
    down, across = points[1:, 1:] - points[:-1, :-1], points[1:, :-1] - points[:-1, 1:]
    return float(np.linalg.norm(np.cross(down, across), axis=-1).sum() / 2)


def near_zone(longitude: float, latitude: float) -> int:
    """The EPSG code of the UTM zone."""
    zone = int((longitude + 180) // 6) % 60 + 1
    return (32600 if latitude >= 0 else 32700) + zone


def systems(longitude: float, latitude: float) -> list[str]:
    """CRS that have a place at this longitude and latitude."""
    found = ["EPSG:4326", "EPSG:4269", "EPSG:4807", "OGC:CRS84"]
    found += ["+proj=longlat +datum=WGS84 +pm=180"]
    if latitude > 0 or longitude > 90:
        found += ["+proj=laea +lat_0=52 +lon_0=170"]
    if abs(latitude) < 85:
        neighbor = near_zone((longitude + 186) % 360 - 180, latitude)
        found += ["EPSG:3857", "EPSG:3395", "+proj=merc +lon_0=150", "EPSG:6933", "EPSG:4087"]
        found += [f"EPSG:{near_zone(longitude, latitude)}", f"EPSG:{neighbor}"]
        found += [f"+proj=sinu +lon_0={longitude - 20}"]
    if latitude > 40:
        found += ["EPSG:3413", "EPSG:3995", "EPSG:6931", "+proj=stere +lat_0=90 +lon_0=17"]
    if latitude < -40:
        found += ["EPSG:3031", "EPSG:6932", "EPSG:3976"]
    return found


def grid_around(name: str, longitude: float, latitude: float, size: float, shape: tuple[int, int]) -> Grid:
    """A grid with that place in its middle and about `size` meters between its edges."""
    crs = CRS.from_string(name) if name.startswith(("EPSG", "OGC")) else CRS.from_proj4(name)
    (x,), (y,) = transform("EPSG:4326", crs, [longitude], [latitude])
    height, width = shape
    if crs.is_geographic:
        unit = math.degrees(1) / math.degrees(crs.units_factor[1])
        y_size = size / 111_000 * math.radians(1) * unit / height
        x_size = min(y_size * height / max(math.cos(math.radians(latitude)), 1e-3), 0.9 * 2 * math.pi * unit) / width
        # What passes a pole is no place in degrees.
        half = y_size * height / 2
        y = max(min(y, math.pi / 2 * unit - half), half - math.pi / 2 * unit)
    else:
        x_size, y_size = size / width, size / height
    return Grid(height, width, Affine(x_size, 0, x - x_size * width / 2, 0, -y_size, y + y_size * height / 2), crs)


def require_sound(grid: Grid, tiles: list[Window], least: float = 0.99) -> None:
    """Fail unless each footprint is what the module says of it."""
    found = shapely.from_wkb(grid.footprints(tiles))
    for tile, footprint in zip(tiles, found, strict=True):
        assert footprint is not None
        assert footprint.is_valid, shapely.is_valid_reason(footprint)
        assert footprint.geom_type in ("Polygon", "MultiPolygon")
        west, south, east, north = footprint.bounds
        assert (west, south) >= (-180, -90)
        assert south >= -90
        assert east <= 180
        assert north <= 90
        left, bottom, right, top = grid.bounds_of(tile)
        longitude, latitude = transform(grid.crs, "EPSG:4326", [(left + right) / 2], [(bottom + top) / 2])
        center = (longitude[0] + 180) % 360 - 180, latitude[0]
        reach = 1e-6 * math.sqrt(footprint.area)
        sides = [center, (center[0] + 360, center[1]), (center[0] - 360, center[1])]
        assert min(footprint.distance(shapely.Point(side)) for side in sides) <= reach
        wanted = true_area(grid, tile)
        assert area_of(footprint) == pytest.approx(wanted, rel=1 - least), (tile, footprint.wkt[:300])


@pytest.mark.parametrize("size", [0.5, 2_560.0, 100_000.0, 2_000_000.0])
@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"{place[0]:g},{place[1]:g}")
def test_footprints_are_the_ground_of_their_tiles_everywhere(place: tuple[float, float], size: float) -> None:
    longitude, latitude = place
    rng = np.random.default_rng(abs(hash((place, size))) % 2**32)
    for name in systems(longitude, latitude):
        if size > 1e6 and (name.startswith("EPSG:32") or "sinu" in name):
            continue  # such maps do not reach so far, or their edge lies within
        for shape in ((64, 64), (16, 240)):
            shift = rng.uniform(-0.3, 0.3, 2) * size / 111_000
            there = longitude + shift[0], max(min(latitude + shift[1], 90), -90)
            for center in (place, there):
                grid = grid_around(name, *center, size, shape)
                require_sound(grid, [grid.extent, *windows(*shape, 32)[:: 3 if size > 1e5 else 1]])
