"""How GDAL is called: the settings under which rasters are read, and its errors in its own words."""

from __future__ import annotations

import logging
import os
import posixpath
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from xml.sax.saxutils import escape

import rasterio
import rasterio.shutil
from rasterio._err import CPLE_BaseError  # the base of what GDAL raises where rasterio does not wrap it
from rasterio._path import _parse_path, _vsi_path
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader, MemoryFile
from rasterio.session import DummySession

from hisem.errors import HisemError, RasterError, StorageError
from hisem.object_store import reason, s3_endpoint
from hisem.storage import is_remote

GDAL_ERRORS = (RasterioError, CPLE_BaseError, OSError, ValueError)
"""What transforming coordinates raises for bad input; for files see `raster_errors`."""

DRIVERS = ["GTiff", "ENVI", "PNG", "JPEG", "JP2OpenJPEG"]
"""The formats that are opened. Rasters come from strangers, so all of them hold their own pixels: a VRT
could name any file or address."""
FORMATS = "GeoTIFF, COG, ENVI, PNG, JPEG and JPEG 2000"

OWN_SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".jp2", ".j2k", ".j2c")
"""How names of the formats end that need no header beside them."""

DAMAGED = "the file is damaged or incomplete: copy it again"
MISSING_CODEC = (
    "This GDAL has no decoder for such a file, which may be sound: convert it where one is, "
    "with gdal_translate -co COMPRESS=DEFLATE"
)
LACKS_CODEC = r"missing codec|not configured|Unsupported JPEG (data|process)|SOF type|arithmetic"
"""How GDAL and its libraries say that they cannot decode something."""

LINE, LINES = 4096, 2**31 - 1
"""Bytes of a line, and lines, of the picture as which `raw_bytes` sees a file."""

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
    # Its own decoder of whole PNGs gives memory of its process where a file is cut short; libpng gives an error.
    "GDAL_PNG_WHOLE_IMAGE_OPTIM": "NO",
    # ENVI pixels that a file cut short does not have are an error instead of zeros.
    "RAW_CHECK_FILE_SIZE": "YES",
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


@contextmanager
def raw_bytes(uri: str) -> Iterator[Callable[[int, int], bytes]]:
    """Yields a function that returns `count` bytes at `offset` of a file as GDAL sees it; zeros follow its end.

    They come from GDAL's cache where it has looked at them: another client could get other answers from a server.
    """
    document = (
        f'<VRTDataset rasterXSize="{LINE}" rasterYSize="{LINES}"><VRTRasterBand dataType="Byte" band="1" '
        f'subClass="VRTRawRasterBand"><SourceFilename>{escape(_vsi_path(_parse_path(uri)))}</SourceFilename>'
        f"<ImageOffset>0</ImageOffset><PixelOffset>1</PixelOffset><LineOffset>{LINE}</LineOffset>"
        "</VRTRasterBand><GeoTransform>0, 1, 0, 0, 0, -1</GeoTransform></VRTDataset>"
    )
    allowed = {
        "GDAL_VRT_ENABLE_RAWRASTERBAND": "YES",
        "GDAL_VRT_RAWRASTERBAND_ALLOWED_SOURCE": "ALL",
        "RAW_CHECK_FILE_SIZE": "NO",
    }
    with rasterio.Env(session=DummySession(), **allowed), DatasetReader(document, driver=["VRT"], sharing=False) as raw:

        def read(offset: int, count: int) -> bytes:
            first, last = offset // LINE, min((offset + count - 1) // LINE, LINES - 1)
            lines = raw.read(1, window=((first, last + 1), (0, LINE))).tobytes() if first <= last else b""
            return lines[offset - first * LINE :][:count].ljust(count, b"\0")

        yield read


@contextmanager
def raster_errors(
    uri: str, problem: str, remedy: Callable[[BaseException], str | None] | None = None
) -> Iterator[None]:
    """Raise `RasterError` for every exception of the block that is not ours: the file, `problem`, cause and remedy.

    The one boundary between files and the rest: whatever opens a raster, reads it or looks at its metadata does so
    in such a block. `remedy` gives a sentence without its full stop, or None where the usual one holds.
    """
    try:
        yield
    except HisemError:
        raise
    except Exception as error:
        # Broken files raise what GDAL, PROJ, rasterio, numpy and decoders of text have: no list of classes is
        # complete, and one that is missing would end a run for a single file.
        ending = (remedy(error) if remedy else None) or codec_remedy(error) or damage_of(uri)
        raise RasterError(f"{uri}: {problem} ({cause_of(error)}). {ending[0].upper()}{ending[1:]}.") from error


def vrt_of(raster: DatasetReader) -> ET.Element:
    """The VRT document that GDAL writes of a raster; characters that XML has not, as in old metadata, are replaced."""
    with MemoryFile(ext=".vrt") as file:
        rasterio.shutil.copy(raster, file.name, driver="VRT")
        text = bytes(file.getbuffer()).decode(errors="replace")
    return ET.fromstring(re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text))


def file_stamp(uri: str) -> tuple[int, ...]:
    """What tells a local file from one that has replaced it: inode, size in bytes, time; empty for a remote one."""
    if is_remote(uri):
        return ()
    found = os.stat(uri)
    return found.st_ino, found.st_size, found.st_mtime_ns


def says_absent(error: BaseException) -> bool:
    """Whether a store answered that there is nothing of this name, and not that it could not look.

    Buckets, also those behind https, answer 403 for what is absent where they may not be listed.
    """
    return re.search(ABSENT, cause_of(error), re.IGNORECASE) is not None


def cause_of(error: BaseException) -> str:
    """The innermost message of a chain of exceptions, without its full stop and without characters that are none."""
    error = _innermost(error)
    message = str(getattr(error, "errmsg", "") or error).rstrip(". ") or type(error).__name__
    return message.encode(errors="backslashreplace").decode()


def remedy_of(error: BaseException, uri: str) -> str | None:
    """What to do where the store of a remote `uri` is the cause, else None."""
    # Of the first failure, the class that GDAL has for it says more than the server's own words.
    return reason(f"{type(_innermost(error)).__name__}: {cause_of(error)}") if is_remote(uri) else None


def codec_remedy(error: BaseException) -> str | None:
    """What to do where this GDAL cannot decode what the file holds, which may be sound; else None."""
    return MISSING_CODEC if re.search(LACKS_CODEC, cause_of(error), re.IGNORECASE) else None


def format_remedy(error: BaseException, uri: str) -> str | None:
    """What to do where GDAL finds none of `DRIVERS` fit for a file; None where something else has failed."""
    if "not recognized as being in a supported file format" not in cause_of(error):
        return None
    with suppress(*GDAL_ERRORS), gdal_env(uri), raw_bytes(uri) as read:
        if read(0, 3) == b"\xff\xd8\xff":
            return MISSING_CODEC  # of lossless JPEG, for example, GDAL only knows the beginning
    start, suffix = posixpath.splitext(uri)
    headers = start + ".hdr", uri + ".hdr"
    if suffix.lower() not in OWN_SUFFIXES and (is_remote(uri) or not any(map(os.path.exists, headers))):
        return (
            f"Readable are {FORMATS}. If it is ENVI, its header is missing, no such file as {headers[0]} or "
            f"{headers[1]}: copy that, too"
        )
    return f"Readable are {FORMATS}; if it is one of these, {DAMAGED}"


def damage_of(uri: str) -> str:
    """What is wrong, and to do, where pixels of an open raster cannot be read."""
    return f"{'either its store failed, as the log says, or ' if is_remote(uri) else ''}{DAMAGED}"


def _innermost(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
