"""How GDAL is called: the settings under which rasters are read, and its errors in its own words."""

from __future__ import annotations

import os

import rasterio
from rasterio._err import CPLE_BaseError  # the base of what GDAL raises where rasterio does not wrap it
from rasterio.errors import RasterioError

GDAL_ERRORS = (RasterioError, CPLE_BaseError, OSError, ValueError)
"""Everything that opening, reading, warping or transforming raises for bad input."""

DRIVERS = ["GTiff", "ENVI", "PNG", "JPEG", "JP2OpenJPEG"]
"""The formats that are opened. Rasters come from strangers, so all of them hold their own pixels: a VRT
could name any file or address."""
FORMATS = "GeoTIFF, COG, ENVI, PNG, JPEG and JPEG 2000"

# MB of decoded blocks a process keeps; GDAL's own default is a share of the machine, which many workers would
# multiply. Not among the options below: they come and go with each call, and a cache that is resized is emptied,
# so that every read of a warped raster would warp its blocks anew (50 times slower, measured).
os.environ.setdefault("GDAL_CACHEMAX", "256")

OPTIONS = {
    # Sidecars (.hdr, .msk, .tfw) are looked up by name; a bucket or a large folder is never listed.
    "GDAL_DISABLE_READDIR_ON_OPEN": "TRUE",
    # A truncated JPEG is an error instead of grey pixels.
    "GDAL_ERROR_ON_LIBJPEG_WARNING": "TRUE",
    "GDAL_HTTP_MAX_RETRY": 3,
    "GDAL_HTTP_RETRY_DELAY": 1,
}


def gdal_env() -> rasterio.Env:
    """The settings as a context. Enter it for each call, never across a yield: it is global to the thread."""
    return rasterio.Env(**OPTIONS)


def cause_of(error: BaseException) -> str:
    """The innermost message of a chain of exceptions, without its full stop."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(getattr(error, "errmsg", "") or error).rstrip(". ")
