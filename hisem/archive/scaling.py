"""From what a sensor measured to 8 bit: the range of values, band by band, that becomes 0 to 255.

Ranges are arrays of 3 x 2: lowest and highest value of each band, in the units of the raster.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from affine import Affine
from rasterio.enums import Resampling
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT

from hisem.archive.gdal import gdal_env, raster_errors
from hisem.archive.grid import is_identity
from hisem.archive.options import ReadOptions
from hisem.archive.placement import RGB, finite
from hisem.errors import RasterError

Ranges = npt.NDArray[np.float64]

SAMPLES = 1_000_000
"""Pixels of one date, or a few more, from which percentiles are taken; a smaller scene counts whole."""


def to_8bit(pixels: npt.NDArray[Any], ranges: Ranges) -> npt.NDArray[np.uint8]:
    """Finite `pixels` 3 H W as uint8: each band's `ranges` become 0 to 255, rounded; what lies beyond is clipped."""
    low, high = ranges[:, 0, None, None], ranges[:, 1, None, None]
    span = np.where(high > low, high - low, 1.0)  # a band of one value is dark
    return np.rint(np.clip((pixels - low) / span, 0, 1) * 255).astype(np.uint8)


def fixed_ranges(dtype: str, options: ReadOptions) -> Ranges | None:
    """The ranges of pixels of `dtype` that follow from the options alone; None for uint8 taken as it is."""
    if options.scaling == "range":
        return np.array([options.scale_range] * 3, np.float64)
    if options.scaling == "dtype" and dtype != "uint8":
        info = np.iinfo(dtype)
        return np.array([(info.min, info.max)] * 3, np.float64)
    return None


def percentile_ranges(
    rasters: Sequence[DatasetReader], masks: Sequence[DatasetReader], percentiles: tuple[float, float]
) -> Ranges:
    """Percentiles of all valid pixels of one date, band by band.

    `rasters` are as `open_scene_raster` gives them. They are read decimated to `SAMPLES` pixels in all,
    which GDAL does from their overviews; without overviews the whole file is read. Pixels that are
    non-zero in one of the `masks` are left out, as invalid ones are.

    Raises `RasterError` where a raster is damaged, or nothing is valid.
    """
    total = sum(raster.height * raster.width for raster in rasters)
    factor = max(1.0, math.sqrt(total / SAMPLES))
    values = np.concatenate([_sample(raster, masks, factor) for raster in rasters], axis=1)
    if not values.size:
        raise RasterError(f"{rasters[0].name}: the scene has no valid pixel, so there are no percentiles of it.")
    return np.percentile(values, percentiles, axis=1).T.astype(np.float64)


def _sample(raster: DatasetReader, masks: Sequence[DatasetReader], factor: float) -> npt.NDArray[Any]:
    """The valid pixels of one raster, 3 N, of which each stands for `factor` x `factor`."""
    shape = math.ceil(raster.height / factor), math.ceil(raster.width / factor)
    with raster_errors(raster.name, "percentiles cannot be taken of it and its masks"), gdal_env(raster.name):
        pixels = raster.read(RGB, out_shape=(3, *shape))
        valid = raster.read_masks(RGB, out_shape=(3, *shape)).any(axis=0)
        for mask in masks:
            valid &= _decimated_mask(mask, raster, shape) == 0
    pixels, valid = finite(pixels, valid)
    return pixels[:, valid]


def _decimated_mask(mask: DatasetReader, raster: DatasetReader, shape: tuple[int, int]) -> npt.NDArray[Any]:
    """The values of `mask`, H W, on the pixels of `raster` decimated to `shape`; 0 beyond the mask's edge."""
    if is_identity(raster.transform):
        return mask.read(1, out_shape=shape)
    lattice = raster.transform * Affine.scale(raster.width / shape[1], raster.height / shape[0])
    size = {"height": shape[0], "width": shape[1]}
    nearest = Resampling.nearest
    with WarpedVRT(mask, crs=raster.crs, transform=lattice, **size, resampling=nearest, src_nodata=None) as placed:
        return placed.read(1)
