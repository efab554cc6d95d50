"""The scale of change maps against its definition, boxes against rasterio's windows and shapely's affine maps."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from affine import Affine
from rasterio.windows import Window, bounds
from shapely.affinity import affine_transform

from hisem.captions.change import change_bbox, quantised, strength

LEVELS = np.arange(256, dtype=np.uint8)
NORTH_UP = Affine(0.6, 0, 366_642.6, 0, -0.6, 4_104_511.2)
QUIET = 0.1


def grid(rows: int, columns: int, *cells: tuple[int, int], loud: float = 1.0, quiet: float = QUIET):
    """A quiet map in which `cells` are loud."""
    found = np.full((rows, columns), quiet, np.float32)
    for cell in cells:
        found[cell] = loud
    return found


def test_levels_come_back_and_grow():
    values = strength(LEVELS)
    assert values.dtype == np.float32
    assert (values[0], values[160]) == (0, 1)
    assert (np.diff(values) > 0).all()
    assert values[2:] / values[1:-1] == pytest.approx(np.full(254, 2 ** (1 / 16)), rel=1e-6)
    np.testing.assert_array_equal(quantised(values), LEVELS)


def test_strengths_keep_their_order_and_two_percent():
    values = np.geomspace(0.00102, 61, 5000, dtype=np.float32).reshape(50, 100)
    levels = quantised(values)
    assert levels.dtype == np.uint8
    assert levels.shape == values.shape
    assert (np.diff(levels.ravel().astype(int)) >= 0).all()
    assert set(levels.flat) == set(range(1, 256))
    np.testing.assert_allclose(strength(levels), values, rtol=0.0222)


def test_ends_of_the_scale():
    ends = np.array([[0, 1e-30, 9e-4, 62, 1e30, np.inf]], np.float32)
    assert quantised(ends).tolist() == [[0, 0, 0, 255, 255, 255]]
    assert quantised(np.zeros((2, 3), np.float32)).tolist() == [[0] * 3] * 2


@pytest.mark.parametrize("wrong", [-1e-6, np.nan])
def test_what_is_no_strength(wrong):
    with pytest.raises(ValueError, match="0 or more"):
        quantised(grid(2, 2, (0, 1), loud=wrong))


@pytest.mark.parametrize(
    ("cells", "window"),
    [
        ([(0, 0)], (0, 0, 8, 8)),  # columns from, rows from, wide, high: pixels
        ([(7, 7)], (56, 56, 8, 8)),
        ([(2, 5)], (40, 16, 8, 8)),
        ([(1, 2), (1, 3), (2, 2)], (16, 8, 16, 16)),
        ([(0, 6), (5, 1)], (8, 0, 48, 48)),  # changes apart
    ],
)
def test_boxes_are_rasterios_windows(cells, window):
    found = change_bbox(grid(8, 8, *cells), NORTH_UP[:6], 64, 64, 64)
    assert found == pytest.approx(bounds(Window(*window), NORTH_UP), abs=1e-6)
    assert found is not None
    assert all(type(value) is float for value in found)


@pytest.mark.parametrize("floor", [0.0, QUIET, 5.0])
def test_a_cell_counts_from_three_tenths_of_the_rise_on(floor):
    map_ = grid(8, 8, (4, 4), loud=floor + 1, quiet=floor)
    map_[4, 1], map_[0, 4] = floor + 0.31, floor + 0.29
    found = change_bbox(map_, NORTH_UP[:6], 64, 64, 64)
    assert found == pytest.approx(bounds(Window(8, 32, 32, 8), NORTH_UP), abs=1e-6)


@pytest.mark.parametrize(
    "transform",
    [
        Affine.translation(5e5, 4e6) @ Affine.rotation(30) @ Affine.scale(2, -2),
        Affine.translation(-3, 7) @ Affine.rotation(200) @ Affine.shear(15, 0),
        Affine(0, 3, 100, 2, 0, -50),
        Affine.scale(1, 1),  # south is up
    ],
)
def test_turned_tiles(transform):
    found = change_bbox(grid(14, 14, (3, 5), (4, 8)), tuple(transform)[:6], 256, 256, 256)
    cell = 256 / 14
    pixels = shapely.box(5 * cell, 3 * cell, 9 * cell, 5 * cell)
    a, b, c, d, e, f = tuple(transform)[:6]
    assert found == pytest.approx(affine_transform(pixels, [a, b, d, e, c, f]).bounds, rel=1e-9, abs=1e-9)


def test_padding_counts_for_nothing():
    # 100 x 128 pixels of 256 x 256: the first 6 rows and 7 columns of cells, the 6th row in part.
    map_ = grid(14, 14, (5, 6), (13, 2), (6, 6), (5, 7))
    map_[6:] *= 10
    cell = 256 / 14
    found = change_bbox(map_, NORTH_UP[:6], 256, 100, 128)
    assert found == pytest.approx(bounds(Window(6 * cell, 5 * cell, cell, 100 - 5 * cell), NORTH_UP), abs=1e-6)


def test_the_whole_window_where_nothing_stands_out():
    found = change_bbox(grid(8, 8), NORTH_UP[:6], 64, 50, 30)
    assert found == pytest.approx(bounds(Window(0, 0, 30, 50), NORTH_UP), abs=1e-6)


def test_no_box():
    assert change_bbox(grid(8, 8, (1, 1)), None, 64, 64, 64) is None
    assert change_bbox(np.zeros((8, 8), np.float32), NORTH_UP[:6], 64, 64, 64) is None
