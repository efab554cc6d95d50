"""Tiles: windows of an index with the pixels of both dates, and the shards they are kept in."""

from __future__ import annotations

import math
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
from hisem.archive.shift import RELIABLE, UNKNOWN, Shift
from hisem.errors import RasterError
from hisem.schemas import CATALOGUE, FAILED, INDEX, OK, QUALITY_FIELDS, SHARD, SKIPPED


@dataclass(frozen=True)
class Tile:
    """One row of the index and what reading it gave.

    `status` is ok, skipped or failed; the images, uint8 H W 3, are there when it is ok, the reason in
    `error` when it is not, or when it is flagged. The valid fractions, in [0, 1], are unknown when it failed;
    the shift is there where enough is valid.
    """

    row: dict[str, Any]
    status: str
    error: str | None = None
    before_valid: float | None = None
    after_valid: float | None = None
    before: npt.NDArray[np.uint8] | None = None
    after: npt.NDArray[np.uint8] | None = None
    shift: Shift = UNKNOWN

    def quality(self) -> dict[str, Any]:
        """`schemas.QUALITY_FIELDS` of this tile."""
        known = self.shift.x is not None
        return {
            "status": self.status,
            "error": self.error,
            "before_valid": self.before_valid,
            "after_valid": self.after_valid,
            "shift_x": self.shift.x,
            "shift_y": self.shift.y,
            "shift_confidence": self.shift.confidence if known else None,
        }


def read_tiles(index: pa.Table, tile_size: int, options: ReadOptions = DEFAULTS) -> Iterator[Tile]:
    """Read the rows of `index` (schema INDEX), one tile each, pair by pair; one tile is in memory at a time.

    Pairs come in the order of their first rows and keep the order of their rows; each of a pair's rasters
    is opened once. Images are `tile_size` x `tile_size`, padded with 0 where a window is smaller. A tile
    of which less than `options.min_valid` is valid on either date is skipped; one whose dates are displaced by
    more than `options.max_shift` is flagged, or skipped; a tile or pair that cannot be read has failed, and the
    others go on. `index` may carry the columns `reader.RANGES`; without them
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
                tile = _read_tile(reader, row, options)
            except RasterError as error:
                tile = Tile(row, FAILED, str(error))
            yield tile


def _read_tile(reader: PairReader, row: dict[str, Any], options: ReadOptions) -> Tile:
    from hisem.archive.coregistration import estimate_shift  # takes a second, which only who reads tiles should pay

    window = Window(row["row_off"], row["col_off"], row["height"], row["width"])
    _require_indexed_place(reader, row, window)
    pixels = reader.read(window)
    valid = pixels.before_valid, pixels.after_valid
    if min(valid) < options.min_valid:
        reason = (
            f"valid are {valid[0]:.1%} of the pixels before and {valid[1]:.1%} after, less than the "
            f"{options.min_valid:.1%} required (the rest is nodata, masked, or outside the scene)."
        )
        return Tile(row, SKIPPED, reason, *valid)
    shift = estimate_shift(pixels.before, pixels.after, pixels.before_mask, pixels.after_mask)
    displaced = _displaced(shift, options.max_shift)
    if displaced and options.skip_shifted:
        return Tile(row, SKIPPED, displaced, *valid, shift=shift)
    return Tile(row, OK, displaced, *valid, pixels.before, pixels.after, shift)


def _displaced(shift: Shift, limit: float | None) -> str | None:
    """What is said of a tile whose dates are surely more than `limit` pixels apart; None of any other."""
    if limit is None or shift.x is None or shift.y is None or shift.confidence < RELIABLE:
        return None
    length = math.hypot(shift.x, shift.y)
    if length <= limit:
        return None
    return (
        f"the dates are displaced by {length:.2f} pixels ({shift.x:+.2f} right, {shift.y:+.2f} down, confidence "
        f"{shift.confidence:.2f}), more than the {limit:g} allowed; co-register the scenes or raise max_shift."
    )


def _require_indexed_place(reader: PairReader, row: dict[str, Any], window: Window) -> None:
    """Raise `RasterError` where the raster was replaced since the index was made: geometry would be wrong."""
    here = window_transform(reader.grid, window)
    if (row["transform"] is None) != (here is None) or (here and not np.allclose(here, row["transform"], 1e-9, 0)):
        raise RasterError(
            f"{row['before'][0]}: lies at {here} where the index has {row['transform']}; the raster has changed "
            "since the index was made: make the index again."
        )


def shard_table(tiles: Iterable[Tile]) -> pa.Table:
    """The tiles in `schemas.SHARD`, images as PNG; references are null until they are joined."""
    rows = []
    for tile in tiles:
        images = [None if image is None else png.encode(image) for image in (tile.before, tile.after)]
        rows.append(
            {name: tile.row.get(name) for name in INDEX.names}
            | tile.quality()
            | {"before_image": images[0], "after_image": images[1]}
        )
    return pa.Table.from_pylist(rows, schema=SHARD)


def failed_pair_row(pair: Mapping[str, Any], error: Exception | str) -> dict[str, Any]:
    """The one row, with the fields of INDEX and QUALITY, of a pair that cannot be opened at all."""
    row: dict[str, Any] = dict.fromkeys([*INDEX.names, *(field.name for field in QUALITY_FIELDS)])
    row |= {name: pair.get(name) for name in CATALOGUE.names}
    row |= {"tile_id": f"{pair['pair_id']}/pair", "row_off": 0, "col_off": 0, "height": 0, "width": 0}
    return row | {"status": FAILED, "error": str(error)}
