"""Files cut short at any length: each read gives the pixels of the whole file, or fails."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.enums import Resampling

from hisem.archive.grid import Window
from hisem.archive.options import ReadOptions
from hisem.archive.reader import PairReader, TilePixels
from hisem.errors import RasterError

ORIGIN = Affine(10.0, 0.0, 500_000.0, 0.0, -10.0, 4_000_000.0)
SIDE = 96
COARSE = ReadOptions(resolution=20.0)
"""Read from overviews where there are any."""

KINDS: dict[str, dict[str, Any]] = {
    "striped.tif": {},
    "tiled.tif": {"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "deflate"},
    "lzw.tif": {"compress": "lzw", "predictor": 2, "interleave": "pixel"},
    "jpeg.tif": {"compress": "jpeg", "photometric": "ycbcr", "interleave": "pixel"},
    "zstd.tif": {"compress": "zstd", "BIGTIFF": "YES"},
    "cog.tif": {"driver": "COG", "blocksize": 64, "compress": "deflate"},
    "envi.bin": {"driver": "ENVI"},
    "picture.png": {"driver": "PNG"},
    "picture.jpg": {"driver": "JPEG"},
    "picture.jp2": {"driver": "JP2OpenJPEG", "quality": 100, "reversible": "YES"},
}


def write(path: Path, profile: dict[str, Any], internal: bool) -> None:
    """Write a picture, as GeoTIFF with mask and overviews in it or beside it."""
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    pixels = np.stack([100 + 60 * np.sin(x / 9 + k) + 40 * np.cos(y / 7 - k) for k in range(3)]).astype("uint8")
    common = {"height": SIDE, "width": SIDE, "count": 3, "dtype": "uint8", "crs": "EPSG:32633", "transform": ORIGIN}
    mask = np.where((x + y) % 31 < 5, 0, 255).astype("uint8")
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal, TIFF_USE_OVR=not internal):
        with rasterio.open(path, "w", **{"driver": "GTiff", **common, **profile}) as raster:
            raster.write(pixels)
            if profile.get("driver", "GTiff") == "GTiff":
                raster.write_mask(mask)
        if profile.get("driver", "GTiff") == "GTiff":
            with rasterio.open(path, "r+") as raster:
                raster.build_overviews([2, 4], Resampling.nearest)


def read(path: Path, options: ReadOptions) -> TilePixels:
    with PairReader([str(path)], [str(path)], SIDE, options) as reader:
        return reader.read(Window(0, 0, reader.grid.height, reader.grid.width))


CASES = [(name, True) for name in KINDS] + [(name, False) for name in ("tiled.tif",)]


@pytest.mark.parametrize(("name", "internal"), CASES)
def test_a_file_cut_short_gives_its_pixels_or_fails(tmp_path: Path, name: str, internal: bool) -> None:
    """Each file of a raster at 20 lengths and without its last bytes; .aux.xml has nothing that counts here."""
    whole = tmp_path / "whole"
    whole.mkdir()
    write(whole / name, KINDS[name], internal)
    wrong = []
    for options in (ReadOptions(), COARSE):
        expected = read(whole / name, options)
        for part in (part for part in whole.iterdir() if part.suffix != ".xml"):
            content = part.read_bytes()
            for cut in {len(content) - 1, len(content) - 6, *(len(content) * n // 21 for n in range(21))}:
                shutil.copytree(whole, folder := tmp_path / f"{part.name}-{cut}-{options.resolution}")
                (folder / part.name).write_bytes(content[:cut])
                with suppress(RasterError):
                    found = read(folder / name, options)
                    same = np.array_equal(found.after, expected.after)
                    if not same or not np.array_equal(found.after_mask, expected.after_mask):
                        wrong.append((part.name, cut, len(content), options.resolution))
    assert wrong == []
