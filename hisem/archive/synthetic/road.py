"""Roads: gently waving strips with verges and a centre line, endless across a scene or of finite length."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from hisem.archive.synthetic import palette
from hisem.archive.synthetic.canvas import Canvas, blend
from hisem.archive.synthetic.geometry import Bounds, FloatArray, coverage, smooth_step, turned
from hisem.archive.synthetic.sun import Sun

VERGE_WIDTH = 1.2
"""Metres of gravel beside the asphalt."""
TAPER = 7.0
"""Metres over which a widened road reaches its width."""
FAR = 1e6
"""The end of an endless road."""


@dataclass(frozen=True, kw_only=True)
class Road:
    """A road along a sine wave through (`x`, `y`) in direction `angle`; metres and radians.

    It runs from `start` to `end` along the direction, `half_width` wide on each side; towards finite
    ends it narrows to `end_half_width`. `lanes` more than 2 draw lane lines beside the centre line.
    """

    x: float
    y: float
    angle: float
    half_width: float
    end_half_width: float
    amplitude: float = 0.0
    wavelength: float = 100.0
    phase: float = 0.0
    start: float = -FAR
    end: float = FAR
    lanes: int = 2
    fresh: bool = False
    raised: ClassVar[bool] = False

    def along_across(self, x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Position along the road and signed distance from its centre line (to first order) of pixels."""
        u, v = turned(x - np.float32(self.x), y - np.float32(self.y), self.angle)
        wave = np.float32(2 * math.pi / self.wavelength)
        theta = wave * u + np.float32(self.phase)
        slope = np.float32(self.amplitude) * wave * np.cos(theta)
        across = (v - np.float32(self.amplitude) * np.sin(theta)) / np.sqrt(1.0 + slope * slope)
        return u, across.astype(np.float32)

    def position(self, x: float, y: float) -> tuple[float, float]:
        """Position along the road and signed distance from its centre line of one point."""
        cosine, sine = math.cos(self.angle), math.sin(self.angle)
        u, v = (x - self.x) * cosine + (y - self.y) * sine, (y - self.y) * cosine - (x - self.x) * sine
        wave = 2 * math.pi / self.wavelength
        slope = self.amplitude * wave * math.cos(wave * u + self.phase)
        return u, (v - self.amplitude * math.sin(wave * u + self.phase)) / math.hypot(1.0, slope)

    def points(self, along: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """x and y of the centre line at N positions, N by 2."""
        v = self.amplitude * np.sin(2 * math.pi / self.wavelength * along + self.phase)
        cosine, sine = math.cos(self.angle), math.sin(self.angle)
        points = np.empty((len(along), 2))
        points[:, 0] = self.x + along * cosine - v * sine
        points[:, 1] = self.y + along * sine + v * cosine
        return points

    def point(self, along: float) -> tuple[float, float, float]:
        """x, y and heading (radians) of the centre line at one position."""
        wave = 2 * math.pi / self.wavelength
        v = self.amplitude * math.sin(wave * along + self.phase)
        cosine, sine = math.cos(self.angle), math.sin(self.angle)
        bend = math.atan(self.amplitude * wave * math.cos(wave * along + self.phase))
        return self.x + along * cosine - v * sine, self.y + along * sine + v * cosine, self.angle + bend

    def bounds(self) -> Bounds:
        """Bounds of a finite road with its verges."""
        points = self.points(np.linspace(self.start, self.end, 9))
        (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
        return Bounds(left, top, right, bottom).padded(self.half_width + VERGE_WIDTH)

    def moved(self, dx: float, dy: float) -> Road:
        """The same road elsewhere."""
        return replace(self, x=self.x + dx, y=self.y + dy)

    def cast(self, canvas: Canvas, sun: Sun) -> None:
        """A road casts no shadow."""

    def draw(self, canvas: Canvas, sun: Sun) -> None:
        """Paint the road; what lies under it disappears."""
        grid = canvas.grid
        whole = Bounds(grid.left, grid.top, grid.left + grid.width * grid.pixel, grid.top + grid.height * grid.pixel)
        window = canvas.window(whole if self.end >= FAR else self.bounds())
        along, across = self.along_across(window.x, window.y)
        near = np.abs(across) < self.half_width + VERGE_WIDTH + 2.0 + grid.pixel
        along, across = along[near], across[near]  # a road is a small part of its window
        beyond = np.maximum(np.float32(self.start) - along, along - np.float32(self.end))
        narrow = np.float32(self.half_width - self.end_half_width)
        edge = np.abs(across) - self.half_width + narrow * (1.0 - smooth_step(-beyond / TAPER))

        patch = canvas.paint[window.rows, window.columns]
        pixels = patch[near]
        verge = 0.8 * coverage(np.maximum(edge - VERGE_WIDTH, beyond), grid.pixel, 0.8)
        blend(pixels, verge, palette.VERGE)
        asphalt = palette.NEW_ASPHALT if self.fresh else palette.ASPHALT
        blend(pixels, coverage(np.maximum(edge, beyond), grid.pixel), asphalt)
        dashes = coverage(np.abs(np.mod(along, 8.0) - 4.0) - 2.2, grid.pixel)
        lines = dashes * coverage(np.abs(across) - 0.25, grid.pixel)
        if self.lanes > 2:
            lines = np.maximum(lines, coverage(np.abs(edge + 1.6) - 0.2, grid.pixel))
        blend(pixels, lines * coverage(beyond + 1.5, grid.pixel), palette.MARKING)
        patch[near] = pixels
