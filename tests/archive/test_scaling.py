"""Scaling to 8 bit against numpy on the same pixels, and percentiles that are a whole scene's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import rasterio
from rasterio.enums import Resampling
from rasterio.transform import from_origin

from hisem.archive import reader as reader_module
from hisem.archive import scaling
from hisem.archive.grid import Window
from hisem.archive.index import index_pair
from hisem.archive.options import ReadOptions
from hisem.archive.reader import RANGES, PairReader, range_columns
from hisem.archive.scaling import percentile_ranges, to_8bit
from hisem.archive.tiles import read_tiles
from hisem.errors import RasterError
from hisem.schemas import FAILED, OK

Write = Callable[..., str]
Noise = Callable[..., npt.NDArray[np.uint8]]

X, Y = 500_000.0, 4_000_000.0
PERCENTILES = ReadOptions(scaling="percentiles")


def values(dtype: str = "uint16", seed: int = 0, height: int = 96, width: int = 80) -> npt.NDArray[Any]:
    """Three bands of different brightness, with a long tail."""
    rng = np.random.default_rng(seed)
    bands = [rng.gamma(2, 300 * (k + 1), (height, width)) + 50 for k in range(3)]
    return np.clip(bands, 1, 30_000).astype(dtype)


def by_hand(pixels: npt.NDArray[Any], ranges: Any) -> npt.NDArray[np.uint8]:
    """The oracle: H W 3, one value after the other."""
    found = np.empty(pixels.shape, np.uint8)
    for band, (low, high) in enumerate(ranges):
        for place, value in np.ndenumerate(pixels[band]):
            share = min(max((float(value) - low) / (high - low), 0), 1)
            found[(band, *place)] = round(share * 255)
    return found.transpose(1, 2, 0)


def read(path: str, options: ReadOptions) -> npt.NDArray[np.uint8]:
    with PairReader([path], [path], 96, options) as reader:
        return reader.read(Window(0, 0, 96, 80)).before[:, :80]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
def test_a_fixed_range(write_raster: Write, dtype: str) -> None:
    pixels = values(dtype) if dtype != "uint8" else (values() // 64).astype(np.uint8)
    if dtype in ("int16", "float32", "float64"):
        pixels[0] *= -1
    low, high = {"uint8": (4.0, 20.0), "uint16": (300.0, 1900.0)}.get(dtype, (-700.0, 1900.0))
    found = read(write_raster("a.tif", pixels), ReadOptions(scaling="range", scale_range=(low, high)))
    assert np.array_equal(found, by_hand(pixels, [(low, high)] * 3))
    assert {0, 255} < set(found.ravel().tolist())


@pytest.mark.parametrize(("dtype", "low", "high"), [("uint16", 0, 65535), ("int16", -32768, 32767), ("uint8", 0, 255)])
def test_the_range_of_the_type(write_raster: Write, dtype: str, low: int, high: int) -> None:
    pixels = np.random.default_rng(1).integers(low, high, (3, 96, 80), endpoint=True).astype(dtype)
    pixels[:, 0, :2] = low, high
    found = read(write_raster("a.tif", pixels), ReadOptions(scaling="dtype"))
    assert np.array_equal(found, by_hand(pixels, [(low, high)] * 3))
    assert found[0, 0].tolist() == [0, 0, 0]
    assert found[0, 1].tolist() == [255, 255, 255]


def test_a_band_of_one_value_is_dark() -> None:
    pixels = np.full((3, 2, 2), 7.0)
    assert not to_8bit(pixels, np.full((3, 2), 7.0)).any()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_percentiles_of_a_small_scene_are_of_all_its_valid_pixels(write_raster: Write, dtype: str) -> None:
    pixels = values(dtype) if dtype != "uint8" else (values() // 64 + 1).astype(np.uint8)
    pixels[:, :40, :30] = 0
    if dtype == "float32":
        pixels[1, 90:, 70:] = np.nan
        pixels[2, 80:90, 70:] = np.inf
    path = write_raster("a.tif", pixels, nodata=0)
    valid = (pixels != 0).any(axis=0) & np.isfinite(pixels.astype(float)).all(axis=0)
    expected = [np.percentile(band[valid].astype(float), (5, 90)) for band in pixels]
    options = ReadOptions(scaling="percentiles", percentiles=(5, 90))
    with PairReader([path], [path], 96, options) as reader:
        measured = reader.measure()
        found = reader.read(Window(0, 0, 96, 80)).before[:, :80]
    assert measured is not None
    assert np.allclose(measured[0], expected, rtol=1e-6)
    assert np.array_equal(found, by_hand(np.where(valid, pixels, 0), measured[0]) * valid[..., None])


def test_percentiles_come_from_overviews(write_raster: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_raster("a.tif", values(height=512, width=512), nodata=0, tiled=True, blockxsize=128, blockysize=128)
    with rasterio.open(path, "r+") as raster:
        raster.build_overviews([2, 4], Resampling.average)
        whole = raster.read()
        expected = raster.read(out_shape=(3, 128, 128))
        sparse = whole[:, ::4, ::4]
    monkeypatch.setattr(scaling, "SAMPLES", 128 * 128)
    with rasterio.open(path) as raster:
        found = percentile_ranges([raster], [], (2, 98))
    oracle = np.percentile(expected.reshape(3, -1), (2, 98), axis=1).T
    assert np.array_equal(found, oracle)
    assert not np.array_equal(found, np.percentile(sparse.reshape(3, -1), (2, 98), axis=1).T)


def test_percentiles_are_of_the_whole_date(write_raster: Write) -> None:
    dark, bright = values(seed=1), values(seed=2) + np.uint16(4000)
    paths = [
        write_raster("dark.tif", dark),
        write_raster("bright.tif", bright, transform=from_origin(X + 800, Y, 10, 10)),
    ]
    both = np.concatenate([dark, bright], axis=2)
    expected = np.percentile(both.reshape(3, -1), (2, 98), axis=1).T
    with PairReader(paths, paths[:1], 96, PERCENTILES) as reader:
        measured = reader.measure()
        assert measured is not None
        assert np.allclose(measured[0], expected)
        assert np.allclose(measured[1], np.percentile(dark.reshape(3, -1), (2, 98), axis=1).T)
        pixels = reader.read(Window(0, 32, 96, 96)).before
    assert np.array_equal(pixels, by_hand(both[:, :, 32:128], measured[0]))


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("flipped", [False, True])
def test_clouds_are_left_out(write_raster: Write, step: int, flipped: bool) -> None:
    pixels = values()
    clouds = np.zeros((1, 96, 80), np.uint8)
    clouds[0, 20:60, 10:50] = 1
    pixels[:, 20:60, 10:50] = 60_000
    mask = write_raster("mask.tif", clouds[:, ::step, ::step], transform=from_origin(X, Y, 10 * step, 10 * step))
    upside = rasterio.Affine(10, 0, X, 0, 10, Y - 960)
    scene = write_raster("a.tif", pixels[:, ::-1], transform=upside) if flipped else write_raster("a.tif", pixels)
    with PairReader([scene], [scene], 96, PERCENTILES, after_mask=[mask]) as reader:
        measured = reader.measure()
    assert measured is not None
    clear = pixels[:, clouds[0] == 0]
    assert measured[0].max() == 60_000
    assert np.allclose(measured[1], np.percentile(clear, (2, 98), axis=1).T)


def test_clouds_of_images_without_georeference_are_left_out(write_raster: Write, noise: Noise) -> None:
    pixels = noise()
    clouds = np.zeros((1, 96, 80), np.uint8)
    clouds[0, :50] = 9
    scene = write_raster("a.png", pixels, transform=None, crs=None)
    mask = write_raster("mask.png", clouds, transform=None, crs=None)
    with PairReader([scene], [scene], 96, PERCENTILES, before_mask=[mask]) as reader:
        measured = reader.measure()
    assert measured is not None
    assert np.allclose(measured[0], np.percentile(pixels[:, 50:].reshape(3, -1), (2, 98), axis=1).T)


def test_all_tiles_of_a_scene_are_scaled_alike_whoever_reads_them(
    write_raster: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def counting(*arguments: Any) -> Any:
        calls.append(1)
        return percentile_ranges(*arguments)

    monkeypatch.setattr(reader_module, "percentile_ranges", counting)
    ramp = np.broadcast_to(np.arange(80, dtype=np.uint16) * 700 + 100, (3, 96, 80))
    path = write_raster("a.tif", ramp)
    pair = {"pair_id": "p", "before": [path], "after": [path]}
    index = index_pair(pair, 32, PERCENTILES)
    assert calls == [], "the index needs headers only"

    alone = [next(read_tiles(index.slice(number, 1), 32, PERCENTILES)) for number in range(len(index))]
    assert len(calls) == 2 * len(index)
    together = list(read_tiles(index, 32, PERCENTILES))
    assert len(calls) == 2 * len(index) + 2, "once per scene, never per tile"
    columns = range_columns(pair, PERCENTILES)
    for name in RANGES:
        index = index.append_column(name, pa.array([columns[name]] * len(index), pa.list_(pa.float64())))
    calls.clear()
    carried = list(read_tiles(index, 32, PERCENTILES))
    assert calls == []
    for one, two, three in zip(alone, together, carried, strict=True):
        assert one.status == OK
        assert one.before is not None
        assert two.before is not None
        assert three.before is not None
        assert np.array_equal(one.before, two.before)
        assert np.array_equal(two.before, three.before)
    first, last = alone[0].before, alone[2].before
    assert first is not None
    assert last is not None
    assert first.max() < last.min(), "stretched tile by tile, both would span 0 to 255"


def test_scenes_without_percentiles_are_failed_tiles(write_raster: Write, tmp_path: Path) -> None:
    void = write_raster("void.tif", np.zeros((3, 96, 80), np.uint16), nodata=0)
    cut = write_raster("cut.tif", values(height=512))
    good = write_raster("good.tif", values(height=512))
    Path(cut).write_bytes(Path(cut).read_bytes()[: 2 * 80 * 300])
    for path, reason in ((void, "no valid pixel"), (cut, "percentiles cannot be taken")):
        pair = {"pair_id": "p", "before": [good], "after": [path]}
        assert range_columns(pair, PERCENTILES) == {"before_range": None, "after_range": None}
        tiles = list(read_tiles(index_pair(pair, 256, PERCENTILES), 256, PERCENTILES))
        assert {tile.status for tile in tiles} == {FAILED}
        assert all(path in str(tile.error) and reason in str(tile.error) for tile in tiles)
    with PairReader([void], [void], 96, PERCENTILES) as reader, pytest.raises(RasterError, match="no valid pixel"):
        reader.read(Window(0, 0, 96, 80))


def test_landsat_in_true_colour(shared_data: Path) -> None:
    paths = [str(shared_data / "landsat_taizhou" / name) for name in ("2000TM", "2003TM")]
    options = ReadOptions(bands=("3", "2", "1"), scaling="percentiles")
    with PairReader(paths[:1], paths[1:], 256, options) as reader:
        pixels = reader.read(Window(144, 144, 256, 256))
    for path, found in zip(paths, (pixels.before, pixels.after), strict=True):
        with rasterio.open(path) as raster:
            scene = raster.read((3, 2, 1)).astype(float)
        low, high = np.percentile(scene.reshape(3, -1), (2, 98), axis=1)[:, :, None, None]
        expected = np.clip((scene - low) / (high - low), 0, 1)[:, 144:, 144:] * 255
        assert np.array_equal(found, np.round(expected).transpose(1, 2, 0))
