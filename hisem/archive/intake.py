"""What is let in: rasters come from strangers, and by itself GDAL follows and decodes whatever their headers say."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache

from rasterio import Env
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioIOError
from rasterio.io import DatasetReader

from hisem.archive.gdal import cause_of, first_bytes, gdal_name, has_query, remedy_of, says_absent
from hisem.errors import RasterError
from hisem.storage import is_remote

MAX_BLOCK_BYTES = 512 * 2**20
"""Decoded size of the blocks that one pixel needs; GDAL decodes them whole."""

MAX_PIXELS = {"PNG": 2**28, "JPEG": 2**28, "JP2OpenJPEG": 2**30}
"""Of formats that are decoded from their beginning, or whose decoder first makes a table of the whole image: a JPEG
2000 of 300 bytes that claims 100,000 x 100,000 pixels takes 3 GB."""

MAX_IMAGES = 64
"""Images in one TIFF that has overviews or masks. Halving the largest there is takes 31, and as many masks."""

BESIDE = ((".ovr", ".OVR"), (".msk", ".MSK"))
"""How names of files with overviews and masks end; GDAL asks for the second where the first is absent."""

DEEPEST = 2
"""Files beside files beside a raster: `scene.tif.msk.ovr` holds overviews of a mask. gdaladdo makes none beyond."""

PAGE = re.compile(rb"\s*<(!doctype\s+html|html)\b", re.IGNORECASE)
"""How a web page begins, with which some servers answer for what is absent."""

LEADS_ELSEWHERE = re.compile(rb"<(\w+:)?\w*(dataset|gdal|capabilities|tilemap|services|wms|wcs|wmts)", re.IGNORECASE)
"""Elements by which GDAL knows documents that show other pixels, wherever in the beginning of a file they stand."""

Check = Callable[[str], bool]


def _once_if_remote(check: Check) -> Check:
    """`check` with its results kept for URIs: each costs requests, and a raster is opened for each of its blocks.

    What is raised is not kept.
    """
    kept = lru_cache(maxsize=65536)(check)
    return lambda uri: (kept if is_remote(uri) else check)(uri)


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
    if not has_query(uri):
        found = [uri]
        for _ in range(DEEPEST + 1):
            found = [beside for name in found for beside in _beside(name)]
        if found:
            raise RasterError(f"{found[0]}: is one file of overviews or masks too many beside each other; remove it.")
    # Now GDAL looks for overviews and masks beside it, while the settings hold.
    flags = raster.mask_flag_enums[0]
    has_mask = not {MaskFlags.all_valid, MaskFlags.nodata, MaskFlags.alpha}.intersection(flags)
    if (raster.overviews(1) or has_mask) and raster.driver == "GTiff":
        _are_bounded(uri)


def _require_own_overviews(raster: DatasetReader, uri: str) -> None:
    if any(name.upper() == "OVERVIEW_FILE" for name in raster.tags(ns="OVERVIEWS")):
        raise RasterError(f"{uri}: names another file for its overviews; make them anew (gdaladdo) or copy its pixels.")


def _beside(uri: str) -> list[str]:
    """The files with overviews and masks beside `uri`, each checked by itself."""
    found = (next((uri + suffix for suffix in suffixes if _is_there(uri + suffix)), None) for suffixes in BESIDE)
    return [name for name in found if name]


@_once_if_remote
def _is_there(uri: str) -> bool:
    """Whether GDAL finds overviews or masks of this name.

    Raises `RasterError` where they are no GeoTIFF, refer to others, or are not bounded, and where that is not known.
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
    return _are_bounded(uri)


def _is_page(uri: str) -> bool:
    """Whether a web page, which GDAL ignores, stands at `uri`."""
    # As much as GDAL's drivers look at to know their own.
    start = first_bytes(uri, 1024)
    return PAGE.match(start) is not None and LEADS_ELSEWHERE.search(start) is None


@_once_if_remote
def _are_bounded(uri: str) -> bool:
    """True. Raises `RasterError` where any image in a TIFF, be it overview or mask, is not bounded."""
    for number in range(1, MAX_IMAGES + 1):
        name = f"GTIFF_DIR:{number}:{gdal_name(uri)}"
        try:
            # Images without georeference have GDAL list the folder for world files.
            with Env(GDAL_GEOREF_SOURCES="NONE"), DatasetReader(name, driver=["GTiff"], sharing=False) as image:
                require_bounded(image, uri)
        except RasterioIOError as error:
            # Others GDAL cannot open as overviews or masks either.
            if f"directory {number} not found" in str(error):
                return True
    raise RasterError(f"{uri}: holds more than {MAX_IMAGES} images; copy the first alone (gdal_translate -of COG).")


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
