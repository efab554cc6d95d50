"""Sunlight: its direction, the shadows it casts and the shading of slopes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hisem.archive.synthetic.geometry import Bounds, FloatArray

MAX_SWING = math.radians(40.0)
"""The sun's azimuth stays this near to south, so that shadows fall northwards."""
MAX_REACH = 1.0
"""The longest shadow, in heights of what casts it: the sun's elevation is at least 45 degrees."""


@dataclass(frozen=True)
class Sun:
    """`swing`: azimuth from south, radians, positive towards the west. `reach`: shadow length over height."""

    swing: float
    reach: float

    def shadow(self, height: float) -> tuple[float, float]:
        """The vector (x, y) from the top of something `height` metres high to its shadow on the ground."""
        length = self.reach * height
        return length * math.sin(self.swing), -length * math.cos(self.swing)

    def light(self, slope_x: FloatArray, slope_y: FloatArray) -> FloatArray:
        """Relative brightness of slopes that rise by `slope_x`, `slope_y` a metre, 1 on level ground."""
        toward_x, toward_y = -math.sin(self.swing) * self.reach, math.cos(self.swing) * self.reach
        return 1.0 - (slope_x * toward_x + slope_y * toward_y)


def shadowed(bounds: Bounds, height: float) -> Bounds:
    """`bounds` of a footprint grown by all shadows that `height` metres can cast under any sun."""
    reach = height * MAX_REACH
    side = reach * math.sin(MAX_SWING)
    return Bounds(bounds.left - side, bounds.top - reach, bounds.right + side, bounds.bottom)
