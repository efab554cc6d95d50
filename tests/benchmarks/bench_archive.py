"""How archives are read: what is decoded, and what memory it takes. One process, ratios within it.

    python tests/benchmarks/bench_archive.py

A pair of scenes is written as tiled and as striped GeoTIFF, and its tiles are read block by block, each block opening
the files anew as a task does. The old order cut the index every 128 rows; the new one is `hisem.archive.blocks`.
Stored blocks are counted; CPU seconds are medians, both orders in turn. Memory is a process's peak over its start.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import rasterio
import tyro
from affine import Affine
from rich.console import Console
from rich.table import Table

from hisem.archive.blocks import TILES_PER_BLOCK, number_blocks
from hisem.archive.index import index_with_lattices
from hisem.archive.tiles import read_tiles
from hisem.distributed.captioner import read_pixels

LAYOUTS: dict[str, dict[str, Any]] = {
    "tiled 512 x 512": {"tiled": True, "blockxsize": 512, "blockysize": 512},
    "strips of 2 rows": {"blockysize": 2},
}


@dataclass(frozen=True)
class Options:
    """Measure reading."""

    side: int = 4096
    """Pixels a side of the scenes."""
    tiles: tuple[int, ...] = (256, 64)
    """Sides of tiles."""
    repeats: int = 3
    """Runs that count; the median is shown."""


def main(options: Options) -> None:
    """Print all tables."""
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        for name, layout in LAYOUTS.items():
            pair = write_pair(Path(folder), options.side, layout)
            for tile in options.tiles:
                console.print(order_table(f"{name}, tiles of {tile}", pair, tile, options.repeats))
        console.print(memory_table(pair))


def write_pair(folder: Path, side: int, layout: dict[str, Any]) -> dict[str, Any]:
    """A catalogue row of two scenes of smooth noise."""
    profile: dict[str, Any] = {"driver": "GTiff", "count": 3, "height": side, "width": side, "dtype": "uint8"}
    profile |= {"crs": "EPSG:32633", "transform": Affine(0.5, 0, 500_000, 0, -0.5, 4_000_000)}
    profile |= {"compress": "deflate", "predictor": 2, "interleave": "pixel", **layout}
    for seed, date in enumerate(("before", "after")):
        coarse = np.random.default_rng(seed).integers(0, 250, (3, side // 8, side // 8), np.uint8)
        fine = np.random.default_rng(seed + 2).integers(0, 6, (3, side, side), np.uint8)
        with rasterio.open(folder / f"{date}.tif", "w", **profile) as raster:
            raster.write(coarse.repeat(8, axis=1).repeat(8, axis=2) + fine)
    return {"pair_id": "a", "before": [str(folder / "before.tif")], "after": [str(folder / "after.tif")]}


def order_table(title: str, pair: dict[str, Any], tile: int, repeats: int) -> Table:
    """Stored blocks decoded, and CPU seconds, in the old order and the new."""
    index = index_with_lattices(pair, tile)
    orders = np.arange(len(index)) // TILES_PER_BLOCK, number_blocks(index)
    counts = [decoded(index, order, pair["before"][0]) for order in orders]
    runs = [[read(index, order, tile) for order in orders] for _ in range(repeats + 1)][1:]
    old, new = (statistics.median(run[number] for run in runs) for number in (0, 1))
    table = Table(title=title, title_justify="left")
    for column in ("", "old", "new", "old / new"):
        table.add_column(column, justify="right")
    stored = decoded(index, np.zeros(len(index), int), pair["before"][0])
    table.add_row("decoded, times", *(f"{count / stored:.2f}" for count in counts), f"{counts[0] / counts[1]:.2f} x")
    table.add_row("CPU seconds", f"{old:.2f}", f"{new:.2f}", f"{old / new:.2f} x")
    return table


def decoded(index: pa.Table, numbers: npt.NDArray[Any], path: str) -> int:
    """Stored blocks of a file that lies on the grid, counted once for each block of tiles that touches them."""
    with rasterio.open(path) as raster:
        height, width = raster.block_shapes[0]
    touched = set()
    places = zip(
        numbers.tolist(), index.column("row_off").to_pylist(), index.column("col_off").to_pylist(), strict=True
    )
    tile = index.column("height")[0].as_py()
    for number, row, col in places:
        down, across = (
            range(row // height, (row + tile - 1) // height + 1),
            range(col // width, (col + tile - 1) // width + 1),
        )
        touched |= {(number, *place) for place in product(down, across)}
    return len(touched)


def read(index: pa.Table, numbers: npt.NDArray[Any], tile: int) -> float:
    """CPU seconds of reading all tiles, block by block."""
    began = time.process_time()
    for number in range(numbers.max() + 1):
        exhaust(read_tiles(index.filter(pa.array(numbers == number)), tile))
    return time.process_time() - began


def memory_table(pair: dict[str, Any]) -> Table:
    """Peak memory of a process that reads a block, streamed as a captioner is fed, and collected."""
    table = Table(title="Memory of reading one block of 256 x 256 tiles, MiB", title_justify="left")
    for column in ("tiles", "streamed", "collected"):
        table.add_column(column, justify="right")
    for tiles in (32, 64, 128, 256):
        table.add_row(str(tiles), *(f"{peak(pair, tiles, collect) / 2**20:.0f}" for collect in (False, True)))
    return table


def peak(pair: dict[str, Any], tiles: int, collect: bool) -> int:
    """Bytes that a fresh process needs at its peak for `tiles` tiles, beyond what it needs for one."""
    os.environ["GDAL_CACHEMAX"] = "16"  # full with the first tiles: its bound is GDAL's, and not what is measured
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (pair, tiles, collect))


def _peak(pair: dict[str, Any], tiles: int, collect: bool) -> int:
    index = index_with_lattices(pair, 256)
    exhaust(read_pixels(index.slice(0, 1), 256))
    before = _high_water()
    streamed = read_pixels(index.slice(0, tiles), 256)
    exhaust([pa.concat_tables(streamed)] if collect else streamed)
    return _high_water() - before


def _high_water() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def exhaust(things: Iterable[object]) -> None:
    """Go through all of them and keep none."""
    for _ in things:
        pass


if __name__ == "__main__":
    main(tyro.cli(Options))
