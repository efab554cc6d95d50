"""Where and how strongly a tile changed, as the table keeps it.

Grids are the model's token grid, rows x columns, row 0 the uppermost; they span the whole tile.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

STEPS = 16
"""Levels for each doubling of the strength: neighbours differ by 4.4 %, so that rounding changes 2.2 % at most."""
ONE = 160
"""The level of strength 1. Levels 1 to 255 are 0.001 to 61; of trained models the weakest cell met was 0.009 and the
strongest 3.6."""
RISE = 0.3
"""Which cells changed: those that stand out from the tile's median by this share of what the strongest does.

A share of the strength itself would depend on the model's floor: with random weights and three BDAM layers all cells
lie between 0.53 and 0.59. On synthetic tiles with one change the boxes have a median IoU of 0.59 with the true ones,
where half of the rise gives 0.52 and half of the strength 0.55; the strongest cell's neighbours alone would lose the
other changes of a tile.
"""


def quantised(strength: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """A grid of change strength (0 and up, see `hisem.model.hisem.Explanation`) as levels of a fixed scale.

    The scale is logarithmic and the same for all tiles and models; `strength` is its inverse. 0 is nothing, or less
    than level 1; 255 also stands for more. Raises `ValueError` for a strength below 0 or NaN.
    """
    if not (strength >= 0).all():
        raise ValueError("change strength is 0 or more; found NaN or less")
    with np.errstate(divide="ignore"):
        levels = ONE + STEPS * np.log2(strength, dtype=np.float64)
    return np.rint(levels.clip(0, 255)).astype(np.uint8)


def strength(levels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """The strength that `quantised` levels stand for: 2^((level - 160) / 16), and 0 for level 0."""
    return np.where(levels > 0, np.exp2((levels.astype(np.float64) - ONE) / STEPS), 0).astype(np.float32)


def change_bbox(
    strength: npt.NDArray[np.float32], transform: Sequence[float] | None, tile_size: int, height: int, width: int
) -> list[float] | None:
    """[xmin, ymin, xmax, ymax] around the cells that changed (see `RISE`), in the CRS of the tile.

    `transform` holds the affine coefficients a, b, c, d, e, f of the tile's window, which is `height` x `width` pixels
    in the upper left of the `tile_size` x `tile_size` that the grid spans: the rest is padding, and counts for
    nothing. Where rows and columns of pixels are not parallel to the axes the box is around the turned one. None
    without transform, and where no cell is above 0.
    """
    rows, columns = strength.shape
    cell_height, cell_width = tile_size / rows, tile_size / columns
    seen = strength[: -(-height * rows // tile_size), : -(-width * columns // tile_size)]
    if transform is None or not seen.max() > 0:
        return None
    middle = np.median(seen)
    row, column = np.nonzero(seen - middle >= RISE * (seen.max() - middle))
    top, bottom = row.min() * cell_height, min((row.max() + 1) * cell_height, height)
    left, right = column.min() * cell_width, min((column.max() + 1) * cell_width, width)
    a, b, c, d, e, f = transform
    corners = [(a * x + b * y + c, d * x + e * y + f) for x in (left, right) for y in (top, bottom)]
    xs, ys = zip(*corners, strict=True)
    return [float(min(xs)), float(min(ys)), float(max(xs)), float(max(ys))]
