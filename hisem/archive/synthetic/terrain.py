"""Bare terrain: parcels of grass, crops, stubble, soil and wood under several octaves of noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from hisem.archive.synthetic import palette
from hisem.archive.synthetic.canvas import Grid
from hisem.archive.synthetic.geometry import FloatArray, smooth_step

PARCEL_SPACING = 96.0
"""Metres between neighbouring parcel centres."""

_GRASS, _MEADOW, _CROP, _STUBBLE, _SOIL, _WOOD = range(6)
_SHARES = (0.34, 0.20, 0.15, 0.09, 0.10, 0.12)
_COLOURS = np.stack([palette.GRASS, palette.MEADOW, palette.CROP, palette.STUBBLE, palette.SOIL, palette.WOOD_FLOOR])
_ROW_CONTRAST = np.array([0.0, 0.012, 0.05, 0.045, 0.04, 0.0], np.float32)


def noise(rng: np.random.Generator, grid: Grid, size: float, octaves: int) -> FloatArray:
    """Fractal noise, H by W, about zero with unit standard deviation.

    The coarsest octave has features of `size` metres; each further one halves size and amplitude.
    """
    total = np.zeros((grid.height, grid.width), np.float32)
    power = 0.0
    for octave in range(octaves):
        cell = size / 2**octave / grid.pixel
        rows, columns = (max(2, int(np.ceil(extent / cell)) + 1) for extent in (grid.height, grid.width))
        lattice = Image.fromarray(rng.standard_normal((rows, columns), dtype=np.float32))
        smooth = lattice.resize(
            (grid.width, grid.height),
            Image.Resampling.BICUBIC,
            box=(0.0, 0.0, min(columns, grid.width / cell), min(rows, grid.height / cell)),
        )
        total += np.asarray(smooth) * np.float32(0.5**octave)
        power += 0.5**octave
    return total / np.float32(max(float(total.std()), 1e-6 * power))


@dataclass(frozen=True)
class Terrain:
    """The ground of a scene.

    `paint` is H by W by 4 as on a canvas, `wood` H by W says where trees stand densely, `border` H by W
    is the distance in metres to the nearest parcel border, `settled` H by W in [0, 1] says how
    densely people have built.
    """

    grid: Grid
    paint: FloatArray
    wood: npt.NDArray[np.bool_]
    border: FloatArray
    settled: FloatArray


def make_terrain(rng: np.random.Generator, grid: Grid) -> Terrain:
    """The ground of one scene on `grid`, drawn from `rng`."""
    label, border = _parcels(rng, grid)
    kinds = rng.choice(len(_SHARES), size=int(label.max()) + 1, p=_SHARES)
    tone = 1.0 + 0.07 * rng.standard_normal((len(kinds), 1)) + 0.025 * rng.standard_normal((len(kinds), 4))
    tone[:, 3] = 1.0
    paint = (_COLOURS[kinds] * tone).astype(np.float32)[label]  # H W 4

    rows = _rows(rng, grid, label, kinds)
    lush = noise(rng, grid, 90.0, 4)[..., None]
    dry = palette.DRY_GRASS / palette.GRASS
    dry[3] = 1.0
    grown = (paint[..., 3:] > 0.5) * smooth_step(0.5 + 0.35 * lush) * 0.6
    paint *= 1.0 + grown * (dry - 1.0)

    margin = smooth_step((3.0 - border) / 2.0)[..., None] * 0.45
    paint += margin * (palette.DRY_GRASS - paint)
    grain = 0.040 * noise(rng, grid, 14.0, 4) + 0.042 * noise(rng, grid, 2.6, 2)
    paint[..., :3] *= (1.0 + rows + grain)[..., None]
    settled = smooth_step(0.5 + 0.45 * noise(rng, grid, 220.0, 2))
    return Terrain(grid, paint.astype(np.float32), (kinds == _WOOD)[label], border, settled)


def _parcels(rng: np.random.Generator, grid: Grid) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """The parcel number of each pixel and its distance to the nearest border: cells of jittered centres."""
    x = grid.x + 1.2 * noise(rng, grid, 30.0, 2)
    y = grid.y + 1.2 * noise(rng, grid, 30.0, 2)
    nearest = np.full((grid.height, grid.width), np.inf, np.float32)
    second = nearest.copy()
    label = np.zeros((grid.height, grid.width), np.int64)
    left, top = grid.left, grid.top
    number = 0
    reach = int(1.75 * PARCEL_SPACING / grid.pixel)  # no centre is nearest or second nearest beyond
    for row in range(-1, int(grid.height * grid.pixel / PARCEL_SPACING) + 2):
        for column in range(-1, int(grid.width * grid.pixel / PARCEL_SPACING) + 2):
            centre = (np.array([column, row]) + rng.uniform(0.1, 0.9, 2)) * PARCEL_SPACING
            at = (centre / grid.pixel).astype(int)
            near = np.s_[max(at[1] - reach, 0) : max(at[1] + reach, 0), max(at[0] - reach, 0) : max(at[0] + reach, 0)]
            dx = x[near] - np.float32(left + centre[0])
            dy = y[near] - np.float32(top + centre[1])
            distance = np.sqrt(dx * dx + dy * dy)
            label[near][distance < nearest[near]] = number
            second[near] = np.minimum(second[near], np.maximum(distance, nearest[near]))
            nearest[near] = np.minimum(nearest[near], distance)
            number += 1
    return label, (np.minimum(second, nearest + 2 * PARCEL_SPACING) - nearest) / 2


def _rows(
    rng: np.random.Generator, grid: Grid, label: npt.NDArray[np.int64], kinds: npt.NDArray[np.int64]
) -> FloatArray:
    """Relative brightness of crop rows and furrows, H by W about zero, one direction a parcel."""
    heading = rng.uniform(0.0, np.pi, len(kinds)).astype(np.float32)
    period = rng.uniform(4.0, 7.0, len(kinds)).astype(np.float32)
    wave = 2.0 * np.float32(np.pi) / period
    phase = (np.cos(heading) * wave)[label] * grid.x + (np.sin(heading) * wave)[label] * grid.y
    return _ROW_CONTRAST[kinds][label] * np.sin(phase)
