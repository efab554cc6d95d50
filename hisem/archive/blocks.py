"""Blocks: the tiles that one task reads, chosen so that as little as possible of a file is decoded twice.

A compressed file is decoded in the blocks it is stored in: squares where it is tiled, strips of whole rows where it is
not. A task that needs one pixel of such a block decodes all of it, and so does the next task that needs another.
A lattice says where the blocks of a file lie: first row and column, height and width, in pixels of the pair's grid.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from rasterio.io import DatasetReader

from hisem.archive.globe import turn_of, turns_between
from hisem.archive.grid import Grid
from hisem.archive.raster import bounds_in
from hisem.errors import RasterError

TILES_PER_BLOCK = 128
"""Tiles read by one task, and rows of one shard file, at most: 50 MB of pixels at 256 x 256."""

LATTICES = ("before_lattice", "after_lattice")
"""Columns that an index may carry beside its own: the lattice of each date's first file, four numbers."""

Lattice = tuple[float, ...]
Places = tuple[int, ...]

ROUNDING = 1e-6
"""Share of a stored block that counts as nothing."""


def lattice_of(raster: DatasetReader, grid: Grid) -> Lattice:
    """The lattice of a file on `grid`, of the overview that pixels of the grid's size are taken from.

    Overviews are taken to be stored in blocks of the file's own size, and a file without bounds on the grid (around a
    pole of a map without it) to have the grid's pixels.
    """
    height, width = raster.block_shapes[0]
    plain = 0.0, 0.0, float(height), float(width)
    if not grid.has_transform:
        return plain
    try:
        left, bottom, right, top = bounds_in(raster, grid.crs)
    except RasterError:
        return plain  # it only costs time
    t = grid.transform
    first, _, last, _ = grid.bounds_of(grid.extent)
    turn, *_ = [*turns_between(left, right, first, last, grid.crs and turn_of(grid.crs)), 0.0]
    left, right = left + turn, right + turn
    # Pixels of the grid that one of the file is high and wide.
    y, x = (bottom - top) / t.e / raster.height, (right - left) / t.a / raster.width
    overview = max((factor for factor in raster.overviews(1) if factor * max(x, y) <= 1 + ROUNDING), default=1)
    return (top - t.f) / t.e, (left - t.c) / t.a, overview * height * y, overview * width * x


def number_blocks(index: pa.Table, most: int = TILES_PER_BLOCK) -> npt.NDArray[np.int32]:
    """The block of each row of an index, counted from 0, with `most` tiles in each or fewer.

    Rows of a pair lie together. A pair of more than `most` tiles is cut into rectangles of windows, whose shape is
    the one by which the least is decoded by the columns `LATTICES`; smaller pairs that follow each other share blocks.
    """
    pairs = index.column("pair_id").combine_chunks().dictionary_encode().indices.to_numpy()
    starts = np.flatnonzero(np.diff(pairs, prepend=-1))
    numbers = np.zeros(len(index), np.int32)
    number, filled = -1, most
    for start, end in zip(starts, np.append(starts, len(index))[1:], strict=True):
        count = end - start
        if count > most:
            numbers[start:end] = number + 1 + _rectangles(index.slice(start, count), most)
            number, filled = int(numbers[start:end].max()), most
            continue
        if filled + count > most:
            number, filled = number + 1, 0
        numbers[start:end] = number
        filled += count
    return numbers


def _rectangles(pair: pa.Table, most: int) -> npt.NDArray[np.int64]:
    """The rectangle of each window of one pair, counted from 0, row by row."""
    first = pair.slice(0, 1).to_pylist()[0]
    lattices = tuple(tuple(first[name]) for name in LATTICES if first.get(name))
    rows, row_ranks = np.unique(pair.column("row_off").to_numpy(), return_inverse=True)
    cols, col_ranks = np.unique(pair.column("col_off").to_numpy(), return_inverse=True)
    window = first["height"], first["width"]
    height, width = best_rectangle(tuple(rows.tolist()), tuple(cols.tolist()), window, lattices, most)
    place = row_ranks // height * len(cols) + col_ranks // width
    return np.unique(place, return_inverse=True)[1]


@lru_cache(maxsize=1024)
def best_rectangle(
    rows: Places, cols: Places, window: tuple[int, int], lattices: tuple[Lattice, ...], most: int
) -> tuple[int, int]:
    """Windows that a rectangle is high and wide, of `most` windows at most and half of that at least.

    `rows` and `cols` are the first pixels of all windows, more than `most` together, and `window` their size.
    The best is where the least is decoded; then where there are the fewest rectangles, of the most equal size.
    """
    heights, widths = range(1, min(len(rows), most) + 1), range(1, min(len(cols), most) + 1)
    decoded = np.zeros((len(heights), len(widths)))
    for row, col, height, width in lattices:
        down = [_touched(rows, window[0], number, row, height) for number in heights]
        across = [_touched(cols, window[1], number, col, width) for number in widths]
        decoded += np.outer(down, across) * height * width

    def cost(shape: tuple[int, int]) -> tuple[float, int, int, int]:
        height, width = shape
        number = -(-len(rows) // height) * -(-len(cols) // width)
        return decoded[height - 1, width - 1], number, height * width, height + width

    return min(((h, w) for h in heights for w in widths if most <= 2 * h * w <= 2 * most), key=cost)


def _touched(places: Places, size: int, together: int, origin: float, length: float) -> int:
    """Stored blocks that are decoded along one axis, where so many windows are read `together`."""
    firsts = np.array(places[::together])
    lasts = np.array([*places[together - 1 :: together], places[-1]][: len(firsts)]) + size
    begin = np.floor((firsts - origin) / length + ROUNDING)
    end = np.ceil((lasts - origin) / length - ROUNDING)
    return int((end - begin).sum())
