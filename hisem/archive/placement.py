"""A raster placed on a pair's grid: read as it is where its pixels are the grid's, else warped as read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from affine import Affine
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterioWindow

from hisem.archive.gdal import gdal_env, raster_errors
from hisem.archive.globe import turn_of, turns_between
from hisem.archive.grid import Grid, Window, is_identity
from hisem.archive.raster import MAX_DRIFT, bounds_in
from hisem.archive.reach import Box, Reach, covering, reaches
from hisem.errors import RasterError

RGB = (1, 2, 3)
"""The bands of rasters as `open_scene_raster` gives them."""


@dataclass(frozen=True)
class PlacedRaster:
    """A raster that yields pixels of the pair's grid.

    `origin` is the grid window of the source's pixels; `extent` is the part of the grid that the raster
    may cover, and thus the only part worth reading.
    """

    name: str
    source: DatasetReader | WarpedVRT
    origin: Window
    extent: Window

    def read_rgb(self, window: Window) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """Pixels 3 H W of `window`, which lies in `extent`, and where they are valid, H W.

        Valid is what the nodata value, alpha or mask band leaves in any of the three bands, and finite in
        all of them; other pixels are arbitrary, but finite. Raises `RasterError`.
        """
        if isinstance(self.source, WarpedVRT):
            # Validity is the alpha band: read with the pixels, as rasterio's masks would warp once more.
            alpha = self.source.colorinterp.index(ColorInterp.alpha) + 1
            bands = self._read(self.source.read, window, (*RGB, alpha))
            pixels, valid = bands[:3], bands[3] > 0
        else:
            pixels = self._read(self.source.read, window, RGB)
            if all(flags == [MaskFlags.all_valid] for flags in self.source.mask_flag_enums[:3]):
                valid = np.ones(pixels.shape[1:], bool)
            else:
                valid = np.any(self._read(self.source.read_masks, window, RGB), axis=0)
        return finite(pixels, valid)

    def read_band(self, window: Window) -> npt.NDArray[Any]:
        """The first band of `window`, H W. Raises `RasterError`."""
        return self._read(self.source.read, window, (1,))[0]

    def _read(self, read: Callable[..., Any], window: Window, bands: tuple[int, ...]) -> npt.NDArray[Any]:
        rows, cols = window.slices(self.origin)
        problem = f"rows {rows.start}-{rows.stop} and columns {cols.start}-{cols.stop} cannot be read"
        with raster_errors(self.name, problem), gdal_env(self.name):
            return read(bands, window=RasterioWindow.from_slices(rows, cols))


def finite(pixels: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """`pixels` 3 H W and `valid` H W with NaN and infinity invalid in all bands, and 0."""
    if pixels.dtype.kind != "f":
        return pixels, valid
    valid = valid & np.isfinite(pixels).all(axis=0)
    return np.where(valid, pixels, 0), valid


def place(
    raster: DatasetReader, grid: Grid, resampling: Resampling = Resampling.bilinear, *, is_mask: bool = False
) -> list[PlacedRaster]:
    """Place `raster` on `grid`; masks keep their values, whatever `resampling`.

    The list is empty where the two do not overlap. It has more than one entry where the antimeridian, or the end of a
    raster all around the Earth, lies on the grid: then each has pixels on one side of it.

    Raises `RasterError` where only one of the two has a CRS or a transform, or where images without
    georeference differ in size.
    """
    if raster.crs != grid.crs and (raster.crs is None or grid.crs is None):
        bounds_in(raster, grid.crs)  # which raises
    if is_identity(raster.transform) or not grid.has_transform:
        _require_same_pixels(raster, grid)
        return [PlacedRaster(raster.name, raster, grid.extent, grid.extent)]
    resampling = Resampling.nearest if is_mask else resampling
    if raster.crs == grid.crs:
        found = [_beside(raster, view, resampling, is_mask) for view in _views(bounds_in(raster, grid.crs), grid)]
        return [one for one in found if one]
    return [
        PlacedRaster(raster.name, _warped(raster, grid, resampling, is_mask, reach), grid.extent, reach.extent)
        for reach in reaches(raster, grid)
    ]


def _beside(raster: DatasetReader, grid: Grid, resampling: Resampling, is_mask: bool) -> PlacedRaster | None:
    """A raster of the CRS of `grid`, counted by the same longitudes; None where they do not overlap."""
    offset = _whole_offset(raster, grid)
    if offset is not None:
        origin = Window(*offset, raster.height, raster.width)
        extent = origin.intersection(grid.extent)
        return PlacedRaster(raster.name, raster, origin, extent) if extent else None
    extent = covering(bounds_in(raster, grid.crs), grid).intersection(grid.extent)
    if extent is None:
        return None
    return PlacedRaster(raster.name, _warped(raster, grid, resampling, is_mask), grid.extent, extent)


def _views(box: Box, grid: Grid) -> list[Grid]:
    """The grid with its place counted by those longitudes, whole turns apart, by which `box` meets it."""
    left, _, right, _ = grid.bounds_of(grid.extent)
    turns = turns_between(box[0], box[2], left, right, grid.crs and turn_of(grid.crs))
    return [
        replace(grid, transform=Affine.translation(-turn, 0.0) @ grid.transform if turn else grid.transform)
        for turn in turns
    ]


def _require_same_pixels(raster: DatasetReader, grid: Grid) -> None:
    """Raise `RasterError` unless neither side has a transform and the sizes are equal."""
    if grid.has_transform or not is_identity(raster.transform):
        raise RasterError(
            f"{raster.name}: one date has a geotransform and the other has none; both need one, or neither."
        )
    if (raster.height, raster.width) != (grid.height, grid.width):
        raise RasterError(
            f"{raster.name}: found {raster.height} x {raster.width} pixels where the before scene has "
            f"{grid.height} x {grid.width}; without georeference the sizes must be equal."
        )


def _whole_offset(raster: DatasetReader, grid: Grid) -> tuple[int, int] | None:
    """Row and column on `grid` of the raster's first pixel, or None unless its pixels are the grid's."""
    t, g = raster.transform, grid.transform
    row, col = (t.f - g.f) / g.e, (t.c - g.c) / g.a
    shift = max(abs(row - round(row)), abs(col - round(col)))
    drift = max(abs(t.e / g.e - 1) * raster.height, abs(t.a / g.a - 1) * raster.width)
    return (round(row), round(col)) if raster.crs == grid.crs and shift + drift <= MAX_DRIFT else None


def _warped(
    raster: DatasetReader, grid: Grid, resampling: Resampling, is_mask: bool, reach: Reach | None = None
) -> WarpedVRT:
    """`raster` on the whole of `grid`, resampled window by window as it is read.

    Validity travels in an alpha band: a nodata value would have to keep clear of true pixel values.
    """
    # A mask is read for its values alone; whatever it declares as nodata counts as they do.
    options: dict[str, Any] = {"src_nodata": None} if is_mask else {}
    if reach and reach.move:
        options["src_transform"] = Affine.translation(reach.move, 0.0) @ raster.transform
    if reach and reach.scale:
        # A pole lies inside of a window's edges, by which alone GDAL would look for its source.
        options |= {"XSCALE": str(reach.scale[0]), "YSCALE": str(reach.scale[1]), "SAMPLE_GRID": "YES"}
    problem = f"cannot be warped from {raster.crs} to {grid.crs}"
    with raster_errors(raster.name, problem, lambda _: "Check its CRS and transform"), gdal_env(raster.name):
        return WarpedVRT(
            raster,
            crs=grid.crs,
            transform=grid.transform,
            height=grid.height,
            width=grid.width,
            resampling=resampling,
            add_alpha=ColorInterp.alpha not in raster.colorinterp,
            **options,
        )
