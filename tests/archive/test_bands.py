"""Chosen bands and their validity, over pixel types and kinds of nodata, against numpy and rasterio.warp."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from rasterio.enums import ColorInterp, Resampling
from rasterio.transform import from_origin
from rasterio.warp import reproject

from hisem.archive.bands import DTYPES, BandView, open_scene_raster
from hisem.archive.grid import Window, windows
from hisem.archive.options import ReadOptions
from hisem.archive.reader import PairReader
from hisem.errors import RasterError

Write = Callable[..., str]
Noise = Callable[..., npt.NDArray[np.uint8]]
Pixels = npt.NDArray[Any]

X, Y = 500_000.0, 4_000_000.0
RGB = ("1", "2", "3")
RANGE: dict[str, Any] = {"scaling": "range", "scale_range": (-500.0, 2500.0)}
HOLE = np.zeros((96, 80), np.bool_)
HOLE[10:30, 40:60] = True
HOLE[70:, :7] = True
LATTICES = {
    "same": (from_origin(X, Y, 10, 10), "EPSG:32633"),
    "half a pixel off": (from_origin(X - 5, Y + 5, 10, 10), "EPSG:32633"),
    "other zone": (None, "EPSG:32632"),
    "degrees": (None, "EPSG:4326"),
}


def smooth(dtype: str) -> Pixels:
    """Three bands of 96 x 80 that vary slowly, so that an eighth of a pixel hardly matters."""
    rows, cols = np.mgrid[:96, :80]
    waves = [np.sin(rows / (17 + k)) * np.cos(cols / (13 + 2 * k)) for k in range(3)]
    low, high = (20, 230) if dtype == "uint8" else (30, 2000)
    return (low + (np.array(waves) + 1) / 2 * (high - low)).astype(dtype)


def place(name: str) -> tuple[Affine, str]:
    """Transform and CRS of an after raster of 96 x 80 around the before scene."""
    transform, crs = LATTICES[name]
    if transform is None:
        with rasterio.Env():
            transform, _, _ = rasterio.warp.calculate_default_transform(
                "EPSG:32633", crs, 80, 96, X, Y - 960, X + 800, Y, dst_width=80, dst_height=96
            )
    return transform, crs


def holed(write: Write, kind: str, pixels: Pixels, **profile: Any) -> tuple[str, dict[str, Any]]:
    """A raster whose pixels in HOLE are invalid, as `kind` says it, and the options it needs."""
    dtype = pixels.dtype
    wild = np.array(255 if dtype == np.uint8 else 2222, dtype)  # what would be seen if it bled
    filled = np.where(HOLE, wild, pixels)
    if kind == "nodata":
        return write("after.tif", filled, nodata=float(wild), **profile), {}
    if kind == "given":
        return write("after.tif", filled, **profile), {"nodata": float(wild)}
    if kind == "given, not alpha":
        alpha = np.ones((1, 96, 80), dtype)
        return write("after.tif", np.concatenate([filled, alpha]), alpha=True, **profile), {"nodata": float(wild)}
    if kind == "given, not mask":
        return write("after.tif", filled, mask=np.full((96, 80), 255, np.uint8), **profile), {"nodata": float(wild)}
    if kind == "mask":
        return write("after.tif", filled, mask=np.where(HOLE, 0, 255).astype(np.uint8), **profile), {}
    if kind == "mask, not nodata":
        mask = np.where(HOLE, 0, 255).astype(np.uint8)
        return write("after.tif", filled, mask=mask, nodata=float(pixels[0, 50, 50]), **profile), {}
    if kind == "alpha":
        opaque = np.iinfo(dtype).max if dtype.kind != "f" else 1
        alpha = np.where(HOLE, 0, opaque).astype(dtype)[None]
        return write("after.tif", np.concatenate([filled, alpha]), alpha=True, **profile), {}
    return write("after.tif", np.where(HOLE, np.array(float(kind), dtype), pixels), **profile), {}


KINDS = ["nodata", "given", "given, not alpha", "given, not mask", "mask", "mask, not nodata", "alpha"]
CASES = [(dtype, kind) for dtype in DTYPES for kind in KINDS]
CASES += [(dtype, kind) for dtype in ("float32", "float64") for kind in ("nan", "inf")]


@pytest.mark.parametrize("lattice", LATTICES)
@pytest.mark.parametrize(("dtype", "kind"), CASES)
def test_pixels_and_validity_over_types_kinds_and_lattices(
    write_raster: Write, dtype: str, kind: str, lattice: str
) -> None:
    transform, crs = place(lattice)
    pixels = smooth(dtype)
    path, options = holed(write_raster, kind, pixels, transform=transform, crs=crs)
    before = write_raster("before.tif", smooth(dtype))
    if dtype != "uint8":
        options |= RANGE
    with PairReader([before], [path], 96, ReadOptions(**options)) as reader:
        grid = reader.grid
        found = reader.read(grid.extent).after[:, :80].astype(float)

    sentinel = np.full((4, 96, 80), -9e9)
    source = np.concatenate([pixels.astype(np.float64), np.ones((1, 96, 80))])
    reproject(
        np.where(HOLE, -9e9, source),
        sentinel,
        src_transform=transform,
        src_crs=crs,
        src_nodata=-9e9,
        dst_transform=grid.transform,
        dst_crs=grid.crs,
        dst_nodata=-9e9,
        resampling=Resampling.nearest if lattice == "same" else Resampling.bilinear,
    )
    valid = sentinel[3] > 0
    expected = sentinel[:3] if dtype == "uint8" else np.clip((sentinel[:3] + 500) / 3000 * 255, 0, 255)
    seen = found.any(axis=2)
    # A pixel around infinity is lost in a warp, as GDAL knows one nodata value only; none is made up.
    lost = valid & ~seen
    assert not (seen & ~valid).any()
    assert not lost.any() or (kind == "inf" and lattice != "same" and lost.sum() < 200)
    difference = np.abs(found - np.round(expected).transpose(1, 2, 0))[seen]
    assert difference.max() <= (0 if lattice == "same" else 1 if lattice == "half a pixel off" else 4)
    assert difference.mean() < 0.5


def described(write: Write, pixels: Pixels, names: list[str]) -> str:
    path = write("scene.tif", pixels)
    with rasterio.open(path, "r+") as raster:
        raster.descriptions = names
    return path


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (("4", "3", "2"), (4, 3, 2)),
        (("B04", "b03", "B02"), (3, 4, 1)),
        (("nir", "1", "B03"), (5, 1, 4)),
        (("5",), (5, 5, 5)),
        (RGB, (1, 2, 3)),
    ],
)
@pytest.mark.parametrize("shift", [0, 5])
def test_bands_by_number_and_name(
    write_raster: Write, noise: Noise, names: tuple[str, ...], numbers: tuple[int, ...], shift: int
) -> None:
    pixels = noise(bands=5)
    path = described(write_raster, pixels, ["B02", "x", "B04", "B03", "NIR"])
    same = write_raster("three.tif", pixels[[number - 1 for number in numbers]])
    grid = write_raster("grid.tif", noise(bands=3), transform=from_origin(X + shift, Y - shift, 10, 10))
    with (
        PairReader([grid], [path], 32, ReadOptions(bands=RGB, after_bands=names)) as chosen,
        PairReader([grid], [same], 32) as plain,
    ):
        for window in windows(96, 80, 32):
            assert np.array_equal(chosen.read(window).after, plain.read(window).after)


def test_bands_by_colour(write_raster: Write, noise: Noise) -> None:
    pixels = noise(bands=4)
    path = write_raster("bgra.tif", pixels)
    with rasterio.open(path, "r+") as raster:
        raster.colorinterp = [ColorInterp.blue, ColorInterp.green, ColorInterp.red, ColorInterp.undefined]
    with open_scene_raster(path, ("red", "green", "blue"), ReadOptions()) as view:
        assert view.name == path
        assert np.array_equal(view.read(), pixels[[2, 1, 0]])


def test_one_band_is_shown_in_three_colours(write_raster: Write, noise: Noise) -> None:
    pixels = noise(bands=1)
    path = write_raster("gray.tif", pixels)
    with PairReader([path], [path], 96, ReadOptions(bands=("1",))) as reader:
        found = reader.read(Window(0, 0, 96, 80)).before
    assert np.array_equal(found[:, :80], np.repeat(pixels.transpose(1, 2, 0), 3, axis=2))


def test_bands_that_are_not_chosen_say_nothing_of_validity(write_raster: Write, noise: Noise) -> None:
    # A quality band that is 1 where the others are nodata, as in stacks of Landsat's.
    pixels = noise(bands=4)
    pixels[3] = 1
    pixels[:3, HOLE] = 0
    stack = write_raster("stack.tif", pixels, nodata=0)
    three = write_raster("three.tif", pixels[:3], nodata=0)
    grid = write_raster("grid.tif", noise(), transform=from_origin(X + 5, Y - 5, 10, 10))
    with PairReader([grid], [stack], 96) as reader, PairReader([grid], [three], 96) as plain:
        found, expected = reader.read(reader.grid.extent), plain.read(plain.grid.extent)
    assert np.array_equal(found.after, expected.after)
    assert found.after_valid == expected.after_valid < 0.8


def test_a_file_that_is_right_as_it_is_is_not_seen_through_a_view(write_raster: Write, noise: Noise) -> None:
    for path in (
        write_raster("rgb.tif", noise()),
        write_raster("nodata.tif", noise(), nodata=0),
        write_raster("rgba.tif", noise(bands=4), alpha=True),
        write_raster("mask.tif", noise(), mask=np.full((96, 80), 255, np.uint8)),
    ):
        with open_scene_raster(path, RGB, ReadOptions()) as raster:
            assert not isinstance(raster, BandView), path


def test_a_nodata_value_that_pixels_cannot_have_leaves_them_their_own(write_raster: Write, noise: Noise) -> None:
    pixels = noise()
    pixels[:, HOLE] = 0
    path = write_raster("scene.tif", pixels, nodata=0)
    with PairReader([path], [path], 96, ReadOptions(nodata=-9999.0)) as reader:
        assert reader.read(reader.grid.extent).after_valid == pytest.approx((96 * 80 - HOLE.sum()) / 96**2)


def test_a_view_keeps_overviews(write_raster: Write, noise: Noise) -> None:
    path = write_raster("scene.tif", noise(bands=5, height=256, width=256))
    with rasterio.open(path, "r+") as raster:
        raster.build_overviews([4], Resampling.average)
        expected = raster.read((5, 4, 3), out_shape=(3, 64, 64))
        assert not np.array_equal(expected, raster.read((5, 4, 3))[:, ::4, ::4])
    with open_scene_raster(path, ("5", "4", "3"), ReadOptions()) as view:
        assert np.array_equal(view.read(out_shape=(3, 64, 64)), expected)


def test_what_cannot_be_read_is_named_with_its_remedy(write_raster: Write, noise: Noise) -> None:
    palette = write_raster("palette.tif", noise(bands=1), photometric="palette")
    with rasterio.open(palette, "r+") as raster:
        raster.write_colormap(1, {value: (value, 0, 0, 255) for value in range(256)})
    cases: list[tuple[str, ReadOptions, str]] = [
        (described(write_raster, noise(), ["a", "a", "b"]), ReadOptions(bands=("a",)), "not alone of that name"),
        (write_raster("few.tif", noise(bands=2)), ReadOptions(), r"band '3' is not there.* 2 band\(s\): 1 \(gray\), 2"),
        (write_raster("deep.tif", noise().astype(np.uint16)), ReadOptions(), "--scaling dtype"),
        (write_raster("real.tif", noise().astype(np.float32)), ReadOptions(scaling="dtype"), "--scaling percentiles"),
        (write_raster("wide.tif", noise().astype(np.int32)), ReadOptions(scaling="dtype"), "hold int32"),
        (write_raster("waves.tif", noise().astype(np.complex64)), ReadOptions(scaling="percentiles"), "complex64"),
        (palette, ReadOptions(bands=("1",)), "-expand rgb"),
    ]
    for path, options, reason in cases:
        with pytest.raises(RasterError, match=reason) as raised:
            open_scene_raster(path, options.bands, options)
        assert path in str(raised.value)


def test_a_file_that_is_two_formats_is_refused(write_raster: Write, noise: Noise, tmp_path: Path) -> None:
    secret = write_raster("secret.tif", noise())
    document = (
        f'<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f"<SourceFilename>{secret}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    (tmp_path / "scene").write_text(document.ljust(400))
    (tmp_path / "scene.hdr").write_text(
        "ENVI\nsamples = 10\nlines = 10\nbands = 4\nheader offset = 0\nfile type = ENVI Standard\n"
        "data type = 1\ninterleave = bsq\nbyte order = 0\n"
    )
    with pytest.raises(RasterError, match="is ENVI and VRT at once"):
        open_scene_raster(str(tmp_path / "scene"), RGB, ReadOptions())
