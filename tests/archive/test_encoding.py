"""Metadata by which numbers mean something else: read as they are meant, or refused, never other values."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from PIL import Image, PngImagePlugin

from hisem.archive.bands import open_scene_raster
from hisem.archive.grid import Window
from hisem.archive.options import ReadOptions
from hisem.archive.raster import open_raster
from hisem.archive.reader import PairReader
from hisem.errors import RasterError

Write = Callable[..., str]

y, x = np.mgrid[0:64, 0:64]
IMAGE: npt.NDArray[np.uint8] = np.stack([4 * x, 4 * y, 2 * x + 2 * y]).astype(np.uint8)
GRAY = ReadOptions(bands=("1",))
BITS = (1, 2, 3, 4, 5, 6, 7, 9, 10, 12, 15)


def in_range(high: int) -> ReadOptions:
    return ReadOptions(bands=("1",), scaling="range", scale_range=(0.0, float(high)))


def pixels(path: str, options: ReadOptions) -> npt.NDArray[np.uint8]:
    with PairReader([path], [path], 64, options) as reader:
        return reader.read(Window(0, 0, 64, 64)).after


def patched(path: str, tag: int, value: int, to: Path) -> str:
    """A copy of a little-endian classic TIFF with another value, a short, of a tag in its first directory."""
    data = bytearray(Path(path).read_bytes())
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    places = [first + 2 + 12 * number for number in range(count)]
    (place,) = (place for place in places if struct.unpack_from("<H", data, place)[0] == tag)
    struct.pack_into("<H", data, place + 8, value)
    to.write_bytes(data)
    return str(to)


@pytest.mark.parametrize("scaling", ["none", "dtype"])
@pytest.mark.parametrize("bits", BITS)
def test_fewer_bits_than_the_type_are_refused_where_its_full_range_counts(
    write_raster: Write, bits: int, scaling: Any
) -> None:
    stored = (IMAGE[:1].astype(np.uint16) << 8 >> (16 - bits)).astype(np.uint8 if bits < 8 else np.uint16)
    path = write_raster("a.tif", stored, nbits=bits)
    with pytest.raises(RasterError, match="--scale-range" if bits > 1 else "expand"):
        open_scene_raster(path, ["1"], ReadOptions(bands=("1",), scaling=scaling))
    if bits > 1:
        expected = np.rint(stored[0] / (2**bits - 1) * 255)
        assert np.array_equal(pixels(path, in_range(2**bits - 1))[..., 0], expected)


@pytest.mark.parametrize("bits", [7, 12])
def test_a_jpeg_2000_of_fewer_bits(tmp_path: Path, bits: int) -> None:
    stored = (IMAGE.astype(np.uint16) << 8 >> (16 - bits)).astype(np.uint8 if bits < 8 else np.uint16)
    profile = {"driver": "JP2OpenJPEG", "height": 64, "width": 64, "count": 3, "dtype": stored.dtype, "nbits": bits}
    with rasterio.open(path := tmp_path / "a.jp2", "w", **profile, quality=100, reversible="YES") as raster:
        raster.write(stored)
    with pytest.raises(RasterError, match=f"--scale-range 0 {2**bits - 1}"):
        open_scene_raster(str(path), ["1"], ReadOptions(bands=("1",), scaling="dtype"))
    assert np.array_equal(pixels(str(path), in_range(2**bits - 1))[..., 0], np.rint(stored[0] / (2**bits - 1) * 255))


@pytest.mark.parametrize("mode", ["1", "gray4", "P1", "P2", "P4", "P8"])
def test_pngs_of_few_bits_or_a_palette_are_refused(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.png"
    picture = Image.fromarray(IMAGE.transpose(1, 2, 0))
    if mode == "1":
        picture.convert("1").save(path)
    elif mode == "gray4":
        with rasterio.open(path, "w", driver="PNG", height=64, width=64, count=1, dtype="uint8", nbits=4) as raster:
            raster.write(IMAGE[:1] >> 4)
    else:
        picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=2 ** int(mode[1])).save(path, bits=int(mode[1]))
    with pytest.raises(RasterError, match="palette" if mode[0] == "P" else "bits"):
        open_scene_raster(str(path), ["1"], GRAY)


@pytest.mark.parametrize("bits", [1, 8, 16])
def test_inverted_grays_are_refused_as_pixels_and_as_masks(write_raster: Write, bits: int) -> None:
    stored = (IMAGE[:1] >> 7) if bits == 1 else IMAGE[:1].astype(f"uint{bits}")
    path = write_raster("a.tif", stored, photometric="MINISWHITE", **({"nbits": 1} if bits == 1 else {}))
    with pytest.raises(RasterError, match="WhiteIsZero"):
        open_scene_raster(path, ["1"], in_range(2**bits - 1))
    with pytest.raises(RasterError, match="WhiteIsZero"):
        open_raster(path)


@pytest.mark.parametrize("photometric", [0, 5, 8, 9, 10, 32803, 32844, 34892])
def test_other_colors_of_a_tiff_are_refused(write_raster: Write, tmp_path: Path, photometric: int) -> None:
    path = write_raster("a.tif", IMAGE, photometric="RGB")
    assert pixels(path, ReadOptions()).any()
    with pytest.raises(RasterError):
        open_raster(patched(path, 262, photometric, tmp_path / "b.tif"))


@pytest.mark.parametrize("photometric", ["CMYK", "CIELAB"])
def test_other_colors_as_gdal_writes_them_are_refused(write_raster: Write, photometric: str) -> None:
    bands = IMAGE if photometric == "CIELAB" else np.concatenate([IMAGE, IMAGE[:1]])
    with pytest.raises(RasterError, match="convert"):
        open_raster(write_raster("a.tif", bands, photometric=photometric))


def test_ycbcr_in_jpeg_comes_as_red_green_and_blue(write_raster: Write) -> None:
    rgb = write_raster("a.tif", IMAGE, compress="jpeg", photometric="ycbcr", interleave="pixel", jpeg_quality=98)
    assert np.abs(pixels(rgb, ReadOptions()).astype(int) - IMAGE.transpose(1, 2, 0)).mean() < 5


def test_a_jpeg_of_four_inks_is_refused(tmp_path: Path) -> None:
    Image.fromarray(IMAGE.transpose(1, 2, 0)).convert("CMYK").save(path := tmp_path / "a.jpg")
    with pytest.raises(RasterError, match="CMYK"):
        open_raster(str(path))


@pytest.mark.parametrize("space", [12, 14, 18, 24])
def test_other_color_spaces_of_a_jpeg_2000_are_refused(tmp_path: Path, space: int) -> None:
    Image.fromarray(IMAGE.transpose(1, 2, 0)).save(path := tmp_path / "a.jp2")
    content = path.read_bytes()
    open_raster(str(path)).close()
    place = content.index(b"colr") + 7
    path.write_bytes(content[:place] + struct.pack(">I", space) + content[place + 4 :])
    with pytest.raises(RasterError, match="color space"):
        open_raster(str(path))


def test_alpha_that_colors_are_multiplied_by_is_refused(write_raster: Write) -> None:
    bands = np.concatenate([IMAGE, IMAGE[:1]])
    open_raster(write_raster("a.tif", bands, photometric="RGB", ALPHA="NON-PREMULTIPLIED")).close()
    with pytest.raises(RasterError, match="multiplied"):
        open_raster(write_raster("b.tif", bands, photometric="RGB", ALPHA="PREMULTIPLIED"))


def test_a_color_table_counts_whatever_a_band_is_declared_to_be(write_raster: Write) -> None:
    path = write_raster("a.tif", IMAGE[:1], photometric="palette")
    with rasterio.open(path, "r+") as raster:
        raster.write_colormap(1, {0: (255, 0, 0, 255)})
    with pytest.raises(RasterError, match="palette"):
        open_scene_raster(path, ["1"], GRAY)
    open_raster(path).close()  # as a mask, whose values are what counts


@pytest.mark.parametrize("dtype", ["int8", "uint32", "int32", "complex64", "complex_int16"])
def test_types_of_other_ranges_are_refused(write_raster: Write, tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "a.tif"
    with rasterio.open(path, "w", driver="GTiff", height=64, width=64, count=1, dtype=dtype) as raster:
        raster.write(IMAGE[:1].astype("complex64" if dtype.startswith("complex") else dtype))
    for scaling in ("none", "dtype"):
        with pytest.raises(RasterError, match="needed"):
            open_scene_raster(str(path), ["1"], ReadOptions(bands=("1",), scaling=scaling))  # type: ignore[arg-type]


def turned(path: Path, orientation: int) -> None:
    """Write a picture that declares an orientation, in the way that the name of its file stands for."""
    picture, exif = Image.fromarray(IMAGE.transpose(1, 2, 0)), Image.Exif()
    exif[274] = orientation
    packet = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()
    if path.suffix == ".tif":
        picture.save(path, tiffinfo={274: orientation})
    elif path.name == "xmp.png":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", packet.decode())
        picture.save(path, pnginfo=info)
    elif path.stem == "xmp":
        picture.save(path, xmp=packet)
    elif path.stem == "text":
        info = PngImagePlugin.PngInfo()
        content = b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")
        info.add_text("Raw profile type exif", f"\nexif\n{len(content)}\n{content.hex()}\n")
        picture.save(path, pnginfo=info)
    elif path.stem == "last":
        picture.save(path)
        content = path.read_bytes()
        chunk = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
        added = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        path.write_bytes(content[:-12] + added + content[-12:])
    elif path.suffix == ".jp2":
        picture.save(path)
        box = b"uuidJpgTiffExif->JP2" + exif.tobytes().removeprefix(b"Exif\0\0")
        content, place = path.read_bytes(), path.read_bytes().index(b"jp2c") - 4
        path.write_bytes(content[:place] + struct.pack(">I", len(box) + 4) + box + content[place:])
    else:
        picture.save(path, exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.tif", "a.jpg", "a.png", "text.png", "last.png", "xmp.jpg", "xmp.png", "a.jp2"])
def test_turned_pictures_are_refused(tmp_path: Path, name: str, orientation: int) -> None:
    turned(path := tmp_path / name, orientation)
    if orientation == 1:
        open_raster(str(path)).close()
        return
    with pytest.raises(RasterError, match=f"orientation {orientation}"):
        open_raster(str(path))
