"""The picture of the ground while it is painted: colour and vegetation on a pixel grid, and shade."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hisem.archive.synthetic.geometry import Bounds, FloatArray


class Grid(NamedTuple):
    """Pixels on the ground plane: `pixel` metres wide, the outer corner at (`left`, `top`)."""

    left: float
    top: float
    pixel: float
    height: int
    width: int

    @property
    def x(self) -> FloatArray:
        """Pixel centres along x, 1 by W."""
        return (self.left + (np.arange(self.width, dtype=np.float32)[None, :] + 0.5) * self.pixel).astype(np.float32)

    @property
    def y(self) -> FloatArray:
        """Pixel centres along y, H by 1."""
        return (self.top + (np.arange(self.height, dtype=np.float32)[:, None] + 0.5) * self.pixel).astype(np.float32)


class Window(NamedTuple):
    """A part of the canvas with its pixel centres, `x` 1 by w and `y` h by 1."""

    rows: slice
    columns: slice
    x: FloatArray
    y: FloatArray


@dataclass
class Canvas:
    """`paint` H by W by 4: red, green, blue, vegetation, each in [0, 1]; `shade` H by W in [0, 1]."""

    grid: Grid
    paint: FloatArray
    shade: FloatArray

    @classmethod
    def of(cls, grid: Grid, paint: FloatArray) -> Canvas:
        """A canvas without shade."""
        return cls(grid, paint, np.zeros(paint.shape[:2], np.float32))

    def copy(self) -> Canvas:
        """An independent canvas."""
        return Canvas(self.grid, self.paint.copy(), self.shade.copy())

    def window(self, bounds: Bounds) -> Window:
        """The pixels that `bounds` touches, clipped to the canvas; it may be empty."""
        grid = self.grid

        def span(low: float, high: float, origin: float, limit: int) -> tuple[int, int]:
            first = min(max(math.floor((low - origin) / grid.pixel) - 1, 0), limit)
            return first, min(max(math.ceil((high - origin) / grid.pixel) + 1, first), limit)

        top, bottom = span(bounds.top, bounds.bottom, grid.top, grid.height)
        left, right = span(bounds.left, bounds.right, grid.left, grid.width)
        x = grid.left + (np.arange(left, right, dtype=np.float32)[None, :] + 0.5) * grid.pixel
        y = grid.top + (np.arange(top, bottom, dtype=np.float32)[:, None] + 0.5) * grid.pixel
        return Window(slice(top, bottom), slice(left, right), x.astype(np.float32), y.astype(np.float32))

    def lay(self, window: Window, cover: FloatArray, colour: FloatArray) -> None:
        """Blend `colour` (4, or h by w by 4) over the window where `cover` (h by w, in [0, 1]) says."""
        blend(self.paint[window.rows, window.columns], cover, colour)

    def cast(self, window: Window, cover: FloatArray) -> None:
        """Shade the window; overlapping shadows do not add up."""
        patch = self.shade[window.rows, window.columns]
        np.maximum(patch, cover, out=patch)

    def settle_shade(self) -> None:
        """Darken the paint by the shade, bluish as skylight is, and clear the shade."""
        dark = self.shade > 0.0
        kept = 1.0 - self.shade[dark, None] * np.array([0.62, 0.58, 0.50, 0.0], np.float32)
        self.paint[dark] *= kept
        self.shade[:] = 0.0


def blend(pixels: FloatArray, cover: FloatArray, colour: FloatArray) -> None:
    """Mix `colour` (4, or as `pixels`) into `pixels` (... by 4) in place by the share `cover` (...)."""
    pixels += cover[..., None] * (colour - pixels)
