"""How far the two dates of a tile are displaced against each other, and how sure that is.

Two phase correlations look at one tile. The first compares the directions of brightness gradients, which
light, season and contrast leave alone; shading under another sun pulls it by a fraction of a pixel. The
second whitens the spectrum of the gradients: fine structure decides, and shadows that moved can mislead it.
As they err in different ways, they are right where they agree: their mean is the shift, and how nearly
they agree is the confidence.

Sources: Kuglin and Hines 1975 for phase correlation, Fitch et al. 2002 for gradient directions
("Orientation correlation"), Guizar-Sicairos et al. 2008 for the sub-pixel peak (scikit-image).
H and W are the tile's height and width in pixels.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import ndimage  # type: ignore[import-untyped]
from skimage.filters import window
from skimage.registration import phase_cross_correlation

from hisem.archive.shift import UNKNOWN, Shift

Image = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
Field = npt.NDArray[np.complex64]

THIRDS = np.full(3, 1 / 3, np.float32)
"""Weights of the bands in the brightness. They are equal: any three bands may come, and noise is least."""
UPSAMPLING = 20
"""Steps a pixel at which the peak of a correlation is sought."""
SMOOTHING = 0.7
"""Standard deviation, in pixels, of the Gaussian before directions are taken: noise has directions too."""
FAINT = 0.5
"""Grey levels a pixel. Fainter gradients, which rounding to 8 bit makes, lose their influence."""
TAPER = 0.25
"""Share of a tile's side that fades out, half of it at either edge: content enters and leaves there."""
REACH = 4
"""Pixels around an invalid one whose smoothed gradient it touches."""
FADE = 12
"""Pixels beyond these over which influence grows to the full."""
MAX_SHARE = 0.25
"""Shifts up to this share of the tile's shorter side are told; beyond, too little of the content is common."""
MIN_SIDE = 16
"""Pixels a side of the smallest square whose content is enough."""
CHANCE = 7.0
"""What unrelated images of N pixels reach at the peak of their correlation, times the root of N."""


def estimate_shift(
    before: Image, after: Image, before_valid: Mask | None = None, after_valid: Mask | None = None
) -> Shift:
    """The shift between `before` and `after`, uint8 H W 3, from the pixels that both masks, H W, call valid.

    Unknown where the two have nothing to hold on to in common (open water, a constant image, another
    place), where the shift exceeds a quarter of the shorter side, and where fewer than about 16 x 16
    pixels are valid on both dates.
    """
    shape = before.shape[:2]
    if min(shape) < MIN_SIDE:
        return UNKNOWN
    weights = _weights(shape, before_valid, after_valid)
    pixels = float(np.sum(weights**2))
    if pixels < MIN_SIDE**2:
        return UNKNOWN
    brightness = before @ THIRDS, after @ THIRDS
    before_directions, after_directions = (_directions(image, weights) for image in brightness)
    before_structure, after_structure = (_structure(image, weights) for image in brightness)
    if not (before_structure.any() and after_structure.any()):
        return UNKNOWN
    first, correlation = _correlate(before_directions, after_directions, normalization=None)
    second, _ = _correlate(before_structure, after_structure, normalization="phase")
    x, y = (first[0] + second[0]) / 2, (first[1] + second[1]) / 2
    if max(abs(x), abs(y)) > MAX_SHARE * min(shape):
        return UNKNOWN
    agreement = max(0.0, 1.0 - math.dist(first, second))
    held = correlation * _held_both_ways(before_directions, after_directions, first)
    confidence = agreement * min(1.0, max(0.0, held * math.sqrt(pixels) / CHANCE - 1.0))
    return Shift(x, y, confidence) if confidence > 0.0 else UNKNOWN


def _correlate(before: Field, after: Field, normalization: str | None) -> tuple[tuple[float, float], float]:
    """The shift (x, y), and the correlation there, in [0, 1], if the fields are not normalised."""
    # The library says how to move its second argument onto its first, which is how the first is displaced.
    (y, x), error, _ = phase_cross_correlation(after, before, upsample_factor=UPSAMPLING, normalization=normalization)
    return (float(x), float(y)), math.sqrt(max(0.0, 1.0 - float(error) ** 2))


def _held_both_ways(before: Field, after: Field, shift: tuple[float, float]) -> float:
    """How evenly the correlation of two fields of directions is spread over directions, in [0, 1].

    It is 0 where all that corresponds is parallel edges: these do not hold the shift along themselves.
    """
    after = np.roll(after, (-round(shift[1]), -round(shift[0])), axis=(0, 1))
    common = np.real(before * after.conj())
    total = float(common.sum())
    if total <= 0.0:
        return 0.0
    doubled = before * after  # has twice the angle, so that both sides of a line are one direction
    uneven = np.vdot(common, doubled / np.maximum(np.abs(doubled), np.finfo(np.float32).tiny))
    return max(0.0, 1.0 - float(abs(uneven)) / total)


def _directions(brightness: Floats, weights: Floats) -> Field:
    """Unit vectors along the gradient."""
    gradient = _gradient(ndimage.gaussian_filter(brightness, SMOOTHING))
    return gradient * (weights / (np.abs(gradient) + FAINT))


def _structure(brightness: Floats, weights: Floats) -> Field:
    """The gradient with the root of its length, so that a few strong edges do not drown the rest."""
    gradient = _gradient(brightness)
    return gradient * (weights / np.sqrt(np.abs(gradient) + FAINT))


def _gradient(brightness: Floats) -> Field:
    """Grey levels a pixel, H W: rightwards the real part, downwards the imaginary part."""
    gradient: Field = np.empty(brightness.shape, np.complex64)
    gradient.imag, gradient.real = np.gradient(brightness)
    return gradient


def _weights(shape: tuple[int, ...], before_valid: Mask | None, after_valid: Mask | None) -> Floats:
    """How much each pixel counts, H W in [0, 1]: fading out towards the tile's edges and invalid pixels."""
    taper = _taper(shape)
    masks = [mask for mask in (before_valid, after_valid) if mask is not None and not mask.all()]
    if not masks:
        return taper
    depth = ndimage.distance_transform_edt(np.logical_and.reduce(masks)) - REACH
    fading = np.clip(depth / FADE, 0.0, 1.0)
    return taper * (np.sin(np.pi / 2 * fading) ** 2).astype(np.float32)


@lru_cache(maxsize=8)
def _taper(shape: tuple[int, ...]) -> Floats:
    return window(("tukey", TAPER), shape).astype(np.float32)
