"""Tiles: windows of an index with the pixels of both dates, and the shards they are kept in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from hisem.archive import png
from hisem.archive.grid import Window
from hisem.archive.index import window_transform
from hisem.archive.options import DEFAULTS, ReadOptions
from hisem.archive.reader import PairReader, pair_reader
from hisem.errors import RasterError
from hisem.schemas import CATALOGUE, FAILED, INDEX, OK, QUALITY_FIELDS, SHARD, SKIPPED


@dataclass(frozen=True)
class Tile:
    """One row of the index and what reading it gave.

    `status` is ok, skipped or failed; the images, uint8 H W 3, are there when it is ok, the reason in
    `error` when it is not. The valid fractions, in [0, 1], are unknown when it failed.
    """

    row: dict[str, Any]
    status: str
    error: str | None = None
    before_valid: float | None = None
    after_valid: float | None = None
    before: npt.NDArray[np.uint8] | None = None
    after: npt.NDArray[np.uint8] | None = None


def read_tiles(index: pa.Table, tile_size: int, options: ReadOptions = DEFAULTS) -> Iterator[Tile]:
    """Read the rows of `index` (schema INDEX), one tile each, pair by pair; one tile is in memory at a time.

    Pairs come in the order of their first rows and keep the order of their rows; each of a pair's rasters
    is opened once. Images are `tile_size` x `tile_size`, padded with 0 where a window is smaller. A tile
    of which less than `options.min_valid` is valid on either date is skipped; a tile or pair that cannot be
    read has failed, and the others go on. `index` may carry the columns `reader.RANGES`; without them
    scaling by percentiles measures each pair here.
    """
    pairs: dict[str, list[int]] = {}
    for number, pair_id in enumerate(index.column("pair_id").to_pylist()):
        pairs.setdefault(pair_id, []).append(number)
    for numbers in pairs.values():
        yield from _read_pair(index.take(numbers).to_pylist(), tile_size, options)


def _read_pair(rows: list[dict[str, Any]], tile_size: int, options: ReadOptions) -> Iterator[Tile]:
    """The tiles of one pair, whose columns all `rows` share."""
    with ExitStack() as stack:
        try:
            reader = stack.enter_context(pair_reader(rows[0], tile_size, options))
            reader.measure()
        except RasterError as error:
            yield from (Tile(row, FAILED, str(error)) for row in rows)
            return
        for row in rows:
            try:
                tile = _read_tile(reader, row, options.min_valid)
            except RasterError as error:
                tile = Tile(row, FAILED, str(error))
            yield tile


def _read_tile(reader: PairReader, row: dict[str, Any], min_valid: float) -> Tile:
    window = Window(row["row_off"], row["col_off"], row["height"], row["width"])
    _require_indexed_place(reader, row, window)
    pixels = reader.read(window)
    valid = pixels.before_valid, pixels.after_valid
    if min(valid) < min_valid:
        reason = (
            f"valid are {valid[0]:.1%} of the pixels before and {valid[1]:.1%} after, less than the {min_valid:.1%} "
            "required (the rest is nodata, masked, or outside the scene)."
        )
        return Tile(row, SKIPPED, reason, *valid)
    return Tile(row, OK, None, *valid, pixels.before, pixels.after)


def _require_indexed_place(reader: PairReader, row: dict[str, Any], window: Window) -> None:
    """Raise `RasterError` where the raster was replaced since the index was made: geometry would be wrong."""
    here = window_transform(reader.grid, window)
    if (row["transform"] is None) != (here is None) or (here and not np.allclose(here, row["transform"], 1e-9, 0)):
        raise RasterError(
            f"{row['before'][0]}: lies at {here} where the index has {row['transform']}; the raster has changed "
            "since the index was made: make the index again."
        )


def shard_table(tiles: Iterable[Tile]) -> pa.Table:
    """The tiles in `schemas.SHARD`, images as PNG; references and shifts are null until they are joined."""
    rows = []
    for tile in tiles:
        images = [None if image is None else png.encode(image) for image in (tile.before, tile.after)]
        rows.append(
            {name: tile.row.get(name) for name in INDEX.names}
            | {
                "status": tile.status,
                "error": tile.error,
                "before_valid": tile.before_valid,
                "after_valid": tile.after_valid,
                "before_image": images[0],
                "after_image": images[1],
            }
        )
    return pa.Table.from_pylist(rows, schema=SHARD)


def failed_pair_row(pair: Mapping[str, Any], error: Exception | str) -> dict[str, Any]:
    """The one row, with the fields of INDEX and QUALITY, of a pair that cannot be opened at all."""
    row: dict[str, Any] = dict.fromkeys([*INDEX.names, *(field.name for field in QUALITY_FIELDS)])
    row |= {name: pair.get(name) for name in CATALOGUE.names}
    row |= {"tile_id": f"{pair['pair_id']}/pair", "row_off": 0, "col_off": 0, "height": 0, "width": 0}
    return row | {"status": FAILED, "error": str(error)}
