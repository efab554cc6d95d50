"""Trees, many at once: crowns lit from one side, each with its shadow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from hisem.archive.synthetic import palette
from hisem.archive.synthetic.canvas import Canvas
from hisem.archive.synthetic.geometry import Bounds, FloatArray, coverage
from hisem.archive.synthetic.sun import Sun, shadowed

HEIGHT_PER_RADIUS = 1.4
"""A crown of radius r casts the shadow of a ball at this many r above the ground."""
MAX_RADIUS = 4.0
"""Metres."""


@dataclass(frozen=True)
class Trees:
    """N trees: `x`, `y`, `radius` in metres, `tone` a number about 1, `species` an index of the palette."""

    x: FloatArray
    y: FloatArray
    radius: FloatArray
    tone: FloatArray
    species: npt.NDArray[np.int64]
    raised: ClassVar[bool] = True

    @classmethod
    def at(cls, rng: np.random.Generator, x: FloatArray, y: FloatArray, low: float, high: float) -> Self:
        """Trees of random radius in [`low`, `high`], tone and species at given places."""
        count = len(x)
        radius = rng.uniform(low, min(high, MAX_RADIUS), count).astype(np.float32)
        tone = np.clip(rng.normal(1.0, 0.12, count), 0.7, 1.3).astype(np.float32)
        return cls(x, y, radius, tone, rng.choice(3, count, p=(0.45, 0.3, 0.25)))

    def __len__(self) -> int:
        return len(self.x)

    def join(self, other: Trees) -> Trees:
        """These trees and the others."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Trees(*(np.concatenate(pair) for pair in pairs))

    def moved(self, dx: float, dy: float) -> Trees:
        """The same trees elsewhere."""
        return Trees(self.x + np.float32(dx), self.y + np.float32(dy), self.radius, self.tone, self.species)

    def bounds(self) -> Bounds:
        """Bounds of the crowns and of their shadows under any sun."""
        low_x, high_x = float((self.x - self.radius).min()), float((self.x + self.radius).max())
        low_y, high_y = float((self.y - self.radius).min()), float((self.y + self.radius).max())
        return shadowed(Bounds(low_x, low_y, high_x, high_y).padded(0.5), HEIGHT_PER_RADIUS * float(self.radius.max()))

    def cast(self, canvas: Canvas, sun: Sun) -> None:
        """Add the shadows: the crown's disc where the top's shadow falls."""
        dx, dy = sun.shadow(HEIGHT_PER_RADIUS)
        stamps = _Stamps.around(canvas, self.x + dx * self.radius, self.y + dy * self.radius)
        cover = coverage(np.hypot(stamps.dx, stamps.dy) - self.radius[:, None, None], canvas.grid.pixel)
        size = stamps.size
        for row, column, patch in zip(stamps.rows, stamps.columns, cover, strict=True):
            view = canvas.shade[row : row + size, column : column + size]
            np.maximum(view, patch, out=view)

    def draw(self, canvas: Canvas, sun: Sun) -> None:
        """Paint the crowns in their order: later ones lie on top."""
        stamps = _Stamps.around(canvas, self.x, self.y)
        radius = self.radius[:, None, None]
        dx, dy = stamps.dx / radius, stamps.dy / radius  # within [-1, 1] on the crown
        theta = np.arctan2(dy, dx)
        spin = (self.tone * np.float32(40.0))[:, None, None]  # any number that differs from tree to tree
        outline = 1.0 + 0.10 * np.sin(3.0 * theta + spin) + 0.07 * np.sin(5.0 * theta - spin)
        reach = np.hypot(dx, dy)
        cover = coverage((reach - outline) * radius, canvas.grid.pixel)[..., None]
        leaves = 0.12 * np.sin(4.1 * dx + spin) * np.sin(4.7 * dy - spin)
        toward_x, toward_y = -math.sin(sun.swing), math.cos(sun.swing)
        light = (1.08 + 0.42 * (dx * toward_x + dy * toward_y) - 0.30 * reach * reach + leaves).clip(0.35, 1.7)
        light *= self.tone[:, None, None]
        colour = palette.CROWNS[self.species][:, None, None, :] * np.concatenate(
            [np.repeat(light[..., None], 3, axis=-1), np.ones_like(light)[..., None]], axis=-1
        )
        kept, added = (1.0 - cover).astype(np.float32), (cover * colour).astype(np.float32)
        size = stamps.size
        for row, column, keep, add in zip(stamps.rows, stamps.columns, kept, added, strict=True):
            view = canvas.paint[row : row + size, column : column + size]
            view *= keep
            view += add


@dataclass(frozen=True)
class _Stamps:
    """Square pixel windows around N points: first row and column, and offsets in metres, N by S by S."""

    rows: list[int]
    columns: list[int]
    dx: FloatArray
    dy: FloatArray
    size: int

    @classmethod
    def around(cls, canvas: Canvas, x: FloatArray, y: FloatArray) -> Self:
        """Windows wide enough for the largest crown, moved inwards where they would leave the canvas."""
        grid = canvas.grid
        size = 2 * math.ceil((MAX_RADIUS * 1.2) / grid.pixel) + 1
        steps = np.arange(size, dtype=np.float32) + 0.5

        def axis(position: FloatArray, origin: float, limit: int) -> tuple[npt.NDArray[np.int64], FloatArray]:
            first = np.floor((position - origin) / grid.pixel - size / 2 + 0.5).astype(np.int64)
            first = np.clip(first, 0, limit - size)
            centre = origin + (first[:, None] + steps) * grid.pixel
            return first, (centre - position[:, None]).astype(np.float32)

        columns, dx = axis(x, grid.left, grid.width)
        rows, dy = axis(y, grid.top, grid.height)
        shape = (len(x), size, size)
        return cls(
            rows.tolist(),
            columns.tolist(),
            np.broadcast_to(dx[:, None, :], shape),
            np.broadcast_to(dy[:, :, None], shape),
            size,
        )
