"""How GDAL is called: the settings under which rasters are read, and its errors in its own words."""

from __future__ import annotations

import logging
import os
import posixpath
import re
from xml.sax.saxutils import escape

import rasterio
from rasterio._err import CPLE_BaseError  # the base of what GDAL raises where rasterio does not wrap it
from rasterio._path import _parse_path, _vsi_path
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.session import DummySession

from hisem.errors import StorageError
from hisem.object_store import reason, s3_endpoint
from hisem.storage import is_remote

GDAL_ERRORS = (RasterioError, CPLE_BaseError, OSError, ValueError)
"""Everything that opening, reading, warping or transforming raises for bad input."""

DRIVERS = ["GTiff", "ENVI", "PNG", "JPEG", "JP2OpenJPEG"]
"""The formats that are opened. Rasters come from strangers, so all of them hold their own pixels: a VRT
could name any file or address."""
FORMATS = "GeoTIFF, COG, ENVI, PNG, JPEG and JPEG 2000"

DAMAGED = "the file is damaged or incomplete: copy it again"

# MB of decoded blocks a process keeps; GDAL's own default is a share of the machine, which many workers would
# multiply. Not among the options below: they come and go with each call, and a cache that is resized is emptied,
# so that every read of a warped raster would warp its blocks anew (50 times slower, measured).
os.environ.setdefault("GDAL_CACHEMAX", "256")

logging.getLogger("rasterio").setLevel(logging.WARNING)  # would repeat every error that becomes a row

OPTIONS = {
    # Sidecars (.hdr, .msk, .tfw) are looked up by name; a bucket or a large folder is never listed.
    "GDAL_DISABLE_READDIR_ON_OPEN": "TRUE",
    # A truncated JPEG is an error instead of grey pixels.
    "GDAL_ERROR_ON_LIBJPEG_WARNING": "TRUE",
    # Of a VRT, which only we make, nothing but views of bands is needed: no code, no raw bytes of any file.
    "GDAL_VRT_ENABLE_PYTHON": "NO",
    "GDAL_VRT_ENABLE_RAWRASTERBAND": "NO",
}
"""What the rest relies on, whatever the environment says."""

REMOTE_OPTIONS = {
    # Busy servers (429, 5xx) and connections that break are tried again, after 1, 2 and 4 seconds.
    "GDAL_HTTP_MAX_RETRY": "3",
    "GDAL_HTTP_RETRY_DELAY": "1",
    # By itself libcurl waits minutes for a connection, and for data for ever, with the interpreter's lock held.
    "GDAL_HTTP_CONNECTTIMEOUT": "10",
    "GDAL_HTTP_LOW_SPEED_LIMIT": "1000",
    "GDAL_HTTP_LOW_SPEED_TIME": "30",
    # The header of a large tiled file in one request, instead of one for each 16 kB of it.
    "GDAL_INGESTED_BYTES_AT_OPEN": "32768",
}
"""What suits tiled files behind a URI; the environment has the last word. That neighbouring blocks become one
request, and scattered ones go out side by side, is GDAL's default."""

SIDECARS = (".hdr", ".msk", ".ovr", ".aux.xml", ".prj", ".wld", "w")
"""How the names of files end that GDAL is to look for beside a raster; the last are world files (.tfw, .pgw)."""

ABSENT = r"response code: 40[34]\b|key does not exist|NoSuchKey|No such object|Access ?Denied|not authorized to perform"
"""How GDAL and stores say that nothing of a name is there, or that nothing is shown."""


def gdal_env(uri: str | None = None) -> rasterio.Env:
    """The settings as a context. Enter it for each call, never across a yield: it is global to the thread.

    With the `uri` of the raster that is opened or read, GDAL asks a store for `SIDECARS` alone: the drivers and
    metadata readers know a hundred names, each costs a request, and what they name is not looked at by
    `hisem.archive.intake`. A view opens its raster when it is read, and again where GDAL has closed it meanwhile.

    GDAL finds credentials itself, in the environment and where AWS's own tools look; with rasterio's own
    session it would depend on whether boto3 is installed.
    """
    options = REMOTE_OPTIONS | _server_options()
    if uri is not None:
        name = uri.partition("?")[0] if has_query(uri) else uri
        own = posixpath.splitext(name)[1] or "{noext}"
        options["CPL_VSIL_CURL_ALLOWED_EXTENSIONS"] = ",".join([own, *SIDECARS])
    defaults = {name: value for name, value in options.items() if name not in os.environ}
    return rasterio.Env(session=DummySession(), **defaults, **OPTIONS)


def _server_options() -> dict[str, str]:
    """The S3-compatible server that the environment names, in GDAL's terms; it has the bucket in its paths."""
    try:
        endpoint = s3_endpoint()
    except StorageError:
        return {}  # opening a raster of a bucket tells of it; others do without
    if endpoint is None:
        return {}
    scheme, _, host = endpoint.partition("://")
    return {
        "AWS_S3_ENDPOINT": host,
        "AWS_HTTPS": "YES" if scheme == "https" else "NO",
        "AWS_VIRTUAL_HOSTING": "FALSE",
    }


def has_query(uri: str) -> bool:
    """Whether `uri` is a web address with a query; GDAL looks for no files beside such."""
    return "?" in uri and is_remote(uri) and not uri.startswith(("s3://", "gs://"))


def first_bytes(uri: str, count: int) -> bytes:
    """The first `count` bytes of a file that GDAL has looked at, from its cache; zeros follow the end of a shorter one.

    Another client could be told other things by a server than GDAL is. Call it within `gdal_env`.
    """
    document = (
        f'<VRTDataset rasterXSize="{count}" rasterYSize="1"><VRTRasterBand dataType="Byte" band="1" '
        f'subClass="VRTRawRasterBand"><SourceFilename>{escape(_vsi_path(_parse_path(uri)))}</SourceFilename>'
        "<ImageOffset>0</ImageOffset><PixelOffset>1</PixelOffset></VRTRasterBand></VRTDataset>"
    )
    allowed = {"GDAL_VRT_ENABLE_RAWRASTERBAND": "YES", "GDAL_VRT_RAWRASTERBAND_ALLOWED_SOURCE": "ALL"}
    with rasterio.Env(session=DummySession(), **allowed), DatasetReader(document, driver=["VRT"], sharing=False) as raw:
        return bytes(raw.read(1).tobytes())


def says_absent(error: BaseException) -> bool:
    """Whether a store answered that there is nothing of this name, and not that it could not look.

    Buckets, also those behind https, answer 403 for what is absent where they may not be listed.
    """
    return re.search(ABSENT, cause_of(error), re.IGNORECASE) is not None


def cause_of(error: BaseException) -> str:
    """The innermost message of a chain of exceptions, without its full stop."""
    error = _innermost(error)
    return str(getattr(error, "errmsg", "") or error).rstrip(". ")


def remedy_of(error: BaseException, uri: str) -> str | None:
    """What to do where the store of a remote `uri` is the cause, else None."""
    # Of the first failure, the class that GDAL has for it says more than the server's own words.
    return reason(f"{type(_innermost(error)).__name__}: {cause_of(error)}") if is_remote(uri) else None


def damage_of(uri: str) -> str:
    """What is wrong, and to do, where pixels of an open raster cannot be read."""
    return f"{'its store failed, as the log says, or ' if is_remote(uri) else ''}{DAMAGED}"


def _innermost(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
