"""One raster on disk or behind a URI: opened safely, checked, and located.

Every defect becomes a `RasterError` that names the file, the cause and the remedy.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import DatasetReader
from rasterio.warp import transform_bounds

from hisem import storage
from hisem.archive.gdal import DRIVERS, FORMATS, GDAL_ERRORS, cause_of, gdal_env
from hisem.archive.grid import Grid, is_identity
from hisem.errors import RasterError

MAX_DRIFT = 1e-3
"""Pixels by which a raster may deviate from a grid anywhere and still count as lying on it."""


def open_raster(uri: str) -> DatasetReader:
    """Open one raster for reading; only its header is read.

    Raises `RasterError` where it is absent, empty, a folder, unreadable, of another format, rotated, or
    georeferenced by control points or rational polynomials alone.
    """
    if not storage.is_remote(uri):
        _require_readable_file(uri)
    try:
        with gdal_env(), warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            # `rasterio.open` takes one driver only; the class behind it takes a list, as GDAL does.
            raster = DatasetReader(uri, driver=DRIVERS, sharing=False)
            unrectified = raster.crs is None and bool(raster.gcps[0] or raster.rpcs)
    except GDAL_ERRORS as error:
        raise RasterError(
            f"{uri}: cannot be opened as a raster ({cause_of(error)}). Readable are {FORMATS}; "
            "if it is one of these, the file is damaged or incomplete: copy it again."
        ) from error
    if unrectified or not _is_upright(raster):
        raster.close()
        found = "control points or RPCs, but no CRS" if unrectified else f"geotransform {tuple(raster.transform)[:6]}"
        raise RasterError(
            f"{uri}: found {found}; a raster whose rows and columns follow the map axes is needed, "
            "so rotated or unrectified ones must be warped first (gdalwarp)."
        )
    return raster


def _require_readable_file(path: str) -> None:
    """Raise `RasterError` for what GDAL would report as one vague failure: absent, folder, empty, denied."""
    try:
        size = os.stat(path).st_size
    except FileNotFoundError as error:
        raise RasterError(f"{path}: no such file; correct the catalogue or restore the file.") from error
    except (OSError, ValueError) as error:
        raise RasterError(f"{path}: cannot be reached ({error}); correct the catalogue or the permissions.") from error
    if os.path.isdir(path):
        raise RasterError(f"{path}: is a folder; name the raster file inside it.")
    if not os.access(path, os.R_OK):
        raise RasterError(f"{path}: no permission to read it; grant read access to the user of this job.")
    if size == 0:
        raise RasterError(f"{path}: the file is empty; copy it again.")


def _is_upright(raster: DatasetReader) -> bool:
    """Whether rows and columns follow the map axes (flipped ones too) to within a fraction of a pixel."""
    t = raster.transform
    if not np.isfinite(tuple(t)).all() or t.a == 0 or t.e == 0:
        return False
    return max(abs(t.b / t.a) * raster.height, abs(t.d / t.e) * raster.width) <= MAX_DRIFT


def require_rgb(raster: DatasetReader) -> None:
    """Raise `RasterError` unless the first three bands are uint8, which is all that is read for now."""
    kinds = sorted(set(raster.dtypes[:3]))
    if raster.count < 3 or kinds != ["uint8"]:
        raise RasterError(
            f"{raster.name}: found {raster.count} band(s) of {' and '.join(kinds)}; at least 3 bands of uint8 "
            "are supported now, the first three being red, green and blue. Convert it first "
            "(gdal_translate -ot Byte -scale, with -b to choose bands)."
        )


def bounds_in(raster: DatasetReader, crs: CRS | None) -> tuple[float, float, float, float]:
    """Left, bottom, right and top of `raster` in `crs`, the before scene's.

    Raises `RasterError` where only one of the two has a CRS, or the bounds have no image in `crs`.
    """
    left, bottom, right, top = raster.bounds
    bounds = min(left, right), min(bottom, top), max(left, right), max(bottom, top)
    if raster.crs == crs:
        return bounds
    if raster.crs is None or crs is None:
        raise RasterError(
            f"{raster.name}: has {raster.crs or 'no CRS'} where the before scene has {crs or 'no CRS'}; "
            "both dates need a CRS, or neither. Assign the missing one (gdal_edit.py -a_srs)."
        )
    try:
        moved = transform_bounds(raster.crs, crs, *bounds)
    except GDAL_ERRORS as error:
        raise RasterError(f"{raster.name}: bounds {bounds} have no place in {crs} ({cause_of(error)}).") from error
    if not all(map(math.isfinite, moved)):
        raise RasterError(f"{raster.name}: bounds {bounds} have no place in {crs}; check the CRS of both dates.")
    return moved


def grid_of(rasters: Sequence[DatasetReader]) -> Grid:
    """The grid of one date: CRS, resolution and pixel lattice of its first raster, extent of them all.

    The extent's edges are rounded to whole pixels, so that the first raster is never resampled.

    Raises `RasterError` for several rasters without georeference, whose places are unknown.
    """
    first = rasters[0]
    if is_identity(first.transform):
        if len(rasters) > 1:
            raise RasterError(f"{first.name}: has no geotransform, so {len(rasters)} rasters cannot form one scene.")
        return Grid(first.height, first.width, first.transform, first.crs)
    x_size, y_size = abs(first.transform.a), abs(first.transform.e)
    lefts, bottoms, rights, tops = zip(*(bounds_in(raster, first.crs) for raster in rasters), strict=True)
    # Edges in pixels of the first raster's lattice, rightwards and downwards from its upper left corner.
    left, right = round((min(lefts) - lefts[0]) / x_size), round((max(rights) - lefts[0]) / x_size)
    top, bottom = round((tops[0] - max(tops)) / y_size), round((tops[0] - min(bottoms)) / y_size)
    transform = Affine(x_size, 0.0, lefts[0] + left * x_size, 0.0, -y_size, tops[0] - top * y_size)
    return Grid(bottom - top, right - left, transform, first.crs)
