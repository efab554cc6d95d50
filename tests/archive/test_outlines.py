"""Footprints all over the Earth, against areas and places computed without any projection of outlines."""

from __future__ import annotations

import math

import numpy as np
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import transform

from hisem.archive.globe import WGS84, turn_of, unwrapped
from hisem.archive.grid import Grid, Window, windows
from hisem.archive.outlines import outlines
from hisem.errors import RasterError

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
    """Square meters on the ellipsoid, of an outline whose edges are straight in degrees.

    On Lambert's cylinder areas are those on Earth. Heights on it are counted from the nearer pole, as differences from
    the equator have no digits left for the few meters around a pole.
    """
    pole = 90 if footprint.bounds[1] + footprint.bounds[3] > 0 else -90
    nodes, weights = np.polynomial.legendre.leggauss(24)

    def height(points: np.ndarray) -> np.ndarray:
        away = np.radians(np.abs(pole - points[:, 1]))[:, None]
        angle = away * (nodes + 1) / 2
        strip = np.sin(angle) * (1 - SQUARED_ECCENTRICITY) / (1 - SQUARED_ECCENTRICITY * np.cos(angle) ** 2) ** 2
        heights = (strip * weights).sum(axis=1) * away[:, 0] / 2
        return np.column_stack([np.radians(points[:, 0]), heights]) * RADIUS

    # Edges are densified, as straight ones in degrees are curved on the cylinder.
    return shapely.transform(shapely.segmentize(footprint, 0.2), height).area


def true_area(grid: Grid, window: Window, cells: int = 40) -> float:
    """Square meters of a window: the sum over small cells of the cross product of their sides on the ellipsoid.

    Points are placed in space, so that neither longitudes nor poles matter. NaN where a part of it is off the map.
    """
    left, bottom, right, top = grid.bounds_of(window)
    x, y = np.meshgrid(np.linspace(left, right, cells + 1), np.linspace(top, bottom, cells + 1))
    longitude, latitude = np.radians(transform(grid.crs, "EPSG:4326", x.ravel(), y.ravel()))
    if not (np.abs(latitude) < np.radians(90 + 1e-9)).all():
        return math.nan
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


def require_sound(grid: Grid, tiles: list[Window], exact: bool = True) -> None:
    """Fail unless each footprint is what the module says of it, without its area and center unless they are `exact`."""
    found = shapely.from_wkb(grid.footprints(tiles))
    for tile, footprint in zip(tiles, found, strict=True):
        assert footprint is not None
        assert footprint.is_valid, shapely.is_valid_reason(footprint)
        assert footprint.geom_type in ("Polygon", "MultiPolygon")
        west, south, east, north = footprint.bounds
        assert west >= -180
        assert south >= -90
        assert east <= 180
        assert north <= 90
        if not exact:
            continue
        left, bottom, right, top = grid.bounds_of(tile)
        longitude, latitude = transform(grid.crs, "EPSG:4326", [(left + right) / 2], [(bottom + top) / 2])
        if abs(latitude[0]) <= 90:  # else the center is off the map
            center = (longitude[0] + 180) % 360 - 180, latitude[0]
            sides = [center, (center[0] + 360, center[1]), (center[0] - 360, center[1])]
            assert min(footprint.distance(shapely.Point(side)) for side in sides) <= 1e-11, (tile, center)
        wanted = true_area(grid, tile)
        if not math.isnan(wanted):
            assert area_of(footprint) == pytest.approx(wanted, rel=0.01), (tile, footprint.wkt[:300])


def require_sound_around(longitude: float, latitude: float, size: float, seed: int = 0) -> None:
    """Fail unless footprints are sound in every CRS, of squares and of flat tiles, centered there and near there."""
    rng = np.random.default_rng(seed)
    for name in systems(longitude, latitude):
        if size > 1e6 and (name.startswith("EPSG:32") or "sinu" in name):
            continue  # such maps do not reach so far, or their edge lies within
        # PROJ finds latitudes on equal-area maps from sines, which are exact to a decimeter only beside a pole.
        exact = size > 1 or abs(latitude) < 90 or not ("laea" in name or name in ("EPSG:6931", "EPSG:6932"))
        for shape in ((64, 64), (16, 240)):
            shift = rng.uniform(-0.3, 0.3, 2) * size / 111_000
            near = longitude + shift[0], max(min(latitude + shift[1], 90), -90)
            x, y = near if shape[0] < shape[1] else (longitude, latitude)
            grid = grid_around(name, x, y, size, shape)
            tiles = windows(*shape, 32)
            require_sound(grid, [grid.extent, tiles[0], tiles[len(tiles) // 2]], exact)


@pytest.mark.parametrize(
    ("place", "size"),
    [((11.5, 48.0), 2_560), ((180.0, -17.0), 20_000), ((-179.999, 65.0), 0.5), ((-45.0, 90.0), 2e6)],
)
def test_footprints_are_the_ground_of_their_tiles(place: tuple[float, float], size: float) -> None:
    require_sound_around(*place, size)


@pytest.mark.slow
@pytest.mark.parametrize("size", [0.5, 2_560.0, 100_000.0, 2_000_000.0])
@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"{place[0]:g},{place[1]:g}")
def test_footprints_are_the_ground_of_their_tiles_everywhere(place: tuple[float, float], size: float) -> None:
    require_sound_around(*place, size, seed=1)


@pytest.mark.parametrize(
    "name", ["EPSG:3413", "EPSG:3031", "EPSG:3035", "+proj=laea +lat_0=-60 +lon_0=170", "EPSG:4807"]
)
def test_a_pole_may_lie_anywhere_in_a_tile(name: str) -> None:
    """In its middle, on an edge, at a corner, and a hair on either side of these."""
    crs = CRS.from_string(name) if name.startswith("EPSG") else CRS.from_proj4(name)
    pole = -90.0 if name in ("EPSG:3031", "+proj=laea +lat_0=-60 +lon_0=170") else 90.0
    (x,), (y,) = transform("EPSG:4326", crs, [0.0], [pole])
    pixel = 1.0 if name == "EPSG:4807" else 10_000.0
    near = [0.0, 1e-9, -1e-9, 1e-6, -1e-6, 1e-3, -1e-3]
    sides = [(a, b) for a in (0, 0.5, 1) for b in (0, 0.3, 1)]
    offsets = list(zip(near, near[::3] + near[1::3] + near[2::3], strict=True))
    places = [(0.5, 0.5), *((a + across, b + up) for a, b in sides for across, up in offsets)]
    for right, up in places:
        grid = Grid(32, 32, Affine(pixel, 0, x - right * 32 * pixel, 0, -pixel, y + (1 - up) * 32 * pixel), crs)
        if crs.is_geographic and grid.transform.f > 100:
            continue  # past the pole
        require_sound(grid, [grid.extent])


@pytest.mark.parametrize("name", ["EPSG:3995", "EPSG:3031", "+proj=laea +lat_0=90", "+proj=aeqd +lat_0=-90 +lon_0=20"])
def test_a_picture_of_half_the_earth_holds_the_pole_in_its_middle(name: str) -> None:
    crs = CRS.from_string(name) if name.startswith("EPSG") else CRS.from_proj4(name)
    grid = Grid(64, 64, Affine(3e5, 0, -96e5, 0, -3e5, 96e5), crs)
    require_sound(grid, [grid.extent, *windows(64, 64, 32), Window(16, 16, 32, 32)])


@pytest.mark.parametrize("longitude", [190.0, 179.75, 359.5, -190.0, 540.0])
def test_longitudes_beyond_180_are_those_of_the_other_side(longitude: float) -> None:
    grid = Grid(64, 64, Affine(1 / 64, 0, longitude, 0, -1 / 64, 10), WGS84)
    found = shapely.from_wkb(grid.footprints([grid.extent]))[0]
    usual = (longitude + 180) % 360 - 180
    east = shapely.box(usual, 9, min(usual + 1, 180), 10)
    beyond = shapely.box(-180, 9, usual + 1 - 360, 10) if usual + 1 > 180 else shapely.Polygon()
    assert found.symmetric_difference(shapely.union(east, beyond)).area < 1e-9


def test_a_map_of_the_whole_earth_is_the_whole_earth() -> None:
    half_pixel_over = Grid(181, 361, Affine(1, 0, -0.5, 0, -1, 90.5), WGS84)
    found = shapely.from_wkb(half_pixel_over.footprints([half_pixel_over.extent]))[0]
    assert found.equals(shapely.box(-180, -90, 180, 90))
    edge = 20037508.342789244
    mercator = Grid(100, 100, Affine(edge / 50, 0, -edge, 0, -edge / 50, edge), CRS.from_epsg(3857))
    found = shapely.from_wkb(mercator.footprints([mercator.extent]))[0]
    assert found.bounds == pytest.approx((-180, -85.0511287798, 180, 85.0511287798))
    assert found.area == pytest.approx(360 * 2 * 85.0511287798)


def test_tiles_off_the_earth_have_no_footprint() -> None:
    """A satellite sees a disc: the corners of its square picture show space."""
    crs = CRS.from_proj4("+proj=geos +h=35785831 +lon_0=-75 +sweep=x")
    grid = Grid(512, 512, Affine(22_000, 0, -256 * 22_000, 0, -22_000, 256 * 22_000), crs)
    tiles = windows(512, 512, 64)
    found = shapely.from_wkb(grid.footprints(tiles))
    assert [found[number] for number in (0, 7, 56, 63)] == [None] * 4
    seen = shapely.union_all([one for one in found if one is not None])
    assert seen.is_valid
    # The edge of the disc is where lines of sight touch the ellipsoid: nearly 81.3 degrees from its middle.
    west, south, east, north = seen.bounds
    assert (west, east) == (pytest.approx(-75 - 81.3, abs=1.5), pytest.approx(-75 + 81.3, abs=1.5))
    assert (south, north) == (pytest.approx(-81.1, abs=1.5), pytest.approx(81.1, abs=1.5))


@pytest.mark.parametrize(
    "grid",
    [
        Grid(64, 64, Affine(10, 0, 500_000, 0, -10, 5_000_000), WGS84),  # metres that are called degrees
        Grid(64, 64, Affine(1e7, 0, 0, 0, -1e7, 0), CRS.from_proj4("+proj=geos +h=35785831 +lon_0=0")),
    ],
)
def test_what_lies_nowhere_on_earth_is_refused(grid: Grid) -> None:
    with pytest.raises(RasterError, match="lies on Earth"):
        grid.footprints([Window(40, 40, 24, 24)])


@pytest.mark.parametrize(
    ("name", "turn"),
    [
        ("EPSG:4326", 360.0),
        ("EPSG:4807", 400.0),
        ("EPSG:3857", 2 * math.pi * RADIUS),
        ("EPSG:3395", 2 * math.pi * RADIUS),
        ("+proj=merc +lon_0=150", 2 * math.pi * RADIUS),
        ("EPSG:4087", 2 * math.pi * RADIUS),
        ("EPSG:32601", None),
        ("EPSG:3413", None),
        ("EPSG:3035", None),
        ("+proj=sinu +lon_0=20", None),
        ("+proj=moll", None),
        ("+proj=tmerc +lon_0=9", None),
    ],
)
def test_x_repeats_around_the_earth_in_geographic_and_cylindrical_systems(name: str, turn: float | None) -> None:
    crs = CRS.from_string(name) if name.startswith("EPSG") else CRS.from_proj4(name)
    assert turn_of(crs) == (None if turn is None else pytest.approx(turn))


def test_lines_are_followed_without_jumps() -> None:
    given = np.array([[170.0, 179, -178, -170, 175, 170], [10, 20, 30, 20, 10, 10], [-170, 170, 60, -60, -170, -170]])
    wanted = [[170, 179, 182, 190, 175, 170], [10, 20, 30, 20, 10, 10], [-170, -190, -300, -420, -530, -530]]
    assert unwrapped(given).tolist() == wanted


def test_windows_however_flat_have_few_points() -> None:
    crs = CRS.from_epsg(32633)
    found = outlines(crs, np.array([[500_000, 5e6, 500_001, 5.1e6]]))
    assert shapely.get_num_coordinates(found).max() < 1000
    assert area_of(found[0]) == pytest.approx(1e5, rel=0.01)


@pytest.mark.parametrize("name", ["EPSG:4807", "EPSG:3413", "+proj=longlat +datum=potsdam +pm=paris"])
@pytest.mark.parametrize("size", [0.5, 2_560.0, 2e6])
def test_a_pole_costs_few_projections(monkeypatch: pytest.MonkeyPatch, name: str, size: float) -> None:
    """Also where it is not the pole of the system, whose datum is another one."""
    points = []

    def counted(*args: object) -> object:
        points.append(len(args[2]))  # type: ignore[arg-type]
        return transform(*args)

    monkeypatch.setattr("hisem.archive.globe.transform", counted)
    grid = grid_around(name, 10.0, 90.0, size, (64, 64))
    assert all(grid.footprints(windows(64, 64, 16)))
    assert len(points) < 400
    assert sum(points) < 300_000


def test_credentials_of_aws_open_no_session_for_each_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a session was opened")

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setattr("rasterio.session.AWSSession.__init__", refused)
    assert shapely.is_valid(outlines(CRS.from_epsg(32633), np.array([[500_000, 5e6, 510_000, 5.01e6]]))).all()


def test_what_is_computed_for_a_million_tiles_is_computed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*args: object) -> object:
        calls.append(len(args[2]))  # type: ignore[arg-type]
        return transform(*args)

    monkeypatch.setattr("hisem.archive.globe.transform", counted)
    grid = Grid(10_980, 10_980, Affine(10, 0, 499_980, 0, -10, 5e6), CRS.from_epsg(32633))
    assert len(grid.footprints(windows(10_980, 10_980, 256))) == 1849
    assert len(calls) < 40
    assert max(calls) == 1849 * 20
