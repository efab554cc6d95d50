"""The pixel grid of a scene pair, its windows, and where they lie on Earth.

A tile is a window of its pair's grid. Windows are in pixels, rows counted downwards from the grid's
first row; footprints are in degrees, longitude first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely
from affine import Affine
from rasterio.crs import CRS

from hisem.archive.outlines import outlines
from hisem.errors import ConfigError, RasterError

TILE_SIZE = re.compile(r"-(\d+)(?:@[^/@]+m)?$")
"""Where `tile_id` puts the tile size."""


@dataclass(frozen=True)
class Window:
    """A rectangle of whole pixels: its first row and column, and its size."""

    row_off: int
    col_off: int
    height: int
    width: int

    def intersection(self, other: Window) -> Window | None:
        """The pixels in both windows, or None where they share none."""
        top, left = max(self.row_off, other.row_off), max(self.col_off, other.col_off)
        bottom = min(self.row_off + self.height, other.row_off + other.height)
        right = min(self.col_off + self.width, other.col_off + other.width)
        return Window(top, left, bottom - top, right - left) if bottom > top and right > left else None

    def slices(self, origin: Window) -> tuple[slice, slice]:
        """Row and column slices of this window in an array that holds the pixels of `origin`."""
        row, col = self.row_off - origin.row_off, self.col_off - origin.col_off
        return slice(row, row + self.height), slice(col, col + self.width)


@dataclass(frozen=True)
class Grid:
    """Size in pixels, north-up affine transform (pixel to map coordinates) and CRS of a pair's pixels.

    Images without georeference have the identity transform, and no CRS.
    """

    height: int
    width: int
    transform: Affine
    crs: CRS | None

    @property
    def extent(self) -> Window:
        """The window that is the whole grid."""
        return Window(0, 0, self.height, self.width)

    @property
    def has_transform(self) -> bool:
        """Whether pixels have map coordinates."""
        return not is_identity(self.transform)

    def transform_of(self, window: Window) -> Affine:
        """The affine transform of `window`: the grid's, moved to the window's first pixel."""
        t = self.transform
        return Affine(t.a, 0.0, t.c + window.col_off * t.a, 0.0, t.e, t.f + window.row_off * t.e)

    def bounds_of(self, window: Window) -> tuple[float, float, float, float]:
        """Left, bottom, right and top of `window` in map coordinates."""
        t = self.transform_of(window)
        return t.c, t.f + window.height * t.e, t.c + window.width * t.a, t.f

    def footprints(self, windows: Sequence[Window]) -> list[bytes | None]:
        """Return the outline of each window as WKB in EPSG:4326, between -180 and 180 degrees.

        An outline that crosses the antimeridian becomes a multipolygon. None stands for a window that lies nowhere on
        Earth, as all do without georeference.

        Raises `RasterError` where the CRS cannot be transformed to EPSG:4326, or none of the windows lies on Earth.
        """
        if self.crs is None or not self.has_transform or not windows:
            return [None] * len(windows)
        found = outlines(self.crs, self._boxes(windows))
        if shapely.is_missing(found).all():
            raise RasterError(
                f"footprints cannot be computed from {self.crs} to EPSG:4326: no tile within "
                f"{self.bounds_of(self.extent)} (left, bottom, right, top) lies on Earth; check the CRS of the before "
                "scene and its geotransform."
            )
        return list(shapely.to_wkb(found))

    def _boxes(self, windows: Sequence[Window]) -> npt.NDArray[np.float64]:
        """`bounds_of` of many windows, N 4."""
        places = np.array([(w.col_off, w.row_off, w.width, w.height) for w in windows], float)
        t = self.transform
        left, top = t.c + places[:, 0] * t.a, t.f + places[:, 1] * t.e
        return np.stack([left, top + places[:, 3] * t.e, left + places[:, 2] * t.a, top], axis=-1)


def is_identity(transform: Affine) -> bool:
    """Whether `transform` is the identity, by which GDAL says that a raster has none."""
    return tuple(transform)[:6] == (1, 0, 0, 0, 1, 0)


def offsets(length: int, tile_size: int, overlap: int = 0) -> list[int]:
    """First pixels of tiles along one axis of `length` pixels; the last tile ends where the axis ends."""
    if length <= tile_size:
        return [0]
    regular = list(range(0, length - tile_size + 1, tile_size - overlap))
    return regular if regular[-1] + tile_size == length else [*regular, length - tile_size]


def count_offsets(length: int, tile_size: int, overlap: int = 0) -> int:
    """How many `offsets` there are, without making them: a misplaced raster can ask for 10^18."""
    return 1 if length <= tile_size else -(-(length - tile_size) // (tile_size - overlap)) + 1


def windows(height: int, width: int, tile_size: int, overlap: int = 0) -> list[Window]:
    """Windows of `tile_size` pixels that cover a scene of `height` x `width` wholly, row by row.

    Neighbours share `overlap` pixels, save in the last row and column, which shift inwards so that no
    strip is left out and may share more. Along an axis shorter than `tile_size` the window is clipped to
    the scene.

    Raises `ConfigError` as `require_tiling` does.
    """
    require_tiling(tile_size, overlap)
    size = min(tile_size, height), min(tile_size, width)
    rows, cols = offsets(height, tile_size, overlap), offsets(width, tile_size, overlap)
    return [Window(row, col, *size) for row in rows for col in cols]


def require_tiling(tile_size: int, overlap: int) -> None:
    """Raise `ConfigError` for a size below one pixel, or an overlap that is not smaller than the size."""
    if tile_size < 1:
        raise ConfigError(f"tile_size is {tile_size}; at least 1 pixel is needed.")
    if not 0 <= overlap < tile_size:
        raise ConfigError(f"overlap is {overlap}; it lies between 0 and {tile_size - 1}, the tile size less one pixel.")


def tile_id(pair_id: str, window: Window, tile_size: int, resolution: float | None = None) -> str:
    """The tile's name, the same in every run: pair, first row and column, nominal size in pixels.

    On a grid of a chosen `resolution` in metres it follows, as the same window is another place there.
    """
    suffix = "" if resolution is None else f"@{resolution!r}m"
    return f"{pair_id}/{window.row_off}-{window.col_off}-{tile_size}{suffix}"


def nominal_size(tile: str) -> int | None:
    """The tile size, in pixels, in a name that `tile_id` gave; None for a name of another making."""
    found = TILE_SIZE.search(tile)
    return int(found[1]) if found else None
