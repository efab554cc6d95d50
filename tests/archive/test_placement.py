"""Two dates in any two coordinate reference systems show the same ground, wherever on Earth that is.

The oracle is an image that is known at every longitude and latitude: all rasters are painted from it, and what is read
of them on any grid must be what it is there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import transform

from hisem.archive.blocks import lattice_of
from hisem.archive.grid import Grid, Window
from hisem.archive.index import index_pair
from hisem.archive.options import ReadOptions
from hisem.archive.raster import grid_of, open_raster
from hisem.archive.reader import PairReader
from hisem.archive.shift import RELIABLE
from hisem.archive.tiles import read_tiles
from hisem.errors import RasterError

N = 64
RADIUS = 6_371_000.0
DIRECTIONS = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))[0]

Place = tuple[float, float]


def system(name: str) -> CRS:
    return CRS.from_string(name) if name.startswith("EPSG") else CRS.from_proj4(name)


def in_space(longitude: npt.ArrayLike, latitude: npt.ArrayLike) -> npt.NDArray[np.float64]:
    east, north = np.radians(longitude), np.radians(latitude)
    return np.stack([np.cos(north) * np.cos(east), np.cos(north) * np.sin(east), np.sin(north)])


def image(longitude: npt.ArrayLike, latitude: npt.ArrayLike, center: Place, size: float) -> npt.NDArray[np.float64]:
    """Waves in space, one direction a band, a few of them over `size` meters."""
    offset = in_space(longitude, latitude) - in_space(*center)[:, None, None]
    waves = [128 + 100 * np.sin(3 * RADIUS / size * np.tensordot(way, offset, 1)) for way in DIRECTIONS]
    return np.clip(np.stack(waves), 1, 254)


def degrees(crs: CRS, t: Affine, window: Window) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Longitudes and latitudes of the centers of a window's pixels."""
    x, y = np.meshgrid(np.arange(window.width) + 0.5, np.arange(window.height) + 0.5)
    x, y = t.c + t.a * (x + window.col_off), t.f + t.e * (y + window.row_off)
    found = transform(crs, "EPSG:4326", x.ravel(), y.ravel())
    return tuple(np.reshape(values, (window.height, window.width)) for values in found)  # type: ignore[return-value]


def painted(
    path: Path,
    name: str,
    center: Place,
    size: float,
    turn: int = 0,
    east: float = 0.0,
    south_up: bool = False,
    picture: Callable[..., npt.NDArray[np.float64]] = image,
) -> str:
    """A raster of about `size` meters around a place, `turn` times around the Earth and `east` of its widths off."""
    crs = system(name)
    (x,), (y,) = transform("EPSG:4326", crs, [center[0]], [center[1]])
    x_size = y_size = size / N
    around = 2 * math.pi * 6_378_137
    if crs.is_geographic:
        unit = 1 / crs.units_factor[1]
        around, y_size = 2 * math.pi * unit, size / RADIUS * unit / N
        x_size = min(y_size / max(math.cos(math.radians(center[1])), 1e-9), around / N)
        half = y_size * N / 2
        y = max(min(y, around / 4 - half), half - around / 4)
    t = Affine(x_size, 0, x + turn * around + (east - 0.5) * x_size * N, 0, -y_size, y + y_size * N / 2)
    if south_up:
        t = Affine(t.a, 0, t.c, 0, -t.e, t.f + t.e * N)
    pixels = picture(*degrees(crs, t, Window(0, 0, N, N)), center, size).round().astype(np.uint8)
    with rasterio.open(
        path, "w", driver="GTiff", width=N, height=N, count=3, dtype="uint8", crs=crs, transform=t
    ) as file:
        file.write(pixels)
    return str(path)


def require_same_ground(before: Sequence[str], after: Sequence[str], center: Place, size: float, least: float) -> Grid:
    """Fail unless both dates are the image on the grid, and a share `least` of it is covered by the after date."""
    covered = np.zeros(2)
    with PairReader(before, after, N) as reader:
        grid = reader.grid
        for row, col in product(range(0, grid.height, N), range(0, grid.width, N)):
            window = Window(row, col, min(N, grid.height - row), min(N, grid.width - col))
            pixels = reader.read(window)
            wanted = image(*degrees(grid.crs, grid.transform, window), center, size).transpose(1, 2, 0)
            for number, (found, valid) in enumerate(
                [(pixels.before, pixels.before_mask), (pixels.after, pixels.after_mask)]
            ):
                valid = valid[: window.height, : window.width]
                off = np.abs(found[: window.height, : window.width] - wanted)[valid]
                assert not off.size or np.percentile(off, 99.5) < 6, (before, after)
                covered[number] += valid.sum()
    covered /= grid.height * grid.width
    assert covered[0] > (0.99 if len(before) == 1 else 0.6)
    assert covered[1] >= least, (before, after, covered)
    return grid


GEOGRAPHIC = [
    ("EPSG:4326", 0),
    ("EPSG:4326", 1),
    ("EPSG:4326", -1),
    ("EPSG:4269", 0),
    ("+proj=longlat +datum=WGS84 +pm=paris", 0),
]
OTHER = [("+proj=longlat +datum=WGS84 +pm=180", 0)]
CYLINDRICAL = [("EPSG:3857", 0), ("EPSG:3857", -1), ("EPSG:4087", 0)]
CASES: dict[str, tuple[Place, float, list[tuple[str, int]], float]] = {
    "Fiji": ((180.0, -17.0), 2e4, [*GEOGRAPHIC, *OTHER, *CYLINDRICAL, ("EPSG:32760", 0), ("EPSG:32701", 0)], 0.5),
    "Chukotka": ((179.95, 66.0), 3e4, [*GEOGRAPHIC, ("EPSG:32660", 0), ("EPSG:32601", 0), ("EPSG:3413", 0)], 0.3),
    "Ross Sea": ((-179.9, -75.0), 3e5, [*GEOGRAPHIC, *OTHER, ("EPSG:3031", 0)], 0.3),
    "Pacific": ((180.0, 5.0), 1.5e6, [*GEOGRAPHIC, *OTHER, *CYLINDRICAL, ("+proj=laea +lon_0=170", 0)], 0.5),
    "North Pole": ((30.0, 90.0), 3e5, [("EPSG:4326", 0), ("EPSG:4269", 0), ("EPSG:3413", 0), ("EPSG:3995", 0)], 0.1),
    "beside it": ((30.0, 89.0), 1e6, [("EPSG:4326", 0), *OTHER, ("EPSG:3413", 0), ("EPSG:6931", 0)], 0.1),
    "South Pole": ((-120.0, -89.9), 1e5, [("EPSG:4326", 0), ("EPSG:4269", 0), ("EPSG:3031", 0)], 0.02),
    "Bavaria": ((11.5, 48.0), 2e4, [*GEOGRAPHIC, ("EPSG:32632", 0), ("EPSG:32633", 0), ("EPSG:3035", 0)], 0.5),
}


@pytest.mark.parametrize("case", CASES)
def test_dates_in_any_two_systems_show_the_same_ground(tmp_path: Path, case: str) -> None:
    center, size, names, least = CASES[case]
    files = [
        painted(tmp_path / f"{number}.tif", name, center, size, turn, south_up=number % 3 == 1)
        for number, (name, turn) in enumerate(names)
    ]
    for (number, before), (other, after) in product(enumerate(files), enumerate(files)):
        # Both in turn as the one that is resampled; a few pairs of which each is special in its own way suffice.
        if number == other or (number + other) % 2 or len(files) < 6:
            require_same_ground([before], [after], center, size, least)


@pytest.mark.parametrize("west", ["EPSG:4326", "EPSG:32760", "EPSG:3857"])
@pytest.mark.parametrize("east", ["EPSG:4326", "EPSG:32701", "EPSG:3857"])
def test_a_mosaic_has_both_its_halves(tmp_path: Path, west: str, east: str) -> None:
    """The western half ends at the antimeridian, and the eastern one begins there, by its own longitudes."""
    center, size = (179.999, -17.0), 2e4
    first = painted(tmp_path / "west.tif", west, center, size, east=-0.5)
    turn = 0 if east == "EPSG:32701" else -1
    second = painted(tmp_path / "east.tif", east, center, size, turn, east=0.5)
    for before in ([first, second], [second, first]):
        grid = require_same_ground(before, [first, second], center, size, 0.6)
        assert grid.width < 3 * N
        assert grid.height < 2 * N


@pytest.mark.parametrize("west", [-180.0, 0.0])
def test_a_raster_around_the_whole_earth_covers_a_scene_across_its_end(tmp_path: Path, west: float) -> None:
    """A map from -180 or from 0 degrees on, and a scene that lies across that line."""
    path = tmp_path / "world.tif"
    t = Affine(0.5, 0, west, 0, -0.5, 90)
    center = (west, 20.0)
    pixels = image(*degrees(CRS.from_epsg(4326), t, Window(0, 0, 360, 720)), center, 4e6).round().astype(np.uint8)
    with rasterio.open(
        path, "w", driver="GTiff", width=720, height=360, count=3, dtype="uint8", crs="EPSG:4326", transform=t
    ) as file:
        file.write(pixels)
    for name in ("EPSG:4326", "EPSG:3857", f"+proj=laea +lat_0=20 +lon_0={west + 5}"):
        scene = painted(tmp_path / "scene.tif", name, center, 3e6)
        with PairReader([scene], [str(path)], N) as reader:
            found = reader.read(reader.grid.extent)
            wanted = image(*degrees(reader.grid.crs, reader.grid.transform, reader.grid.extent), center, 4e6)
            off = np.abs(found.after - wanted.transpose(1, 2, 0))[found.after_mask]
            assert found.after_valid > 0.97  # resampling leaves a pixel out on either side of the line
            assert np.percentile(off, 99.5) < 6


def test_masks_hide_the_same_ground_on_both_sides(tmp_path: Path) -> None:
    scene = painted(tmp_path / "scene.tif", "EPSG:32760", (180.0, -17.0), 2e4)
    mask = tmp_path / "mask.tif"
    t = Affine(0.001, 0, -180.2, 0, -0.001, -16.8)
    hidden = np.zeros((1, 400, 400), np.uint8)
    hidden[:, :, 150:250] = 1  # from -180.05 to -179.95 degrees
    with rasterio.open(
        mask, "w", driver="GTiff", width=400, height=400, count=1, dtype="uint8", crs="EPSG:4326", transform=t
    ) as file:
        file.write(hidden)
    with PairReader([scene], [scene], N, before_mask=[str(mask)]) as reader:
        pixels = reader.read(reader.grid.extent)
        longitude, _ = degrees(reader.grid.crs, reader.grid.transform, reader.grid.extent)
    from_line = np.abs((longitude + 360) % 360 - 180)
    assert not pixels.before_mask[from_line < 0.045].any()
    assert pixels.before_mask[from_line > 0.055].all()
    assert pixels.after_mask.all()


def texture(longitude: npt.ArrayLike, latitude: npt.ArrayLike, center: Place, size: float) -> npt.NDArray[np.float64]:
    """Many waves in space of 6 to 20 of the N pixels of `size` meters, in gray."""
    rng = np.random.default_rng(8)
    ways = rng.normal(size=(40, 3))
    ways *= (2 * np.pi * N / size / rng.uniform(6, 20, 40) / np.linalg.norm(ways, axis=1))[:, None]
    offset = RADIUS * (in_space(longitude, latitude) - in_space(*center)[:, None, None])
    waves = np.sin(np.tensordot(ways, offset, 1) + rng.uniform(0, 7, 40)[:, None, None]).sum(axis=0)
    return np.repeat(np.clip(128 + 15 * waves, 1, 254)[None], 3, axis=0)


@pytest.mark.parametrize("name", ["EPSG:4326", "EPSG:32760", "EPSG:3857"])
@pytest.mark.parametrize(
    "other", [("EPSG:4326", 0), ("EPSG:4326", 1), ("EPSG:4269", -1), ("EPSG:32701", 0), ("EPSG:3857", -1)]
)
def test_unchanged_ground_at_180_degrees_is_not_displaced(tmp_path: Path, name: str, other: tuple[str, int]) -> None:
    """Nor is ground more displaced than its picture is: by two pixels to the east, and one to the south."""
    center, size = (180.0, -17.0), 2e4
    step = math.degrees(size / N / RADIUS)

    def displaced(longitude: npt.ArrayLike, latitude: npt.ArrayLike, *rest: Any) -> npt.NDArray[np.float64]:
        east = 2 * step / math.cos(math.radians(center[1]))
        return texture(np.asarray(longitude) - east, np.asarray(latitude) + step, *rest)

    before = painted(tmp_path / "before.tif", name, center, size, picture=texture)
    for picture, (right, down) in ((texture, (0.0, 0.0)), (displaced, (2.0, 1.0))):
        after = painted(tmp_path / "after.tif", other[0], center, size, other[1], picture=picture)
        index = index_pair({"pair_id": "p", "before": [before], "after": [after]}, N, ReadOptions())
        (tile,) = read_tiles(index, N, ReadOptions())
        assert shapely.from_wkb(tile.row["geometry"]).geom_type == "MultiPolygon"
        assert tile.before_valid == 1
        assert tile.after_valid is not None
        assert tile.after_valid > 0.8
        assert tile.shift.confidence > RELIABLE
        assert tile.shift.x == pytest.approx(right, abs=0.25)
        assert tile.shift.y == pytest.approx(down, abs=0.25)


def test_two_systems_have_the_same_percentiles_at_180_degrees(tmp_path: Path) -> None:
    before, after = (
        painted(tmp_path / f"{number}.tif", name, (180.0, -17.0), 2e4)
        for number, name in enumerate(("EPSG:32760", "EPSG:4326"))
    )
    with PairReader([before], [after], N, ReadOptions(scaling="percentiles")) as reader:
        ranges = reader.measure()
        assert ranges is not None
        assert np.abs(ranges[0] - ranges[1]).max() < 8


def test_blocks_of_a_file_on_the_other_side_are_where_its_pixels_are(tmp_path: Path) -> None:
    paths = [painted(tmp_path / f"{turn}.tif", "EPSG:4326", (-170.0, -17.0), 2e4, turn) for turn in (0, 1)]
    with open_raster(paths[0]) as here, open_raster(paths[1]) as there:
        grid = grid_of([there])
        assert lattice_of(here, grid) == pytest.approx(lattice_of(there, grid), abs=1e-6)


def test_dates_on_the_two_sides_of_the_earth_do_not_overlap(tmp_path: Path) -> None:
    fiji = painted(tmp_path / "a.tif", "EPSG:4326", (180.0, -17.0), 2e4)
    for name, place in (("EPSG:4326", (0.0, -17.0)), ("EPSG:32630", (-1.0, 17.0)), ("EPSG:4326", (-178.0, -17.0))):
        far = painted(tmp_path / "b.tif", name, place, 2e4)
        for pair in ([fiji, far], [far, fiji]):
            with pytest.raises(RasterError, match="does not overlap"), PairReader(pair[:1], pair[1:], N):
                pass


def test_footprints_of_the_real_scene_across_180_degrees_lie_within_180(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "archives" / "odd" / "cog_dateline.tif"
    index = index_pair(
        {"pair_id": "p", "before": [str(path)], "after": [str(path)]},
        64,
        ReadOptions(bands=("1",), scaling="percentiles"),
    )
    assert len(index) > 1
    bounds = shapely.bounds(shapely.from_wkb(index.column("geometry").to_pylist()))
    assert (bounds[:, 0] >= -180).all()
    assert (bounds[:, 2] <= 180).all()
