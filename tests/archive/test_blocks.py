"""Blocks of an index against a count of the stored blocks that each of them touches."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import rasterio

from hisem.archive.blocks import LATTICES, best_rectangle, number_blocks
from hisem.archive.grid import windows
from hisem.archive.index import index_with_lattices
from hisem.archive.options import ReadOptions

Write = Callable[..., str]
ZEROS = np.zeros((3, 512, 640), np.uint8)
TILED = {"tiled": True, "blockxsize": 128, "blockysize": 128}
STRIPED = {"blockysize": 2}


def decoded(index: pa.Table, numbers: np.ndarray, path: str) -> int:
    """Stored blocks of a file that the blocks of tiles touch, one by one, by rasterio's own windows."""
    rows = index.to_pylist()
    touched = set()
    with rasterio.open(path) as raster:
        height, width = raster.block_shapes[0]
    for row, number in zip(rows, numbers.tolist(), strict=True):
        down = range(row["row_off"] // height, (row["row_off"] + row["height"] - 1) // height + 1)
        across = range(row["col_off"] // width, (row["col_off"] + row["width"] - 1) // width + 1)
        touched |= {(number, *place) for place in product(down, across)}
    return len(touched)


def archive(write: Write, *, before: dict[str, Any], after: dict[str, Any], tile: int = 32, **options: Any) -> pa.Table:
    pair = {"pair_id": "a", "before": [write("b.tif", ZEROS, **before)], "after": [write("a.tif", ZEROS, **after)]}
    return index_with_lattices(pair, tile, ReadOptions(**options))


@pytest.mark.parametrize("most", [8, 20, 128])
@pytest.mark.parametrize("stored", [TILED, STRIPED])
def test_no_rectangle_of_that_size_decodes_less(write_raster: Write, stored: dict[str, Any], most: int) -> None:
    index = archive(write_raster, before=stored, after=stored)
    path = index["before"][0].as_py()[0]
    numbers = number_blocks(index, most)
    rows, cols = (index[name].to_numpy() // 32 for name in ("row_off", "col_off"))
    least = min(
        decoded(index, np.unique(rows // height * 100 + cols // width, return_inverse=True)[1], path)
        for height, width in product(range(1, 17), range(1, 21))
        if most <= 2 * height * width <= 2 * most
    )
    assert decoded(index, numbers, path) == least
    assert np.bincount(numbers).max() <= most
    assert np.bincount(numbers).min() > 0


def test_tiled_files_are_read_in_squares_and_strips_in_whole_rows(write_raster: Write) -> None:
    squares = archive(write_raster, before=TILED, after=TILED)
    assert decoded(squares, number_blocks(squares, 20), squares["before"][0].as_py()[0]) == 4 * 5
    in_order = np.arange(len(squares)) // 20  # whole rows: right for strips, and for tiles each decoded four times
    assert decoded(squares, in_order, squares["before"][0].as_py()[0]) == 4 * 4 * 5
    bands = archive(write_raster, before=STRIPED, after=STRIPED)
    assert decoded(bands, number_blocks(bands, 20), bands["before"][0].as_py()[0]) == 512 // 2


def test_both_dates_count(write_raster: Write) -> None:
    index = archive(write_raster, before=TILED, after=STRIPED)
    numbers = number_blocks(index, 20)
    paths = [index[name][0].as_py()[0] for name in ("before", "after")]
    pixels = [128 * 128, 2 * 640]
    places = index["row_off"].to_numpy() // 128 * 9 + index["col_off"].to_numpy() // 160
    in_squares = np.unique(places, return_inverse=True)[1]
    cost = [
        sum(decoded(index, n, p) * size for p, size in zip(paths, pixels, strict=True)) for n in (numbers, in_squares)
    ]
    assert cost[0] <= cost[1]


def test_a_view_of_bands_is_stored_as_its_file_is(write_raster: Write) -> None:
    plain = archive(write_raster, before=STRIPED, after=TILED)
    view = archive(write_raster, before=STRIPED, after=TILED, bands=("3", "2", "1"))
    assert plain.select(list(LATTICES)).equals(view.select(list(LATTICES)))
    assert plain["before_lattice"][0].as_py() == pytest.approx([0, 0, 2, 640])


def test_overviews_are_what_coarser_pixels_are_read_from(write_raster: Write) -> None:
    fine = archive(write_raster, before=TILED, after=TILED, resolution=40.0)
    assert fine["before_lattice"][0].as_py() == pytest.approx([0, 0, 32, 32])
    path = fine["before"][0].as_py()[0]
    with rasterio.open(path, "r+") as raster:
        raster.build_overviews([2, 4, 8])
    pair = {"pair_id": "a", "before": [path], "after": [path]}
    index = index_with_lattices(pair, 32, ReadOptions(resolution=40.0))
    assert index["before_lattice"][0].as_py() == pytest.approx([0, 0, 128, 128])


def row(pair: str, row_off: int, col_off: int) -> dict[str, Any]:
    return {"pair_id": pair, "row_off": row_off, "col_off": col_off, "height": 32, "width": 32}


def test_only_small_pairs_share_a_block() -> None:
    sizes = {"a": 3, "b": 4, "c": 30, "d": 2, "e": 9, "f": 1}
    rows = [row(pair, 32 * (n // 6), 32 * (n % 6)) for pair, count in sizes.items() for n in range(count)]
    numbers = number_blocks(pa.Table.from_pylist(rows), 10)
    of = {pair: {int(n) for n, r in zip(numbers, rows, strict=True) if r["pair_id"] == pair} for pair in sizes}
    assert of["a"] == of["b"] == {0}
    assert of["c"] == set(range(1, 1 + len(of["c"])))
    assert of["d"] == {1 + len(of["c"])}
    assert of["e"] == of["f"] == {2 + len(of["c"])}
    assert np.bincount(numbers).max() <= 10


def test_an_index_without_tiles_has_no_blocks() -> None:
    assert len(number_blocks(pa.Table.from_pylist([row("a", 0, 0)]).slice(1))) == 0


def test_a_last_window_that_shifts_inwards_belongs_to_the_last_rectangle() -> None:
    places = windows(500, 700, 64)
    rows, cols = ({getattr(place, name) for place in places} for name in ("row_off", "col_off"))
    shape = best_rectangle(tuple(sorted(rows)), tuple(sorted(cols)), (64, 64), ((0.0, 0.0, 512.0, 512.0),), 44)
    index = pa.Table.from_pylist(
        [{**row("a", p.row_off, p.col_off), "before_lattice": [0.0, 0.0, 512.0, 512.0]} for p in places]
    )
    numbers = number_blocks(index, 44)
    assert shape == (8, 4)
    assert numbers.max() + 1 == 3
