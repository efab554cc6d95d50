"""Colours of the ground and of what stands on it: red, green, blue as seen at noon, and vegetation."""

from __future__ import annotations

import numpy as np

from hisem.archive.synthetic.geometry import FloatArray


def _paint(red: float, green: float, blue: float, vegetation: float = 0.0) -> FloatArray:
    return np.array([red, green, blue, vegetation], np.float32)


GRASS = _paint(0.37, 0.43, 0.25, 1.0)
DRY_GRASS = _paint(0.50, 0.48, 0.31, 0.7)
MEADOW = _paint(0.43, 0.49, 0.28, 1.0)
CROP = _paint(0.29, 0.43, 0.18, 1.0)
STUBBLE = _paint(0.60, 0.54, 0.35, 0.3)
SOIL = _paint(0.62, 0.50, 0.38)
DARK_SOIL = _paint(0.48, 0.39, 0.30)
MUD = _paint(0.55, 0.47, 0.38)
WOOD_FLOOR = _paint(0.24, 0.29, 0.16, 0.8)
CROWNS = np.stack([_paint(0.19, 0.30, 0.12, 1.0), _paint(0.25, 0.34, 0.14, 1.0), _paint(0.13, 0.24, 0.13, 0.5)])

WATER = _paint(0.19, 0.33, 0.37)
DEEP_WATER = _paint(0.09, 0.20, 0.26)
SHORE = _paint(0.50, 0.48, 0.36, 0.3)

ASPHALT = _paint(0.43, 0.43, 0.44)
NEW_ASPHALT = _paint(0.33, 0.33, 0.35)
VERGE = _paint(0.64, 0.60, 0.51)
CONCRETE = _paint(0.68, 0.66, 0.62)
MARKING = _paint(0.92, 0.91, 0.87)

ROOFS = np.stack(
    [
        _paint(0.66, 0.31, 0.22),
        _paint(0.72, 0.40, 0.28),
        _paint(0.53, 0.24, 0.19),
        _paint(0.36, 0.37, 0.42),
        _paint(0.76, 0.73, 0.69),
    ]
)
HALLS = np.stack([_paint(0.82, 0.83, 0.84), _paint(0.56, 0.66, 0.78), _paint(0.74, 0.75, 0.74)])
CARS = np.stack(
    [
        _paint(0.90, 0.90, 0.90),
        _paint(0.72, 0.13, 0.11),
        _paint(0.12, 0.13, 0.16),
        _paint(0.17, 0.30, 0.62),
        _paint(0.60, 0.62, 0.64),
    ]
)
