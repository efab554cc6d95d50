"""What is let in: rasters come from strangers, and by itself GDAL follows and decodes whatever their headers say."""

from __future__ import annotations

import math
import os
import re
import stat
from contextlib import suppress
from functools import lru_cache

from rasterio import Env
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioIOError
from rasterio.io import DatasetReader

from hisem.archive.encoding import stored_orientation
from hisem.archive.gdal import DAMAGED, cause_of, file_stamp, has_query, raw_bytes, remedy_of, says_absent, vrt_of
from hisem.errors import RasterError
from hisem.storage import is_remote

MAX_BLOCK_BYTES = 512 * 2**20
"""Decoded size of the blocks that one pixel needs; GDAL decodes them whole."""

MAX_PIXELS = {"PNG": 2**28, "JPEG": 2**28, "JP2OpenJPEG": 2**30}
"""Of formats that are decoded from their beginning, or whose decoder first makes a table of the whole image: a JPEG
2000 of 300 bytes that claims 100,000 x 100,000 pixels takes 3 GB."""

MAX_LEVELS = 64
"""Overviews of one raster; halving the largest there is takes 31."""

BESIDE = ((".ovr", ".OVR"), (".msk", ".MSK"))
"""How names of files with overviews and masks end; GDAL asks for the second where the first is absent."""

DEEPEST = 2
"""Files beside files beside a raster: `scene.tif.msk.ovr` holds overviews of a mask. gdaladdo makes none beyond."""

METADATA_NAMES = ("metadata.dim", "summary.txt", "dim_", "rpc_", "vol-", "hdr-", "rpc-")
"""How names of metadata begin that GDAL looks for in a raster's folder and that the raster's own name is no part of."""

PAGE = re.compile(rb"\s*<(!doctype\s+html|html)\b", re.IGNORECASE)
"""How a web page begins, with which some servers answer for what is absent."""

LEADS_ELSEWHERE = re.compile(rb"<(\w+:)?\w*(dataset|gdal|capabilities|tilemap|services|wms|wcs|wmts)", re.IGNORECASE)
"""Elements by which GDAL knows documents that show other pixels, wherever in the beginning of a file they stand."""


def require_no_pipe_beside(path: str) -> None:
    """Raise `RasterError` where a named pipe or device beside a local raster has a name that GDAL could open.

    An open of a pipe waits for a writer without limit, and a device may never end. Sockets cannot be opened.
    """
    folder, name = os.path.split(os.path.abspath(path))
    with suppress(OSError):  # a folder that may not be listed
        pipes = _pipes_in(folder, os.stat(folder).st_mtime_ns)
        start = re.split(r"[._-]", name.casefold(), maxsplit=1)[0]
        if found := [pipe for pipe in pipes if pipe.casefold().startswith((start, *METADATA_NAMES))]:
            raise RasterError(
                f"{os.path.join(folder, found[0])}: is a named pipe or a device beside the raster {name}, which GDAL "
                "would open and wait for; remove it."
            )


@lru_cache(maxsize=1024)
def _pipes_in(folder: str, changed: int) -> tuple[str, ...]:
    """Names of the pipes and devices in a folder, listed once for each time at which it has changed.

    GDAL makes some sixty names from that of a raster, other ones in each version, so that asking for each by
    itself is neither cheaper nor complete.
    """
    with os.scandir(folder) as entries:
        others = [entry for entry in entries if not entry.is_file() and not entry.is_dir()]
    modes = {entry.name: os.stat(entry.path).st_mode for entry in others if os.path.exists(entry.path)}
    return tuple(name for name, mode in sorted(modes.items()) if not stat.S_ISSOCK(mode))


def require_no_hfa_beside(uri: str) -> None:
    """Raise `RasterError` where an ERDAS file beside a local raster would give it overviews and metadata.

    Call it before the raster is opened. Of a store GDAL does not ask for them: `gdal.SIDECARS` has no `.aux`.
    """
    if is_remote(uri):
        return
    for name in (f"{start}{suffix}" for start in (os.path.splitext(uri)[0], uri) for suffix in (".aux", ".AUX")):
        # What cannot be opened here cannot be opened by GDAL.
        with suppress(OSError), open(name, "rb") as file:
            if file.read(15).upper() == b"EHFA_HEADER_TAG":
                raise RasterError(f"{name}: is an ERDAS file, whose overviews would stand for {uri}; remove it.")


def require_self_contained(raster: DatasetReader, uri: str) -> None:
    """Raise `RasterError` where overviews or masks of `raster` are neither its own nor GeoTIFFs beside it.

    GDAL opens them by any driver and wherever they lie, so that pixels of other files, or answers of services, would
    stand for those of the raster. Raised, too, where they ask for too much memory (`require_bounded`), and where a
    store does not say whether they are there. Call it before anything is asked of overviews or masks.
    """
    _require_own_overviews(raster, uri)
    files = [] if has_query(uri) else _beside(uri)
    found = files
    for _ in range(DEEPEST):
        found = [beside for name in found for beside in _beside(name)]
        files = files + found
    if found:
        raise RasterError(f"{found[0]}: is one file of overviews or masks too many beside each other; remove it.")
    for name in files:
        _require_bounded_images(name, file_stamp(name))
        stored_orientation(name, file_stamp(name), "GTiff")
    # Each look at what is absent costs requests, so that it is done once for a file.
    looked = _looks(uri, file_stamp(uri))
    if raster.driver == "GTiff" and not looked:
        if raster.overviews(1) or _has_mask(raster):
            _require_bounded_images(uri, file_stamp(uri))
        looked.append(True)


@lru_cache(maxsize=65536)
def _looks(uri: str, stamp: tuple[int, ...]) -> list[bool]:
    """Holds something once the images in a file have been found to be bounded."""
    return []


def _require_own_overviews(raster: DatasetReader, uri: str) -> None:
    if any(name.upper() == "OVERVIEW_FILE" for name in raster.tags(ns="OVERVIEWS")):
        raise RasterError(f"{uri}: names another file for its overviews; make them anew (gdaladdo) or copy its pixels.")


def _beside(uri: str) -> list[str]:
    """The files with overviews and masks beside `uri`, each checked by itself."""
    # Each name costs requests, and a raster is opened for each of its blocks. What is raised is not kept.
    is_there = _is_there_once if is_remote(uri) else _is_there
    found = (next((uri + suffix for suffix in suffixes if is_there(uri + suffix)), None) for suffixes in BESIDE)
    return [name for name in found if name]


def _is_there(uri: str) -> bool:
    """Whether GDAL finds overviews or masks of this name.

    Raises `RasterError` where they are no GeoTIFF or refer to others, and where that is not known.
    """
    if not is_remote(uri) and not os.path.exists(uri):
        return False
    require_no_hfa_beside(uri)
    try:
        with DatasetReader(uri, driver=["GTiff"], sharing=False) as raster:
            _require_own_overviews(raster, uri)
    except RasterioIOError as error:
        if is_remote(uri) and says_absent(error):
            return False
        if "not recognized as being in a supported file format" not in str(error):
            remedy = remedy_of(error, uri) or "Remove it, or make it anew (gdaladdo)"
            raise RasterError(f"{uri}: cannot be looked at ({cause_of(error)}). {remedy}.") from error
        if is_remote(uri) and _is_page(uri):
            return False
        raise RasterError(f"{uri}: is no plain GeoTIFF; remove it, or make it anew (gdaladdo).") from error
    return True


_is_there_once = lru_cache(maxsize=65536)(_is_there)


def _is_page(uri: str) -> bool:
    """Whether a web page, which GDAL ignores, stands at `uri`."""
    # As much as GDAL's drivers look at to know their own.
    with raw_bytes(uri) as read:
        start = read(0, 1024)
    return PAGE.match(start) is not None and LEADS_ELSEWHERE.search(start) is None


@lru_cache(maxsize=65536)
def _require_bounded_images(uri: str, stamp: tuple[int, ...]) -> None:
    """Raise `RasterError` where an overview or mask of a GeoTIFF is not bounded; it looks once for each `stamp`."""
    with DatasetReader(uri, driver=["GTiff"], sharing=False) as raster:
        levels = len(raster.overviews(1))
        _require_bounded_mask(raster, uri)
    if levels > MAX_LEVELS:
        raise RasterError(f"{uri}: has {levels} overviews, more than {MAX_LEVELS}; make them anew (gdaladdo).")
    # Images without georeference would have GDAL list the folder for world files.
    with Env(GDAL_GEOREF_SOURCES="NONE"):
        for level in range(levels):
            with DatasetReader(uri, driver=["GTiff"], sharing=False, overview_level=level) as overview:
                require_bounded(overview, uri)
                _require_bounded_mask(overview, uri)


def _require_bounded_mask(raster: DatasetReader, uri: str) -> None:
    """Raise `RasterError` where the mask that `raster` has beside its bands is not bounded."""
    if not _has_mask(raster):
        return
    mask = vrt_of(raster).find("MaskBand")  # of all that rasterio shows, blocks of masks are in this document alone
    for source in () if mask is None else mask.iter("SourceProperties"):
        _require_bounded_block(int(source.attrib["BlockYSize"]), int(source.attrib["BlockXSize"]), 1, uri)


def _has_mask(raster: DatasetReader) -> bool:
    return not {MaskFlags.all_valid, MaskFlags.nodata, MaskFlags.alpha}.intersection(raster.mask_flag_enums[0])


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
    _require_bounded_block(height, width, bands * max(map(_item_size, raster.dtypes)), uri)


def require_whole(raster: DatasetReader, uri: str) -> None:
    """Raise `RasterError` where a local ENVI file is shorter than its header says: GDAL has zeros for the rest."""
    if raster.driver != "ENVI" or is_remote(uri):
        return
    start = raster.tags(ns="ENVI").get("header_offset", "0")
    pixels = raster.height * raster.width * raster.count
    needed = pixels * _item_size(raster.dtypes[0]) + (int(start) if start.isdigit() else 0)
    if (size := os.stat(uri).st_size) < needed:
        raise RasterError(f"{uri}: has {size} bytes where its header asks for {needed}; {DAMAGED}.")


def _require_bounded_block(height: int, width: int, pixel: int, uri: str) -> None:
    """Raise `RasterError` for blocks of `height` x `width` pixels of so many bytes that are too large."""
    size = height * width * pixel
    if size > MAX_BLOCK_BYTES:
        raise RasterError(
            f"{uri}: is stored in blocks of {height} x {width} pixels, of which one takes {size} bytes, more than "
            f"{MAX_BLOCK_BYTES}; store it in smaller ones (gdal_translate -of COG)."
        )


def _item_size(dtype: str) -> int:
    """Bytes of a pixel of one band."""
    digits = "".join(filter(str.isdigit, dtype))
    return max(1, int(digits or 64) // 8 * (2 if dtype == "complex_int16" else 1))
