"""The tile index: one row for each window of a pair's grid, known from the rasters' headers alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from hisem.archive.blocks import LATTICES
from hisem.archive.gdal import raster_errors
from hisem.archive.grid import Grid, Window, count_offsets, require_tiling, tile_id, windows
from hisem.archive.options import DEFAULTS, ReadOptions
from hisem.archive.reader import pair_reader
from hisem.errors import RasterError
from hisem.schemas import CATALOGUE, INDEX

MAX_TILES = 1_000_000
"""Windows of one pair beyond which its rasters are taken to lie in wrong places."""


MASK_APART = "mask_apart"
"""Column that is true where the masks of a date cover nothing of the pair's scene."""

INDEX_WITH_LATTICES = pa.schema(
    [*INDEX, *((name, pa.list_(pa.float64())) for name in LATTICES), (MASK_APART, pa.bool_())]
)
"""The index in flight, which `blocks.number_blocks` cuts."""


def index_pair(pair: Mapping[str, Any], tile_size: int, options: ReadOptions = DEFAULTS) -> pa.Table:
    """The tiles of one catalogue row, in `schemas.INDEX`: `index_with_lattices` without the lattices."""
    return index_with_lattices(pair, tile_size, options).select(INDEX.names)


def index_with_lattices(pair: Mapping[str, Any], tile_size: int, options: ReadOptions = DEFAULTS) -> pa.Table:
    """The tiles of one catalogue row, in `INDEX_WITH_LATTICES`; tiles are `tile_size` pixels high and wide.

    Along an axis on which the scene is smaller than a tile, `height` or `width` is the scene's own: what
    is missing to the tile size is padding, which is invalid.

    Opens the headers of all the pair's rasters, so that a pair that cannot be read is found here.

    Raises `RasterError` naming file and cause, as `PairReader` does, or where the before rasters span an
    absurd area.
    """
    require_tiling(tile_size, options.overlap)
    with raster_errors(pair["pair_id"], "the pair cannot be indexed", lambda _: "Check its rasters with gdalinfo"):
        return _indexed(pair, tile_size, options)


def _indexed(pair: Mapping[str, Any], tile_size: int, options: ReadOptions) -> pa.Table:
    with pair_reader(pair, tile_size, options) as reader:
        grid, lattices, mask_apart = reader.grid, reader.lattices(), reader.has_mask_apart()
    _require_countable(pair["pair_id"], grid, tile_size, options.overlap)
    places = windows(grid.height, grid.width, tile_size, options.overlap)
    rows = len(places)
    crs = grid.crs.to_string() if grid.crs else None
    columns: dict[str, list[Any]] = {name: [pair.get(name)] * rows for name in CATALOGUE.names}
    columns |= {
        "tile_id": [tile_id(pair["pair_id"], window, tile_size, options.resolution) for window in places],
        "row_off": [window.row_off for window in places],
        "col_off": [window.col_off for window in places],
        "height": [window.height for window in places],
        "width": [window.width for window in places],
        "crs": [crs] * rows,
        "transform": [window_transform(grid, window) for window in places],
        "geometry": grid.footprints(places),
    }
    columns |= {name: [lattice] * rows for name, lattice in zip(LATTICES, lattices, strict=True)}
    columns[MASK_APART] = [mask_apart] * rows
    return pa.table(columns, schema=INDEX_WITH_LATTICES)


def window_transform(grid: Grid, window: Window) -> list[float] | None:
    """The six coefficients a to f of the window's transform, or None for images without one."""
    return list(grid.transform_of(window))[:6] if grid.has_transform else None


def _require_countable(pair_id: str, grid: Grid, tile_size: int, overlap: int) -> None:
    """Raise `RasterError` where one misplaced raster blows the grid up beyond any real scene."""
    count = count_offsets(grid.height, tile_size, overlap) * count_offsets(grid.width, tile_size, overlap)
    if count > MAX_TILES:
        raise RasterError(
            f"{pair_id}: the before rasters span {grid.height} x {grid.width} pixels, that is {count} tiles of "
            f"{tile_size}, more than {MAX_TILES}; one of them lies far from the others: check its georeference, "
            "or pixels are too small: check --resolution."
        )
