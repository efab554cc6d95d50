"""Reading one window of both dates of a scene pair, on one grid.

Shapes: H and W are the tile size in pixels; images are H W 3, uint8, red, green, blue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rasterio.enums import Resampling
from rasterio.io import DatasetReader

from hisem.archive.bands import open_scene_raster
from hisem.archive.blocks import Lattice, lattice_of
from hisem.archive.gdal import raster_errors
from hisem.archive.grid import Grid, Window
from hisem.archive.options import DEFAULTS, ReadOptions
from hisem.archive.placement import PlacedRaster, place
from hisem.archive.raster import grid_of, open_raster
from hisem.archive.scaling import Ranges, fixed_ranges, percentile_ranges, to_8bit
from hisem.errors import RasterError

RANGES = ("before_range", "after_range")
"""Columns that an index may carry beside its own: what `range_columns` gives, once for all tiles of a pair."""

Image = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class TilePixels:
    """Both dates of one window, H W 3 each, and which of their pixels are valid, H W each.

    Invalid pixels are 0. What pads a window up to the tile size is invalid.
    """

    before: Image
    after: Image
    before_mask: Mask
    after_mask: Mask

    @property
    def before_valid(self) -> float:
        """Share of the tile that is valid before, in [0, 1]."""
        return float(self.before_mask.mean())

    @property
    def after_valid(self) -> float:
        """Share of the tile that is valid after, in [0, 1]."""
        return float(self.after_mask.mean())


@dataclass(frozen=True)
class Scene:
    """One date of a pair, open: its rasters and masks as they are, and those that overlap the grid, placed on it."""

    rasters: list[DatasetReader]
    masks: list[DatasetReader]
    placed: list[PlacedRaster]
    placed_masks: list[PlacedRaster]


class PairReader:
    """The rasters of one scene pair, each opened once, read window by window on the pair's grid.

    The grid is the before scene's: CRS, resolution (or `options.resolution`) and lattice of its first raster,
    extent of all of them. Several rasters of a date fill each other's gaps in their order. A raster whose
    pixels are the grid's is read as it is; any other is resampled. Masks are rasters whose non-zero pixels
    are invalid; beyond a mask's edge nothing is masked.

    With scaling by percentiles, `ranges` are those that `measure` of this pair has given before.

    Use as a context manager. `grid`, `measure` and `read` are there while it is entered.
    """

    grid: Grid

    def __init__(
        self,
        before: Sequence[str],
        after: Sequence[str],
        tile_size: int,
        options: ReadOptions = DEFAULTS,
        *,
        before_mask: Sequence[str] | None = None,
        after_mask: Sequence[str] | None = None,
        ranges: tuple[Ranges, Ranges] | None = None,
    ) -> None:
        self._uris = list(before), list(after)
        self._mask_uris = list(before_mask or []), list(after_mask or [])
        self._tile_size = tile_size
        self._options = options
        self._ranges = ranges
        self._stack = ExitStack()
        self._damaged = False

    def __enter__(self) -> PairReader:
        """Open all rasters, headers only.

        Raises `RasterError` for a raster that is missing, empty, a folder, unreadable, of another format,
        rotated, without the bands asked for or of pixels that the options do not make 8 bit; for dates that
        do not overlap, of which only one has a CRS, or that differ in size without georeference.
        """
        with ExitStack() as stack, self._errors("the pair cannot be opened"):
            options = self._options
            bands = options.bands, options.after_bands or options.bands
            before, after = (
                [stack.enter_context(open_scene_raster(uri, names, options)) for uri in uris]
                for names, uris in zip(bands, self._uris, strict=True)
            )
            masks = [[stack.enter_context(open_raster(uri)) for uri in uris] for uris in self._mask_uris]
            self.grid = grid_of(before, options.resolution)
            self._scenes = [
                Scene(rasters, hidden, self._place(rasters, stack), self._place(hidden, stack, is_mask=True))
                for rasters, hidden in zip((before, after), masks, strict=True)
            ]
            lost = {raster.name for raster in before} - {raster.name for raster in self._scenes[0].placed}
            if lost:
                raise RasterError(
                    f"{min(lost)}: none of its pixels lies on the grid of the before scene, though it is a part of it; "
                    "it is smaller than half a pixel there, or its georeference is wrong."
                )
            if not self._scenes[1].placed:
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

    def _errors(self, problem: str) -> AbstractContextManager[None]:
        """The boundary around all that is done with both dates: what no file of its own is named for."""
        first, second = (", ".join(uris[:1]) for uris in self._uris)
        return raster_errors(first, f"{problem} with {second}", lambda _: "Check both files with gdalinfo")

    def _place(
        self, rasters: Sequence[DatasetReader], stack: ExitStack, *, is_mask: bool = False
    ) -> list[PlacedRaster]:
        """The rasters that overlap the grid, placed on it; closed with `stack`."""
        resampling = Resampling[self._options.resampling]
        placed = [one for raster in rasters for one in place(raster, self.grid, resampling, is_mask=is_mask)]
        for found in placed:
            stack.callback(found.source.close)
        return placed

    def has_mask_apart(self) -> bool:
        """True where the masks of a date cover nothing of the scene, so that they hide nothing."""
        return any(scene.masks and not scene.placed_masks for scene in self._scenes)

    def lattices(self) -> tuple[Lattice, Lattice]:
        """How the first raster of each date is stored, see `hisem.archive.blocks`."""
        with self._errors("blocks cannot be located"):
            before, after = (lattice_of(scene.rasters[0], self.grid) for scene in self._scenes)
        return before, after

    def measure(self) -> tuple[Ranges, Ranges] | None:
        """The values of both scenes that become 0 and 255, measured at the first call; None unless by percentiles.

        They are of each whole scene, so that all its tiles are scaled alike. Raises `RasterError` as
        `percentile_ranges` does.
        """
        if self._options.scaling == "percentiles" and self._ranges is None:
            with self._errors("percentiles cannot be taken"):
                before, after = (
                    percentile_ranges(scene.rasters, scene.masks, self._options.percentiles) for scene in self._scenes
                )
            self._ranges = before, after
        return self._ranges

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
        with self._errors(f"{window} cannot be read"):
            (before, before_mask), (after, after_mask) = (
                self._padded(*self._compose(scene, ranges, window))
                for scene, ranges in zip(self._scenes, self.measure() or (None, None), strict=True)
            )
        self._damaged = False
        return TilePixels(before, after, before_mask, after_mask)

    def _compose(self, scene: Scene, ranges: Ranges | None, window: Window) -> tuple[Image, Mask]:
        """One date of `window`, H W 3, and where it is valid, H W; later rasters fill the gaps of earlier ones."""
        pixels = np.zeros((3, window.height, window.width), np.uint8)
        valid = np.zeros((window.height, window.width), np.bool_)
        for raster in scene.placed:
            overlap = raster.extent.intersection(window)
            if overlap is None or valid.all():
                continue
            rows, cols = overlap.slices(window)
            values, usable = raster.read_rgb(overlap)
            own = fixed_ranges(values.dtype.name, self._options) if ranges is None else ranges
            if own is not None:
                values = to_8bit(values, own)
            np.copyto(pixels[:, rows, cols], values, where=usable & ~valid[rows, cols])
            valid[rows, cols] |= usable
        for mask in scene.placed_masks:
            overlap = mask.extent.intersection(window)
            if overlap is not None:
                rows, cols = overlap.slices(window)
                valid[rows, cols] &= mask.read_band(overlap) == 0
        return np.ascontiguousarray((pixels * valid).transpose(1, 2, 0)), valid

    def _padded(self, pixels: Image, valid: Mask) -> tuple[Image, Mask]:
        """`pixels` and where they are valid at the full tile size."""
        missing = [(0, self._tile_size - side) for side in valid.shape]
        return np.pad(pixels, (*missing, (0, 0))), np.pad(valid, missing)


def pair_reader(pair: Mapping[str, Any], tile_size: int, options: ReadOptions = DEFAULTS) -> PairReader:
    """The reader of a catalogue or index row; `RANGES` in it, as `range_columns` gives them, are taken over."""
    before, after = (pair.get(name) for name in RANGES)
    return PairReader(
        pair["before"],
        pair["after"],
        tile_size,
        options,
        before_mask=pair.get("before_mask"),
        after_mask=pair.get("after_mask"),
        ranges=(np.reshape(before, (3, 2)), np.reshape(after, (3, 2))) if before and after else None,
    )


def range_columns(pair: Mapping[str, Any], options: ReadOptions) -> dict[str, list[float] | None]:
    """`RANGES` of a pair: what `PairReader.measure` says, as flat lists; null where its rasters cannot be read.

    The reader of its tiles meets that error again, and says it of each.
    """
    try:
        with pair_reader(pair, 1, options) as reader:
            measured = reader.measure()
    except RasterError:
        measured = None
    return {name: None if measured is None else measured[number].ravel().tolist() for number, name in enumerate(RANGES)}
