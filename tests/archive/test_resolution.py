"""Grids of a resolution in metres against distances on the ellipsoid, and resampling against rasterio.warp."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from rasterio.enums import Resampling
from rasterio.transform import from_origin
from rasterio.warp import reproject, transform

from hisem.archive.grid import Grid, Window, windows
from hisem.archive.index import index_pair
from hisem.archive.options import ReadOptions
from hisem.archive.raster import grid_of, open_raster
from hisem.archive.reader import PairReader
from hisem.errors import RasterError

Write = Callable[..., str]
Noise = Callable[..., npt.NDArray[np.uint8]]

X, Y = 500_000.0, 4_000_000.0


def grid(path: str, resolution: float | None) -> Grid:
    with open_raster(path) as raster:
        return grid_of([raster], resolution)


def metres(crs: str, start: tuple[float, float], end: tuple[float, float]) -> float:
    """The oracle: the straight line between two places in geocentric coordinates, for short ways the geodesic."""
    xs, ys, zs = transform(crs, "EPSG:4978", [start[0], end[0]], [start[1], end[1]], [0.0, 0.0])
    return float(np.linalg.norm([xs[1] - xs[0], ys[1] - ys[0], zs[1] - zs[0]]))


@pytest.mark.parametrize("latitude", [-70.0, -33.4, 0.002, 37.08, 64.1, 85.0])
@pytest.mark.parametrize("resolution", [0.5, 10.0])
def test_pixels_in_degrees_are_square_on_the_ground(
    write_raster: Write, noise: Noise, latitude: float, resolution: float
) -> None:
    path = write_raster("a.tif", noise(), transform=from_origin(-94.5, latitude, 6e-5, 6e-6), crs="EPSG:4326")
    found = grid(path, resolution)
    x, y = found.transform @ (found.width / 2, found.height / 2)
    assert metres("EPSG:4326", (x, y), (x + found.transform.a, y)) == pytest.approx(resolution, rel=1e-5)
    assert metres("EPSG:4326", (x, y), (x, y + found.transform.e)) == pytest.approx(resolution, rel=1e-5)
    assert found.crs == "EPSG:4326"
    assert (found.transform.c, found.transform.f) == (-94.5, latitude)


def test_grads_are_angles_too(write_raster: Write, noise: Noise) -> None:
    # Paris, in the French datum of 1901, whose angles are grads and whose ellipsoid is Clarke's.
    path = write_raster("a.tif", noise(), transform=from_origin(0.01, 54.29, 1e-5, 1e-5), crs="EPSG:4807")
    found = grid(path, 2.0)
    x, y = found.transform.c, found.transform.f
    assert metres("EPSG:4807", (x, y), (x + found.transform.a, y)) == pytest.approx(2, rel=1e-3)
    assert metres("EPSG:4807", (x, y), (x, y + found.transform.e)) == pytest.approx(2, rel=1e-3)


@pytest.mark.parametrize(
    ("crs", "size"),
    [("EPSG:32633", 2.5), ("EPSG:2263", 2.5 * 3937 / 1200), ("EPSG:2222", 2.5 / 0.3048)],
)
def test_pixels_in_the_unit_of_the_projection(write_raster: Write, noise: Noise, crs: str, size: float) -> None:
    path = write_raster("a.tif", noise(), transform=from_origin(980_000, 200_000, 10, 10), crs=crs)
    found = grid(path, 2.5)
    assert (found.transform.a, -found.transform.e) == pytest.approx((size, size), rel=1e-12)
    assert (found.height, found.width) == (round(960 / size), round(800 / size))


def test_the_scenes_own_resolution_keeps_its_pixels(write_raster: Write, noise: Noise, shared_data: Path) -> None:
    path = write_raster("a.tif", noise())
    assert grid(path, 10.0) == grid(path, None)
    before = sorted(map(str, (shared_data / "joplin" / "pre").glob("*.tif")))
    with PairReader(before, before, 256) as native, PairReader(before, before, 256, ReadOptions(resolution=0.6)) as own:
        assert (own.grid.height, own.grid.width) == (2048, 2048)
        for window in (Window(0, 0, 256, 256), Window(1000, 900, 256, 256)):
            assert np.array_equal(own.read(window).before, native.read(window).before)


def test_resolutions_without_meaning_are_named(write_raster: Write, noise: Noise) -> None:
    local = write_raster("local.tif", noise(), crs=None)
    image = write_raster("image.png", noise(), crs=None, transform=None)
    scene = write_raster("scene.tif", noise())
    beyond = write_raster("beyond.tif", noise(), crs="EPSG:4326", transform=from_origin(500, 4000, 1, 1))
    for path, resolution, reason in (
        (local, 1.0, r"local\.tif: has no CRS, so it has no metres"),
        (image, 1.0, r"image\.png: has no geotransform, so it has no metres"),
        (scene, 10_000.0, r"smaller than one pixel of 10000\.0 m"),
        (beyond, 1.0, "check its geotransform"),
    ):
        with pytest.raises(RasterError, match=reason):
            index_pair({"pair_id": "p", "before": [path], "after": [path]}, 64, ReadOptions(resolution=resolution))
    with pytest.raises(RasterError, match="check --resolution"):
        index_pair({"pair_id": "p", "before": [scene], "after": [scene]}, 1, ReadOptions(resolution=0.01))


def test_ids_name_the_resolution(write_raster: Write, noise: Noise) -> None:
    path = write_raster("a.tif", noise())
    pair = {"pair_id": "p", "before": [path], "after": [path]}
    fine = index_pair(pair, 64, ReadOptions(resolution=5.0)).column("tile_id").to_pylist()
    assert fine[:2] == ["p/0-0-64@5.0m", "p/0-64-64@5.0m"]
    assert index_pair(pair, 64).column("tile_id").to_pylist()[0] == "p/0-0-64"


RESAMPLING = ["nearest", "bilinear", "cubic", "cubic_spline", "lanczos", "average"]


@pytest.mark.parametrize("resolution", [4.0, 37.0])
@pytest.mark.parametrize("resampling", RESAMPLING)
def test_resampling_equals_rasterio(write_raster: Write, noise: Noise, resampling: str, resolution: float) -> None:
    pixels = noise(height=192, width=160)
    path = write_raster("a.tif", pixels)
    with PairReader([path], [path], 64, ReadOptions(resolution=resolution, resampling=resampling)) as reader:  # type: ignore[arg-type]
        found = reader.grid
        expected = np.zeros((3, found.height, found.width), np.uint8)
        reproject(
            pixels,
            expected,
            src_transform=from_origin(X, Y, 10, 10),
            src_crs="EPSG:32633",
            dst_transform=from_origin(X, Y, resolution, resolution),
            dst_crs="EPSG:32633",
            resampling=Resampling[resampling],
        )
        for window in windows(found.height, found.width, 64):
            tile = reader.read(window)
            rows, cols = window.slices(found.extent)
            inside = np.s_[: window.height, : window.width]
            difference = tile.before[inside].astype(int) - expected[:, rows, cols].transpose(1, 2, 0)
            assert np.abs(difference).max() <= 1  # 0 and 255 differ by how nodata is kept clear


def test_coarser_pixels_see_all_that_they_cover(write_raster: Write) -> None:
    board = np.tile(np.array([[0, 250], [250, 0]], np.uint8), (3, 96, 96))
    board[board == 0] = 10
    path = write_raster("board.tif", board)
    for resampling in RESAMPLING[1:]:
        with PairReader([path], [path], 24, ReadOptions(resolution=80.0, resampling=resampling)) as reader:  # type: ignore[arg-type]
            inner = reader.read(Window(0, 0, 24, 24)).before[2:-2, 2:-2]
        assert np.abs(inner.astype(int) - 130).max() <= 10, resampling


def test_two_crs_and_a_resolution_share_one_grid(shared_data: Path) -> None:
    before, after = (sorted(map(str, (shared_data / "joplin" / date).glob("*.tif"))) for date in ("pre", "post"))
    options = ReadOptions(resolution=1.2, resampling="average")
    with PairReader(before, after, 256, options) as reader:
        assert (reader.grid.height, reader.grid.width) == (1024, 1024)
        window = Window(512, 256, 256, 256)
        pixels = reader.read(window)
        place = reader.grid.transform_of(window)
        for paths, found in ((before, pixels.before), (after, pixels.after)):
            expected = np.zeros((3, 256, 256), np.uint8)
            for path in paths:
                with rasterio.open(path) as raster:
                    part = np.zeros((3, 256, 256), np.uint8)
                    reproject(
                        rasterio.band(raster, (1, 2, 3)),
                        part,
                        dst_transform=place,
                        dst_crs=reader.grid.crs,
                        resampling=Resampling.average,
                    )
                expected = np.where(expected.any(axis=0), expected, part)
            difference = np.abs(found.astype(int) - expected.transpose(1, 2, 0))
            assert np.mean(difference <= 1) > 0.97, "the two approximate the projection in other places"
            assert difference.mean() < 0.3


def test_the_before_scene_may_be_the_one_in_degrees(shared_data: Path) -> None:
    before, after = (sorted(map(str, (shared_data / "joplin" / date).glob("*.tif"))) for date in ("pre", "post"))
    with PairReader(after, before, 256, ReadOptions(resolution=0.6)) as reader:
        found = reader.grid
        size = found.transform.a, -found.transform.e
        assert found.crs == "EPSG:4326"
        assert size[0] / size[1] == pytest.approx(1 / np.cos(np.radians(37.071)), rel=0.01)
        left, bottom, right, top = found.bounds_of(found.extent)
        assert found.width * 0.6 == pytest.approx(metres("EPSG:4326", (left, bottom), (right, bottom)), rel=1e-3)
        assert found.height * 0.6 == pytest.approx(metres("EPSG:4326", (left, bottom), (left, top)), rel=1e-3)
        (x,), (y,) = transform("EPSG:26915", "EPSG:4326", [367_257.0], [4_103_896.8])
        row, col = int((top - y) / size[1]), int((x - left) / size[0])
        pixels = reader.read(Window(row, col, 256, 256))
    assert (pixels.before_valid, pixels.after_valid) == (1, 1)
