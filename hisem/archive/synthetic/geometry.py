"""Bounds and signed distances on the ground plane.

Lengths are metres; x points east and y points south, so that row and column order is y and x. A signed
distance is negative inside a shape. Coverage, the share of a pixel that a shape covers, follows from it
without supersampling, because an edge is straight at the scale of a pixel.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]
"""Float32 wherever it is pixels."""


class Bounds(NamedTuple):
    """An axis-parallel rectangle."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        """Extent along x."""
        return self.right - self.left

    @property
    def height(self) -> float:
        """Extent along y."""
        return self.bottom - self.top

    def padded(self, by: float) -> Bounds:
        """Grown by `by` on all sides; a negative `by` shrinks."""
        return Bounds(self.left - by, self.top - by, self.right + by, self.bottom + by)

    def moved(self, dx: float, dy: float) -> Bounds:
        """The same bounds elsewhere."""
        return Bounds(self.left + dx, self.top + dy, self.right + dx, self.bottom + dy)

    def union(self, other: Bounds) -> Bounds:
        """The smallest bounds around both."""
        return Bounds(
            min(self.left, other.left),
            min(self.top, other.top),
            max(self.right, other.right),
            max(self.bottom, other.bottom),
        )

    def contains(self, other: Bounds) -> bool:
        """Whether `other` lies wholly inside."""
        return (
            self.left <= other.left
            and self.top <= other.top
            and other.right <= self.right
            and other.bottom <= self.bottom
        )


def turned(x: FloatArray, y: FloatArray, angle: float) -> tuple[FloatArray, FloatArray]:
    """Coordinates along and across a direction that is turned by `angle` (radians) from the x axis."""
    cosine, sine = math.cos(angle), math.sin(angle)
    return x * cosine + y * sine, y * cosine - x * sine


def box(u: FloatArray, v: FloatArray, half_length: float, half_width: float) -> FloatArray:
    """Signed distance to a rectangle around the origin, exact on its sides, a bound at its corners."""
    return np.maximum(np.abs(u) - half_length, np.abs(v) - half_width)


def blob(u: FloatArray, v: FloatArray, radius: float, waves: npt.NDArray[np.float64]) -> FloatArray:
    """Approximate signed distance to a smooth irregular round shape.

    `waves` holds the cosine and sine amplitudes (2 by N, relative to the mean radius) of the outline's
    harmonics 2 to N + 1. The shape stays within `radius`.
    """
    reach = np.hypot(u, v)
    theta = np.arctan2(v, u)
    outline = np.ones_like(reach)
    for order, (cosine, sine) in enumerate(waves.T, start=2):
        outline += np.float32(cosine) * np.cos(order * theta) + np.float32(sine) * np.sin(order * theta)
    limit = 1.0 + float(np.hypot(*waves).sum())
    return reach - np.float32(radius / limit) * outline


def coverage(distance: FloatArray, pixel: float, soft: float = 0.0) -> FloatArray:
    """Share of each pixel inside a shape, in [0, 1]; `soft` metres widen the edge into a gradient."""
    cover = distance * np.float32(-1.0 / (pixel + soft))
    cover += np.float32(0.5)
    return np.minimum(np.maximum(cover, 0.0, out=cover), 1.0, out=cover).astype(np.float32, copy=False)


def smooth_step(value: FloatArray) -> FloatArray:
    """Zero below 0, one above 1, smooth between."""
    value = np.minimum(np.maximum(value, 0.0), 1.0)
    return (value * value * (3.0 - 2.0 * value)).astype(np.float32)
