"""Reading one window of both dates of a scene pair, on one grid.

Shapes: H and W are the tile size in pixels; images are H W 3, uint8, red, green, blue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rasterio.io import DatasetReader

from hisem.archive.grid import Grid, Window
from hisem.archive.placement import PlacedRaster, place
from hisem.archive.raster import grid_of, open_raster, require_rgb
from hisem.errors import RasterError

Image = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class TilePixels:
    """Both dates of one window, H W 3 each, and which share of their pixels is valid, in [0, 1].

    Invalid pixels are 0. What pads a window up to the tile size is invalid.
    """

    before: Image
    after: Image
    before_valid: float
    after_valid: float


class PairReader:
    """The rasters of one scene pair, each opened once, read window by window on the before scene's grid.

    The grid is the before scene's: CRS, resolution and lattice of its first raster, extent of all of
    them. Several rasters of a date fill each other's gaps in their order. A raster whose pixels are the
    grid's is read as it is; any other is resampled, bilinearly. Masks are rasters whose non-zero pixels
    are invalid; beyond a mask's edge nothing is masked.

    Use as a context manager. `grid` and `read` are there while it is entered.
    """

    grid: Grid

    def __init__(
        self,
        before: Sequence[str],
        after: Sequence[str],
        tile_size: int,
        *,
        before_mask: Sequence[str] | None = None,
        after_mask: Sequence[str] | None = None,
    ) -> None:
        self._uris = list(before), list(after)
        self._mask_uris = list(before_mask or []), list(after_mask or [])
        self._tile_size = tile_size
        self._stack = ExitStack()
        self._damaged = False

    def __enter__(self) -> PairReader:
        """Open all rasters, headers only.

        Raises `RasterError` for a raster that is missing, empty, a folder, unreadable, of another format,
        rotated or of other pixels than uint8 RGB; for dates that do not overlap, of which only one has a
        CRS, or that differ in size without georeference.
        """
        with ExitStack() as stack:
            before, after = ([self._open(uri, stack, rgb=True) for uri in uris] for uris in self._uris)
            self.grid = grid_of(before)
            self._scenes = [self._place(rasters, stack) for rasters in (before, after)]
            self._masks = [
                self._place([self._open(uri, stack) for uri in uris], stack, is_mask=True) for uris in self._mask_uris
            ]
            if not self._scenes[1]:
                raise RasterError(
                    f"{after[0].name}: the after scene does not overlap the before scene {before[0].name} "
                    f"(bounds {tuple(after[0].bounds)} in {after[0].crs}, {tuple(before[0].bounds)} in "
                    f"{before[0].crs}); check the pairing and both CRS."
                )
            self._stack = stack.pop_all()
        self._damaged = False
        return self

    def __exit__(self, *_: object) -> None:
        """Close all rasters."""
        self._stack.close()

    def _open(self, uri: str, stack: ExitStack, *, rgb: bool = False) -> DatasetReader:
        raster = stack.enter_context(open_raster(uri))
        if rgb:
            require_rgb(raster)
        return raster

    def _place(
        self, rasters: Sequence[DatasetReader], stack: ExitStack, *, is_mask: bool = False
    ) -> list[PlacedRaster]:
        """The rasters that overlap the grid, placed on it; closed with `stack`."""
        placed = [found for raster in rasters if (found := place(raster, self.grid, is_mask=is_mask))]
        for found in placed:
            stack.callback(found.source.close)
        return placed

    def read(self, window: Window) -> TilePixels:
        """The pixels of `window`, which lies on the grid and is at most the tile size high and wide.

        Raises `RasterError` where a raster is damaged in that place, or the window leaves the grid.
        """
        if window.intersection(self.grid.extent) != window:
            raise RasterError(
                f"{self._uris[0][0]}: {window} lies outside the {self.grid.height} x {self.grid.width} pixels of "
                "the scene; the raster has changed since the index was made: make the index again."
            )
        if self._damaged:
            # After one failure some drivers (JPEG) return made-up pixels without an error: start afresh.
            self.__exit__()
            self.__enter__()
        self._damaged = True
        (before, before_valid), (after, after_valid) = (
            self._padded(*_compose(scene, masks, window))
            for scene, masks in zip(self._scenes, self._masks, strict=True)
        )
        self._damaged = False
        return TilePixels(before, after, before_valid, after_valid)

    def _padded(self, pixels: Image, valid: Mask) -> tuple[Image, float]:
        """`pixels` H W 3 at the full tile size, and the share of the full tile that is valid."""
        size = self._tile_size
        missing = size - pixels.shape[0], size - pixels.shape[1]
        if any(missing):
            pixels = np.pad(pixels, ((0, missing[0]), (0, missing[1]), (0, 0)))
        return pixels, float(np.count_nonzero(valid) / size**2)


def _compose(scene: Sequence[PlacedRaster], masks: Sequence[PlacedRaster], window: Window) -> tuple[Image, Mask]:
    """One date of `window`, H W 3, and where it is valid, H W; later rasters fill the gaps of earlier ones."""
    pixels = np.zeros((3, window.height, window.width), np.uint8)
    valid = np.zeros((window.height, window.width), np.bool_)
    for raster in scene:
        overlap = raster.extent.intersection(window)
        if overlap is None or valid.all():
            continue
        rows, cols = overlap.slices(window)
        values, usable = raster.read_rgb(overlap)
        np.copyto(pixels[:, rows, cols], values, where=usable & ~valid[rows, cols])
        valid[rows, cols] |= usable
    for mask in masks:
        overlap = mask.extent.intersection(window)
        if overlap is not None:
            rows, cols = overlap.slices(window)
            valid[rows, cols] &= mask.read_band(overlap) == 0
    return np.ascontiguousarray((pixels * valid).transpose(1, 2, 0)), valid


def pair_reader(pair: Mapping[str, Any], tile_size: int) -> PairReader:
    """The reader of a catalogue or index row."""
    return PairReader(
        pair["before"],
        pair["after"],
        tile_size,
        before_mask=pair.get("before_mask"),
        after_mask=pair.get("after_mask"),
    )
