"""One raster on disk or behind a URI: opened safely, checked, and located.

Every defect becomes a `RasterError` that names the file, the cause and the remedy.
"""

from __future__ import annotations

import math
import os
import stat
import warnings
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import DatasetReader
from rasterio.warp import transform_bounds

from hisem import storage
from hisem.archive.addresses import objection
from hisem.archive.encoding import require_intensities
from hisem.archive.gdal import DRIVERS, GDAL_ERRORS, cause_of, format_remedy, gdal_env, raster_errors, remedy_of
from hisem.archive.globe import projected, turn_of, unwrapped
from hisem.archive.grid import Grid, is_identity
from hisem.archive.intake import (
    require_bounded,
    require_no_hfa_beside,
    require_no_pipe_beside,
    require_self_contained,
    require_whole,
)
from hisem.archive.outlines import edges
from hisem.errors import RasterError, StorageError
from hisem.object_store import require_no_secret, s3_endpoint

MAX_DRIFT = 1e-3
"""Pixels by which a raster may deviate from a grid anywhere and still count as lying on it."""

BOUNDS_SEGMENTS = 22
"""Of each edge, by which bounds are projected; as many as GDAL takes."""

EQUATOR_RADIUS, ECCENTRICITY_SQUARED = 6_378_137.0, 6.694379990141e-3
"""The ellipsoid of WGS 84, in metres."""


def open_raster(uri: str) -> DatasetReader:
    """Open one raster for reading; only its header is read.

    Raises `RasterError` where it is absent, empty, a folder, unreadable, of another format, rotated, or
    georeferenced by control points or rational polynomials alone; where a store refuses it or cannot be
    reached; where the URI holds a secret; and for what `hisem.archive.intake` does not let in.
    """
    _require_usable_uri(uri)
    if not storage.is_remote(uri):
        _require_readable_file(uri)
        require_no_pipe_beside(uri)
        require_no_hfa_beside(uri)
    problem = "cannot be opened as a raster"
    with (
        raster_errors(uri, problem, lambda error: remedy_of(error, uri) or format_remedy(error, uri)),
        gdal_env(uri),
        warnings.catch_warnings(),
        ExitStack() as stack,
    ):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        # `rasterio.open` takes one driver only; the class behind it takes a list, as GDAL does.
        raster = stack.enter_context(DatasetReader(uri, driver=DRIVERS, sharing=False))
        require_bounded(raster, uri)
        require_whole(raster, uri)
        require_self_contained(raster, uri)
        require_intensities(raster, uri)
        unrectified = raster.crs is None and bool(raster.gcps[0] or raster.rpcs)
        _ = raster.mask_flag_enums  # has GDAL look for the mask beside it now, while the settings hold
        if unrectified or not _is_upright(raster):
            found = (
                "control points or RPCs, but no CRS" if unrectified else f"geotransform {tuple(raster.transform)[:6]}"
            )
            raise RasterError(
                f"{uri}: found {found}; a raster whose rows and columns follow the map axes is needed, "
                "so rotated or unrectified ones must be warped first (gdalwarp)."
            )
        stack.pop_all()
    return raster


def _require_usable_uri(uri: str) -> None:
    """Raise `RasterError` for a URI that holds a secret or is of a kind not opened, or a server that is misnamed."""
    require_no_secret(uri, RasterError)
    if told := objection(uri):
        raise RasterError(f"{uri if uri[:4] != '/vsi' else 'a raster'}: {told}.")
    if uri.startswith("s3://"):
        try:
            s3_endpoint()
        except StorageError as error:
            raise RasterError(f"{uri}: cannot be opened. {error}") from error


def _require_readable_file(path: str) -> None:
    """Raise `RasterError` for what GDAL would report as one vague failure: absent, folder, empty, denied."""
    try:
        found = os.stat(path)
    except FileNotFoundError as error:
        raise RasterError(f"{path}: no such file; correct the catalogue or restore the file.") from error
    except (OSError, ValueError) as error:
        raise RasterError(f"{path}: cannot be reached ({error}); correct the catalogue or the permissions.") from error
    if stat.S_ISDIR(found.st_mode):
        raise RasterError(f"{path}: is a folder; name the raster file inside it.")
    if not stat.S_ISREG(found.st_mode):
        raise RasterError(f"{path}: is a named pipe, socket or device; name a raster file.")
    if not os.access(path, os.R_OK):
        raise RasterError(f"{path}: no permission to read it; grant read access to the user of this job.")
    if found.st_size == 0:
        raise RasterError(f"{path}: the file is empty; copy it again.")


def _is_upright(raster: DatasetReader) -> bool:
    """Whether rows and columns follow the map axes (flipped ones too) to within a fraction of a pixel."""
    t = raster.transform
    if not np.isfinite(tuple(t)).all() or t.a == 0 or t.e == 0:
        return False
    return max(abs(t.b / t.a) * raster.height, abs(t.d / t.e) * raster.width) <= MAX_DRIFT


def bounds_in(raster: DatasetReader, crs: CRS | None) -> tuple[float, float, float, float]:
    """Return left, bottom, right and top of `raster` in `crs`, the before scene's.

    Where x repeats around the Earth, left is less than right for what crosses the antimeridian, too, so that one of
    them lies beyond it.

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
    return _in_one_piece(raster.crs, crs, bounds, moved)


def _in_one_piece(
    source: CRS, target: CRS, bounds: tuple[float, float, float, float], moved: tuple[float, float, float, float]
) -> tuple[float, float, float, float]:
    """`moved`, which is `bounds` in `target`, without a jump from one side of the Earth to the other."""
    turn = turn_of(target)
    if turn is None:
        return moved
    x = projected(source, target, edges(np.array([bounds]), BOUNDS_SEGMENTS, BOUNDS_SEGMENTS))[0, :, 0]
    x = unwrapped(x, turn)
    left, right = float(x.min()), float(x.max())
    around = abs(x[-1] - x[0]) > turn / 2  # of a pole
    if not math.isfinite(left) or around or 0 <= moved[2] - moved[0] <= (right - left) * (1 + 1e-6):
        return moved
    return left, moved[1], right, moved[3]


def grid_of(rasters: Sequence[DatasetReader], resolution: float | None = None) -> Grid:
    """The grid of one date: CRS and lattice of its first raster, extent of them all.

    Pixels are the first raster's, or of `resolution` metres from its upper left corner on. The extent's
    edges are rounded to whole pixels, so that the first raster is not resampled where its pixels are kept.

    Raises `RasterError` for several rasters without georeference, whose places are unknown, and for a
    resolution where metres mean nothing or one pixel is more than the scene.
    """
    first = rasters[0]
    if is_identity(first.transform):
        if len(rasters) > 1:
            raise RasterError(f"{first.name}: has no geotransform, so {len(rasters)} rasters cannot form one scene.")
        if resolution is not None:
            raise RasterError(f"{first.name}: has no geotransform, so it has no metres; leave out --resolution.")
        return Grid(first.height, first.width, first.transform, first.crs)
    boxes = _together([bounds_in(raster, first.crs) for raster in rasters], first.crs and turn_of(first.crs))
    lefts, bottoms, rights, tops = zip(*boxes, strict=True)
    if resolution is None:
        x_size, y_size = abs(first.transform.a), abs(first.transform.e)
    else:
        x_size, y_size = _pixel_size(first, (min(bottoms) + max(tops)) / 2, resolution)
    # Edges in pixels of the first raster's lattice, rightwards and downwards from its upper left corner.
    left, right = round((min(lefts) - lefts[0]) / x_size), round((max(rights) - lefts[0]) / x_size)
    top, bottom = round((tops[0] - max(tops)) / y_size), round((tops[0] - min(bottoms)) / y_size)
    if bottom == top or right == left:
        raise RasterError(f"{first.name}: the scene is smaller than one pixel of {resolution} m; lower --resolution.")
    transform = Affine(x_size, 0.0, lefts[0] + left * x_size, 0.0, -y_size, tops[0] - top * y_size)
    return Grid(bottom - top, right - left, transform, first.crs)


def _together(
    boxes: list[tuple[float, float, float, float]], turn: float | None
) -> list[tuple[float, float, float, float]]:
    """The boxes, moved by whole turns around the Earth where they then span less of it; the first one stays."""
    lefts, rights = np.array([(left, right) for left, _, right, _ in boxes]).T
    if turn is None or len(boxes) == 1:
        return boxes
    starts = np.remainder(lefts - lefts[0], turn)
    starts[starts > turn * (1 - 1e-12)] = 0  # rounding
    order = np.argsort(starts, kind="stable")
    reached = np.maximum.accumulate((starts + rights - lefts)[order])
    gaps = np.append(starts[order][1:], turn) - reached
    widest = int(np.argmax(gaps))
    if turn - gaps[widest] >= (rights.max() - lefts.min()) * (1 - 1e-9):
        return boxes
    moves = lefts[0] + starts - lefts
    moves[order[widest + 1 :]] -= turn
    moves = np.rint(moves / turn) * turn
    return [(box[0] + move, box[1], box[2] + move, box[3]) for box, move in zip(boxes, moves.tolist(), strict=True)]


def _pixel_size(raster: DatasetReader, middle: float, resolution: float) -> tuple[float, float]:
    """Width and height of a pixel of `resolution` metres, in units of the raster's CRS.

    A projected CRS's own metres are taken for metres. In a geographic CRS they are those of the WGS 84
    ellipsoid along the parallel and the meridian at latitude `middle`, given in units of the CRS.
    """
    if raster.crs is None:
        raise RasterError(
            f"{raster.name}: has no CRS, so it has no metres; assign one (gdal_edit.py -a_srs), or leave out "
            "--resolution."
        )
    unit = raster.crs.units_factor[1]
    if not raster.crs.is_geographic:
        return resolution / unit, resolution / unit
    latitude = middle * unit
    if abs(latitude) >= math.pi / 2:
        raise RasterError(f"{raster.name}: lies around latitude {math.degrees(latitude):.1f}; check its geotransform.")
    flat = 1 - ECCENTRICITY_SQUARED * math.sin(latitude) ** 2
    along_parallel = EQUATOR_RADIUS * math.cos(latitude) / math.sqrt(flat)
    along_meridian = EQUATOR_RADIUS * (1 - ECCENTRICITY_SQUARED) / flat**1.5
    return resolution / along_parallel / unit, resolution / along_meridian / unit
