"""Pixels and validity against rasterio itself, and against the benchmark's own tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from PIL import Image
from rasterio.enums import Resampling
from rasterio.transform import from_origin
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterioWindow
from rasterio.windows import bounds as window_bounds

from hisem.archive import png
from hisem.archive.grid import Window, windows
from hisem.archive.placement import place
from hisem.archive.raster import grid_of, open_raster
from hisem.archive.reader import PairReader
from hisem.errors import RasterError

Write = Callable[..., str]
Noise = Callable[..., npt.NDArray[np.uint8]]

X, Y = 500_000.0, 4_000_000.0
WHOLE = Window(0, 0, 96, 80)


def rgb(path: str, window: Window) -> npt.NDArray[np.uint8]:
    """The oracle: H W 3 as rasterio reads it."""
    with rasterio.open(path) as raster:
        place = RasterioWindow(window.col_off, window.row_off, window.width, window.height)
        return np.asarray(raster.read((1, 2, 3), window=place)).transpose(1, 2, 0)


@contextmanager
def warped(path: str, height: int, width: int, transform: Affine, crs: Any) -> Iterator[WarpedVRT]:
    """The oracle for resampling: rasterio's own VRT onto the same grid."""
    with (
        rasterio.open(path) as raster,
        WarpedVRT(
            raster,
            crs=crs,
            transform=transform,
            height=height,
            width=width,
            resampling=Resampling.bilinear,
            add_alpha=True,
        ) as vrt,
    ):
        yield vrt


def test_windows_on_one_grid_are_read_without_resampling(write_raster: Write, noise: Noise) -> None:
    before = write_raster("before.tif", noise(seed=1))
    after = write_raster("after.tif", noise(bands=5, seed=2))
    with PairReader([before], [after], 32) as reader:
        assert (reader.grid.height, reader.grid.width) == (96, 80)
        for window in windows(96, 80, 32):
            pixels = reader.read(window)
            assert np.array_equal(pixels.before, rgb(before, window))
            assert np.array_equal(pixels.after, rgb(after, window))
            assert (pixels.before_valid, pixels.after_valid) == (1, 1)
            assert pixels.before.dtype == np.uint8


@pytest.mark.parametrize("jitter", [0.0, 5e-4])
def test_a_raster_offset_by_whole_pixels_is_not_resampled(write_raster: Write, noise: Noise, jitter: float) -> None:
    before = write_raster("before.tif", noise(seed=1))
    moved = from_origin(X + (20 + jitter) * 10, Y + 30 * 10, 10, 10)
    after = write_raster("after.tif", noise(seed=2), transform=moved)
    with PairReader([before], [after], 96) as reader:
        pixels = reader.read(WHOLE)
    assert np.array_equal(pixels.after[:66, 20:80], rgb(after, Window(30, 0, 66, 60)))
    assert not pixels.after[66:].any()
    assert not pixels.after[:, :20].any()
    assert pixels.after_valid == pytest.approx(66 * 60 / 96**2)
    assert pixels.before_valid == pytest.approx(80 / 96), "the padding counts as invalid"


@pytest.mark.parametrize(
    ("transform", "crs"),
    [
        (from_origin(X + 3, Y - 4, 10, 10), "EPSG:32633"),
        (from_origin(X - 20, Y + 20, 7, 7), "EPSG:32633"),
        (from_origin(15.0 - 1e-4, 36.1460, 1e-4, 1e-4), "EPSG:4326"),
    ],
)
def test_other_grids_are_resampled_as_warpedvrt_does(
    write_raster: Write, noise: Noise, transform: Affine, crs: str
) -> None:
    before = write_raster("before.tif", noise(seed=1))
    after = write_raster("after.tif", noise(height=160, width=150, seed=2), transform=transform, crs=crs)
    with PairReader([before], [after], 32) as reader:
        grid = reader.grid
        with warped(after, grid.height, grid.width, grid.transform, grid.crs) as vrt:
            for window in windows(96, 80, 32):
                found = reader.read(window)
                place = RasterioWindow(window.col_off, window.row_off, 32, 32)
                expected = vrt.read(window=place)
                valid = expected[3] > 0
                assert np.array_equal(found.after, (expected[:3] * valid).transpose(1, 2, 0))
                assert found.after_valid == pytest.approx(valid.mean())
                assert found.after_valid > 0.9


def test_flipped_rasters_come_north_up(write_raster: Write, noise: Noise) -> None:
    upright = noise()
    before = write_raster("before.tif", upright)
    after = write_raster("after.tif", upright[:, ::-1], transform=Affine(10, 0, X, 0, 10, Y - 960))
    for first, second in ((before, after), (after, before)):
        with PairReader([first], [second], 96) as reader:
            pixels = reader.read(WHOLE)
        assert np.array_equal(pixels.before, pixels.after)
        assert np.array_equal(pixels.before[:, :80], upright.transpose(1, 2, 0))


def test_validity_comes_from_nodata_alpha_and_mask_band_alike(write_raster: Write, noise: Noise) -> None:
    hole = np.full((96, 80), 255, np.uint8)
    hole[10:30, 40:60] = 0
    clear = noise()
    clear[0, 0, 0] = 0  # one band at the nodata value does not make a pixel nodata
    plain = write_raster("plain.tif", clear)
    kinds = [
        write_raster("nodata.tif", clear * (hole > 0), nodata=0),
        write_raster("alpha.tif", np.concatenate([clear, hole[None]]), alpha=True),
        write_raster("mask.tif", clear, mask=hole),
    ]
    expected = clear.transpose(1, 2, 0) * (hole > 0)[..., None]
    for path in kinds:
        with PairReader([plain], [path], 96) as reader:
            pixels = reader.read(WHOLE)
        assert np.array_equal(pixels.after[:, :80], expected), path
        assert pixels.after_valid == pytest.approx((96 * 80 - 400) / 96**2)


def test_warped_holes_stay_invalid(write_raster: Write, noise: Noise) -> None:
    hole = np.full((96, 80), 255, np.uint8)
    hole[10:30, 40:60] = 0
    plain = write_raster("plain.tif", noise(), transform=from_origin(X + 5, Y - 5, 10, 10))
    holed = noise() * (hole > 0)
    for path in (
        write_raster("nodata.tif", holed, nodata=0),
        write_raster("alpha.tif", np.concatenate([holed, hole[None]]), alpha=True),
        write_raster("mask.tif", holed, mask=hole),
    ):
        with PairReader([plain], [path], 96) as reader:
            pixels = reader.read(WHOLE)
        assert not pixels.after[11:28, 41:58].any()
        assert pixels.after[:9, :79].all(), "true pixels never become 0"
        assert 0.75 < pixels.after_valid < (96 * 80 - 17 * 17) / 96**2


def test_later_rasters_fill_the_gaps_of_earlier_ones(write_raster: Write, noise: Noise) -> None:
    first, second = noise(seed=1), noise(seed=2)
    first[:, 20:50] = 0
    paths = [write_raster("first.tif", first, nodata=0), write_raster("second.tif", second)]
    with PairReader(paths, paths[::-1], 96) as reader:
        pixels = reader.read(WHOLE)
    composed = np.where(first > 0, first, second).transpose(1, 2, 0)
    assert np.array_equal(pixels.before[:, :80], composed)
    assert np.array_equal(pixels.after[:, :80], second.transpose(1, 2, 0))


def test_masks_invalidate_their_nonzero_pixels(write_raster: Write, noise: Noise) -> None:
    scene = write_raster("scene.tif", noise())
    clouds = np.zeros((1, 50, 80), np.uint8)
    clouds[0, :10] = 3
    clouds[0, 10:20] = 255
    on_grid = write_raster("clouds.tif", clouds, nodata=255)
    coarse = write_raster("coarse.tif", clouds[:, ::2, ::2], nodata=255, transform=from_origin(X, Y, 20, 20))
    for mask in (on_grid, coarse):
        with PairReader([scene], [scene], 96, after_mask=[mask]) as reader:
            pixels = reader.read(WHOLE)
        assert pixels.before_valid == pytest.approx(80 / 96)
        assert pixels.after_valid == pytest.approx(76 * 80 / 96**2), "beyond its edge a mask hides nothing"
        assert not pixels.after[:20].any()
        assert pixels.after[20:, :80].all()


def test_images_without_georeference_pair_pixel_by_pixel(write_raster: Write, noise: Noise) -> None:
    before = write_raster("before.png", noise(seed=1), transform=None, crs=None)
    after = write_raster("after.png", noise(seed=2), transform=None, crs=None)
    with PairReader([before], [after], 64) as reader:
        assert not reader.grid.has_transform
        pixels = reader.read(Window(32, 16, 64, 64))
    assert np.array_equal(pixels.before, np.asarray(Image.open(before))[32:96, 16:80])
    assert np.array_equal(pixels.after, np.asarray(Image.open(after))[32:96, 16:80])


def test_transforms_without_crs_align_on_their_own(write_raster: Write, noise: Noise) -> None:
    before = write_raster("before.tif", noise(seed=1), crs=None)
    after = write_raster("after.tif", noise(seed=2), crs=None, transform=from_origin(X + 100, Y, 10, 10))
    with PairReader([before], [after], 64) as reader:
        pixels = reader.read(Window(0, 16, 64, 64))
    assert np.array_equal(pixels.after, rgb(after, Window(0, 6, 64, 64)))


def test_a_damaged_jpeg_never_yields_made_up_pixels(write_raster: Write, noise: Noise) -> None:
    path = write_raster("scene.jpg", noise(height=512, width=512), transform=None, crs=None)
    whole = rgb(path, Window(0, 0, 512, 512))
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: len(content) // 2])
    with PairReader([path], [path], 128) as reader:
        for window in windows(512, 512, 128):
            if window.row_off >= 256:
                with pytest.raises(RasterError, match=r"rows \d+-\d+ .* damaged or incomplete"):
                    reader.read(window)
            elif window.row_off == 0:
                assert np.array_equal(reader.read(window).before, whole[window.slices(Window(0, 0, 512, 512))])


def test_a_window_outside_the_grid_is_an_error(write_raster: Write, noise: Noise) -> None:
    path = write_raster("scene.tif", noise())
    with PairReader([path], [path], 64) as reader, pytest.raises(RasterError, match="make the index again"):
        reader.read(Window(64, 0, 64, 64))


def test_a_raster_that_does_not_overlap_is_left_out(write_raster: Write, noise: Noise) -> None:
    scene = write_raster("scene.tif", noise())
    far = write_raster("far.tif", noise(), transform=from_origin(X + 5_000, Y, 10, 10))
    with open_raster(scene) as near, open_raster(far) as distant:
        assert place(distant, grid_of([near])) == []
        assert grid_of([near, distant]).width == 580
    with PairReader([scene], [far, scene], 96) as reader:
        assert reader.read(WHOLE).after_valid == pytest.approx(80 / 96)


def test_envi_with_six_bands_is_read(shared_data: Path) -> None:
    before, after = (str(shared_data / "landsat_taizhou" / name) for name in ("2000TM", "2003TM"))
    with PairReader([before], [after], 256) as reader:
        pixels = reader.read(Window(144, 144, 256, 256))
    assert np.array_equal(pixels.before, rgb(before, Window(144, 144, 256, 256)))
    assert np.array_equal(pixels.after, rgb(after, Window(144, 144, 256, 256)))


def test_scenes_cut_into_the_benchmark_tiles(shared_data: Path) -> None:
    compared = 0
    for scene in range(1, 5):
        paths = [str(shared_data / "levir_cd_scenes" / date / f"test_{scene}.tif") for date in ("before", "after")]
        with PairReader(paths[:1], paths[1:], 256) as reader:
            for number, window in enumerate(windows(reader.grid.height, reader.grid.width, 256)):
                name = f"test_{(scene - 1) * 16 + number + 1:06d}.png"
                benchmark = [shared_data / "levir_cc" / "images" / "test" / date / name for date in "AB"]
                if not benchmark[0].is_file():
                    continue
                pixels = reader.read(window)
                assert np.array_equal(pixels.before, png.decode(benchmark[0].read_bytes()))
                assert np.array_equal(pixels.after, png.decode(benchmark[1].read_bytes()))
                compared += 1
    assert compared == 57


def test_mosaics_in_two_crs_share_the_before_grid(shared_data: Path) -> None:
    before, after = (sorted(map(str, (shared_data / "joplin" / date).glob("*.tif"))) for date in ("pre", "post"))
    with PairReader(before, after, 256) as reader:
        grid = reader.grid
        assert (grid.height, grid.width, grid.crs) == (2048, 2048, "EPSG:26915")
        whole = [
            min(pixels.before_valid, pixels.after_valid) == 1
            for pixels in (reader.read(window) for window in windows(2048, 2048, 256))
        ]
        assert sum(whole) == 42

        window = Window(1024, 512, 256, 256)
        pixels = reader.read(window)
        left, bottom, right, top = grid.bounds_of(window)
        for path in before:
            with rasterio.open(path) as raster:
                if (
                    raster.bounds.left <= left + 1 < raster.bounds.right
                    and raster.bounds.bottom < top - 1 < raster.bounds.top
                ):
                    place = raster.window(left, bottom, right, top).round_offsets().round_lengths()
                    assert window_bounds(place, raster.transform) == pytest.approx((left, bottom, right, top))
                    assert np.array_equal(pixels.before, raster.read(window=place).transpose(1, 2, 0))
        composed = np.zeros((4, 256, 256), np.uint8)
        for path in after:
            with warped(path, 2048, 2048, grid.transform, grid.crs) as vrt:
                found = vrt.read(window=RasterioWindow(512, 1024, 256, 256))
                np.copyto(composed, found, where=(found[3] > 0) & (composed[3] == 0))
        assert composed[3].all()
        assert np.array_equal(pixels.after, composed[:3].transpose(1, 2, 0))
