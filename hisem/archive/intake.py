"""What is let in: rasters come from strangers, and by itself GDAL follows and decodes whatever their headers say."""

from __future__ import annotations

import math
import os
from functools import lru_cache

from rasterio.errors import RasterioIOError
from rasterio.io import DatasetReader

from hisem.errors import RasterError
from hisem.storage import is_remote

MAX_BLOCK_BYTES = 512 * 2**20
"""Decoded size of the blocks that one pixel needs; GDAL decodes them whole."""

MAX_PIXELS = {"PNG": 2**28, "JPEG": 2**28, "JP2OpenJPEG": 2**30}
"""Of formats that are decoded from their beginning, or whose decoder first makes a table of the whole image: a JPEG
2000 of 300 bytes that claims 100,000 x 100,000 pixels takes 3 GB."""

BESIDE = (".ovr", ".msk")
"""How names of files with overviews and masks end."""


def require_self_contained(raster: DatasetReader, uri: str) -> None:
    """Raise `RasterError` where overviews or masks of `raster` are neither its own nor GeoTIFFs beside it.

    GDAL opens them by any driver and wherever they lie, so that pixels of other files, or answers of services, would
    stand for those of the raster. Call it before anything is asked of overviews or masks.
    """
    if any(name.upper() == "OVERVIEW_FILE" for name in raster.tags(ns="OVERVIEWS")):
        raise RasterError(f"{uri}: names another file for its overviews; make them anew (gdaladdo) or copy its pixels.")
    for suffix in BESIDE:
        beside = f"{uri}{suffix}"
        if is_remote(beside):
            _require_geotiff_once(beside)
        elif os.path.exists(beside):
            _require_geotiff(beside)


def _require_geotiff(uri: str) -> None:
    """Raise `RasterError` for a file that is no GeoTIFF, or not self-contained. An absent one does no harm."""
    try:
        with DatasetReader(uri, driver=["GTiff"], sharing=False) as raster:
            require_self_contained(raster, uri)
    except RasterioIOError as error:
        if "not recognized" in str(error):
            raise RasterError(f"{uri}: is no plain GeoTIFF; remove it, or make it anew (gdaladdo).") from error


# Each costs two requests, and a raster is opened once for each of its blocks.
_require_geotiff_once = lru_cache(maxsize=65536)(_require_geotiff)


def require_bounded(raster: DatasetReader, uri: str) -> None:
    """Raise `RasterError` where a header asks for more memory than any pixel is worth, or for hours of decoding."""
    most = MAX_PIXELS.get(raster.driver, math.inf)
    if raster.height * raster.width > most:
        raise RasterError(
            f"{uri}: claims {raster.height} x {raster.width} pixels, more than the {most} of a {raster.driver}, which "
            "is not decoded in parts; convert it to a tiled GeoTIFF (gdal_translate -of COG)."
        )
    height, width = raster.block_shapes[0]
    # Bands that lie together are decoded together; otherwise three and a mask are.
    together = raster.tags(ns="IMAGE_STRUCTURE").get("INTERLEAVE") == "PIXEL"
    bands = raster.count if together else min(raster.count, 4)
    size = height * width * bands * max(map(_item_size, raster.dtypes))
    if size > MAX_BLOCK_BYTES:
        raise RasterError(
            f"{uri}: is stored in blocks of {height} x {width} pixels, of which one takes {size} bytes, more than "
            f"{MAX_BLOCK_BYTES}; store it in smaller ones (gdal_translate -of COG)."
        )


def _item_size(dtype: str) -> int:
    """Bytes of a pixel of one band."""
    digits = "".join(filter(str.isdigit, dtype))
    return max(1, int(digits or 64) // 8)
