"""The conditions of an acquisition, which are no changes: light, season, haze, noise and misregistration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt
from scipy import ndimage  # type: ignore[import-untyped]

from hisem.archive.synthetic.geometry import FloatArray
from hisem.archive.synthetic.sun import MAX_REACH, MAX_SWING, Sun

MAX_SHIFT = 0.8
"""Pixels of misregistration along each axis."""
SEASONS = {4: (0.97, 1.05, 0.92), 6: (1.0, 1.0, 1.0), 8: (1.11, 1.03, 0.95), 10: (1.22, 1.0, 0.86)}
"""Colour of vegetation by month, relative to June: red, green, blue."""


@dataclass(frozen=True)
class Conditions:
    """How a scene was taken.

    `season` and `gain` multiply red, green and blue, of vegetation and of everything; `haze` and `noise`
    (standard deviation) are in levels of 0 to 255; `shift` is the displacement of the picture's content
    in pixels, x to the right and y downwards.
    """

    sun: Sun
    season: tuple[float, float, float] = (1.0, 1.0, 1.0)
    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    haze: float = 0.0
    noise: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def draw(cls, rng: np.random.Generator, time: datetime, *, shifted: bool) -> Conditions:
        """Random conditions for an acquisition at `time`; misregistered only if `shifted`."""
        season = np.array(SEASONS[time.month]) * rng.uniform(0.96, 1.04, 3)
        gain = rng.uniform(0.88, 1.10) * rng.uniform(0.96, 1.04, 3)
        shift = rng.uniform(-MAX_SHIFT, MAX_SHIFT, 2) if shifted else np.zeros(2)
        return cls(
            sun=Sun(float(rng.uniform(-MAX_SWING, MAX_SWING)), float(rng.uniform(0.55, MAX_REACH))),
            season=(float(season[0]), float(season[1]), float(season[2])),
            gain=(float(gain[0]), float(gain[1]), float(gain[2])),
            haze=float(rng.uniform(0.0, 6.0)),
            noise=float(rng.uniform(2.0, 4.5)),
            shift=(float(shift[0]), float(shift[1])),
        )

    def expose(self, paint: FloatArray, rng: np.random.Generator) -> FloatArray:
        """The picture that a sensor takes of `paint` (H by W by 4): H by W by 3, levels of 0 to 255."""
        gain = 255.0 * np.array(self.gain, np.float32)
        picture = paint[..., 3:] * (gain * (np.array(self.season, np.float32) - 1.0))
        picture += gain
        picture *= paint[..., :3]
        picture += np.float32(self.haze)
        for axis, shift in ((1, self.shift[0]), (0, self.shift[1])):
            if shift:
                picture = ndimage.correlate1d(picture, _lanczos(shift), axis=axis, mode="nearest")
        if self.noise:
            grain = rng.standard_normal(picture.shape, dtype=np.float32)
            grain *= self.noise
            picture += grain
        return picture


def _lanczos(shift: float) -> npt.NDArray[np.float64]:
    """The filter, applied by correlation, that moves a signal by `shift` (within one sample)."""
    position = np.arange(-3, 4) + shift
    weights = np.where(np.abs(position) < 3, np.sinc(position) * np.sinc(position / 3), 0.0)
    return weights / weights.sum()


def levels(picture: FloatArray) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    """The picture as uint8. No band is ever 0, which is kept for nodata."""
    return np.clip(np.rint(picture), 1, 255).astype(np.uint8)


NOON = Conditions(Sun(math.radians(20.0), 0.8))
"""A June noon through clear air, without noise: what a tile truly shows."""
