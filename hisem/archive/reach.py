"""The part of a grid that a raster of another coordinate reference system may cover: the only part worth reading."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.io import DatasetReader

from hisem.archive.globe import projected, turn_of, turns_between
from hisem.archive.grid import Grid, Window
from hisem.archive.outlines import outlines
from hisem.archive.raster import bounds_in

Box = tuple[float, float, float, float]
"""Left, bottom, right and top."""

PLAIN = (-179.9, -80.0, 179.9, 80.0)
"""Degrees (west, south, east, north) within which bounds are transformed as they are."""
PLAIN_EXTENT = 30.0
"""Degrees; bounds of what spans more are not those of its edges."""
CELLS = 32
"""Of a grid, along either axis, for each of which it is looked whether a raster reaches it."""
POINTS = 9
"""Of a raster, along either axis, whose cells on a grid are looked up."""
MARGIN = 0.5
"""Of a cell, by which it may be larger on the raster than its corners."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Reach:
    """Where a raster reaches a grid."""

    extent: Window
    """The part of the grid that it may cover."""
    move: float = 0.0
    """To be added to the x of its pixels, in units of its CRS."""
    scale: tuple[float, float] | None = None
    """Pixels of the grid to one of the raster, along the raster's x and y; None where GDAL finds it by itself."""


def reaches(raster: DatasetReader, grid: Grid) -> list[Reach]:
    """Return where `raster`, of another CRS, may cover `grid`.

    There are several where the x of its CRS repeats around the Earth and the grid meets it in more than one turn.
    """
    box = raster.bounds
    own = min(box.left, box.right), min(box.bottom, box.top), max(box.left, box.right), max(box.bottom, box.top)
    there = grid.bounds_of(grid.extent)
    if _is_plain(raster.crs, own) and _is_plain(grid.crs, there):
        extent = covering(bounds_in(raster, grid.crs), grid).intersection(grid.extent)
        return [Reach(extent)] if extent else []
    turn = turn_of(raster.crs)
    # The x that a pixel of the grid has in the raster's CRS lies within these turns in any case.
    moves = turns_between(own[0], own[2], -2 * turn, 2 * turn, turn) if turn else [0.0]
    found = [_reached(raster, own, move, grid) for move in moves]
    return [one for one in found if one]


def covering(box: Box, grid: Grid) -> Window:
    """Return the window of whole pixels that `box` touches, and one more around it against rounding."""
    left, bottom, right, top = box
    t = grid.transform
    row, col = math.floor((top - t.f) / t.e) - 1, math.floor((left - t.c) / t.a) - 1
    end_row, end_col = math.ceil((bottom - t.f) / t.e) + 1, math.ceil((right - t.c) / t.a) + 1
    return Window(row, col, end_row - row, end_col - col)


def _is_plain(crs: CRS, box: Box) -> bool:
    """True if a box lies away from poles and the antimeridian, spans little, and is counted by the usual longitudes."""
    turn = turn_of(crs)
    if turn is not None and max(abs(box[0]), abs(box[2])) > turn / 2:
        return False
    (outline,) = outlines(crs, np.array([box]))
    if outline is None or outline.geom_type != "Polygon":
        return False
    west, south, east, north = outline.bounds
    return bool(shapely.box(*PLAIN).contains(outline)) and max(east - west, north - south) <= PLAIN_EXTENT


def _reached(raster: DatasetReader, box: Box, move: float, grid: Grid) -> Reach | None:
    """The window of `grid` around all cells in which pixels of `raster`, moved by `move` along x, may lie."""
    rows, cols = np.linspace(0, grid.height, CELLS + 1), np.linspace(0, grid.width, CELLS + 1)
    corners = _mapped(grid.transform, *np.meshgrid(cols, rows))
    x, y = np.moveaxis(projected(grid.crs, raster.crs, corners.reshape(-1, 1, 2)).reshape(corners.shape), -1, 0)
    pixels = _mapped(~raster.transform, x - move, y)
    # The four corners of each cell.
    four = np.stack([pixels[:-1, :-1], pixels[1:, :-1], pixels[:-1, 1:], pixels[1:, 1:]])
    missing = np.isnan(four).any(axis=(0, 3))
    low, high = np.min(four, axis=0), np.max(four, axis=0)
    margin = MARGIN * (high - low) + 1
    size = raster.width, raster.height
    met = (~missing & ((high + margin >= 0) & (low - margin <= size)).all(axis=-1)) | (
        missing & ~np.isnan(four).all(axis=(0, 3))
    )
    met |= _holding(raster, box, move, grid)
    if not met.any():
        return None
    touched_rows, touched_cols = np.flatnonzero(met.any(axis=1)), np.flatnonzero(met.any(axis=0))
    top, bottom = math.floor(rows[touched_rows[0]]), math.ceil(rows[touched_rows[-1] + 1])
    left, right = math.floor(cols[touched_cols[0]]), math.ceil(cols[touched_cols[-1] + 1])
    extent = Window(top, left, bottom - top, right - left).intersection(grid.extent)
    return Reach(extent, move, _scale(pixels, grid)) if extent else None


def _scale(pixels: Floats, grid: Grid) -> tuple[float, float] | None:
    """Pixels of `grid` to one of the raster, in the middle of what its `pixels` at corners of cells show.

    GDAL takes it from the extents of both, which are those of the whole Earth where a window crosses its end.
    """
    down = (pixels[1:, :-1] - pixels[:-1, :-1]) / (grid.height / CELLS)
    across = (pixels[:-1, 1:] - pixels[:-1, :-1]) / (grid.width / CELLS)
    steps = np.hypot(down, across).reshape(-1, 2)
    steps = steps[np.isfinite(steps).all(axis=1)]
    if not len(steps) or not (steps > 0).all():
        return None
    x, y = np.median(steps, axis=0)
    return 1 / float(x), 1 / float(y)


def _holding(raster: DatasetReader, box: Box, move: float, grid: Grid) -> npt.NDArray[np.bool_]:
    """Cells of `grid` that hold a point of `raster`, as small rasters lie between the corners of one."""
    held = np.zeros((CELLS, CELLS), bool)
    x, y = np.meshgrid(np.linspace(box[0], box[2], POINTS), np.linspace(box[1], box[3], POINTS))
    turn = turn_of(raster.crs)
    if turn is not None:
        # Only those whose x the grid's pixels have in this turn.
        usual = np.abs(x + move) <= turn / 2 * (1 + 1e-9)
        x, y = x[usual], y[usual]
    places = projected(raster.crs, grid.crs, np.stack([x.ravel(), y.ravel()], axis=-1)[:, None])[:, 0]
    places = places[np.isfinite(places).all(axis=-1)]
    left, _, right, _ = grid.bounds_of(grid.extent)
    again = turn_of(grid.crs)
    for place_x, place_y in places.tolist():
        for by in turns_between(place_x, place_x, left, right, again):
            col, row = ~grid.transform @ (place_x + by, place_y)
            if 0 <= row <= grid.height and 0 <= col <= grid.width:
                row, col = row / grid.height * CELLS, col / grid.width * CELLS
                held[min(int(row), CELLS - 1), min(int(col), CELLS - 1)] = True
    return held


def _mapped(transform: Affine, x: Floats, y: Floats) -> Floats:
    """Points as `transform` maps them, in a last axis."""
    return np.stack([transform.a * x + transform.c, transform.e * y + transform.f], axis=-1)
