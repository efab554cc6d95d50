"""The tile index of a catalogue on Ray, and its rows cut into the blocks that tasks read."""

from __future__ import annotations

import logging
import math
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data

from hisem.archive.blocks import TILES_PER_BLOCK, number_blocks
from hisem.archive.catalogue import REJECTED
from hisem.archive.index import INDEX_WITH_LATTICES, MASK_APART, index_with_lattices
from hisem.archive.options import DEFAULTS, ReadOptions
from hisem.archive.reader import RANGES, range_columns
from hisem.archive.tiles import failed_pair_row
from hisem.distributed import session
from hisem.distributed.waiting import free, told
from hisem.errors import HisemError
from hisem.schemas import CATALOGUE, FAILED, INDEX, OK, QUALITY_FIELDS, conform, require_unique

log = logging.getLogger(__name__)

PAIRS_PER_TASK = 16
"""Pairs whose headers one task opens at the same time: where a bucket is slow they wait together, and one that hangs
keeps none of the others."""
MEASURING_TASKS = 1000
"""Tasks at most among which scenes are measured, which takes a read of each and not only its header."""
EVERY_SECONDS = 5.0
"""Least time between two lines of progress."""

FOUND = pa.schema([*INDEX_WITH_LATTICES, *QUALITY_FIELDS])
MEASURED = pa.schema([("pair_id", pa.string()), *((name, pa.list_(pa.float64())) for name in RANGES)])
_OPTIONAL = [field.name for field in FOUND if field.name not in INDEX.names]


def index_archive(catalogue: pa.Table, tile_size: int, options: ReadOptions = DEFAULTS) -> tuple[pa.Table, pa.Table]:
    """The tile index of a catalogue, built from headers in parallel, and one failed row (INDEX and
    quality columns) for each pair that cannot be opened at all.

    The index has the columns `LATTICES` beside its own, for `tile_blocks`.
    """
    tasks = math.ceil(len(catalogue) / PAIRS_PER_TASK)
    parts, since, done = [], time.monotonic(), 0
    with told(lambda: f"waiting for scenes to be opened, by tasks of 1 CPU each; {free()}", log.info) as hear:
        found = (
            ray.data.from_arrow(catalogue)  # which is a task itself
            .repartition(tasks)
            .map_batches(lambda pairs: index_pairs(pairs, tile_size, options), **session.BLOCKS)
        )
        for part in found.iter_batches(batch_size=None, batch_format="pyarrow"):
            hear()
            parts.append(part.cast(FOUND))
            done += len(pc.unique(part.column("pair_id")))
            if time.monotonic() - since > EVERY_SECONDS:
                since = time.monotonic()
                log.info("index: %d of %d pairs, %d tiles", done, len(catalogue), sum(map(len, parts)))
    # Rows of a pair stay together, row by row, so that a task opens each raster once.
    order = [("pair_id", "ascending"), ("row_off", "ascending"), ("col_off", "ascending")]
    table = pa.concat_tables(parts).sort_by(order)
    failed = pc.equal(table.column("status"), FAILED)
    rows = table.filter(pc.invert(failed)).select(INDEX_WITH_LATTICES.names)
    require_unique(rows, "tile_id", "tile index")
    _log_masks_apart(rows)
    rows = rows.drop_columns([MASK_APART])
    return rows, table.filter(failed).select([*INDEX.names, *(field.name for field in QUALITY_FIELDS)])


def _log_masks_apart(index: pa.Table) -> None:
    """Log how many pairs have masks that lie elsewhere, and so hide nothing."""
    ids = index.column("pair_id")
    apart = pc.unique(ids.filter(index.column(MASK_APART))).to_pylist()
    if apart:
        log.warning(
            "%d of %d pair(s) have a mask that covers nothing of their scene and hides nothing, the first is %s: check "
            "the paths and the CRS of the masks",
            *(len(apart), pc.count_distinct(ids).as_py(), apart[0]),
        )


def index_pairs(pairs: pa.Table, tile_size: int, options: ReadOptions) -> pa.Table:
    """The index rows of some pairs, or the one failed row of a pair, in schema FOUND."""

    def rows_of(pair: dict[str, Any]) -> pa.Table:
        if pair.get(REJECTED) is not None:
            return pa.Table.from_pylist([failed_pair_row(pair, pair[REJECTED])], schema=FOUND)
        try:
            rows = index_with_lattices(pair, tile_size, options)
        except HisemError as error:
            return pa.Table.from_pylist([failed_pair_row(pair, error)], schema=FOUND)
        return conform(rows.append_column("status", [[OK] * len(rows)]), FOUND, "index", optional=_OPTIONAL)

    with ThreadPoolExecutor(PAIRS_PER_TASK) as threads:
        return pa.concat_tables(threads.map(rows_of, pairs.to_pylist()))


def tile_blocks(index: pa.Table, options: ReadOptions = DEFAULTS, most: int = TILES_PER_BLOCK) -> ray.data.Dataset:
    """The index as a dataset for `read_tiles`, one block of `number_blocks` each; column `block` numbers them.

    With scaling by percentiles it has the columns `RANGES`, measured in parallel, once for each pair.
    """
    return ray.data.from_arrow(cut(with_ranges(index, options), most))


def cut(index: pa.Table, most: int = TILES_PER_BLOCK) -> list[pa.Table]:
    """The rows of each block, in the index's order, with its number in the column `block`."""
    numbers = number_blocks(index, most)
    rows = index.select([name for name in index.column_names if name in (*INDEX.names, *RANGES)])
    rows = rows.append_column("block", pa.array(numbers, pa.int32()))
    order = np.argsort(numbers, kind="stable")
    return [rows.take(places) for places in np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)]


def with_ranges(index: pa.Table, options: ReadOptions) -> pa.Table:
    """`index`, whose rows of a pair lie together, with the columns `RANGES` where scaling is by percentiles."""
    if options.scaling != "percentiles":
        return index
    pairs = pairs_of(index)
    with told(lambda: f"waiting for scenes to be measured, by tasks of 1 CPU each; {free()}", log.info):
        found = (
            ray.data.from_arrow(pairs)
            .repartition(min(len(pairs), MEASURING_TASKS))
            .map_batches(lambda some: measure_pairs(some, options), **session.BLOCKS)
        )
        measured = pa.concat_tables(ray.get(found.to_arrow_refs()))
    return join_ranges(index, measured.cast(MEASURED))


def pairs_of(index: pa.Table) -> pa.Table:
    """The catalogue rows of the pairs that an index has tiles of."""
    ids = index.column("pair_id").combine_chunks()
    return index.select(CATALOGUE.names).take(pc.index_in(pc.unique(ids), ids))


def measure_pairs(pairs: pa.Table, options: ReadOptions) -> pa.Table:
    """`RANGES` of each pair, in schema MEASURED."""
    rows = [{"pair_id": pair["pair_id"], **range_columns(pair, options)} for pair in pairs.to_pylist()]
    return pa.Table.from_pylist(rows, schema=MEASURED)


def join_ranges(index: pa.Table, measured: pa.Table) -> pa.Table:
    """`index` with the columns `RANGES` of its pairs."""
    ids = index.column("pair_id").combine_chunks()
    rows = measured.take(pc.index_in(ids, measured.column("pair_id").combine_chunks()))
    for name in RANGES:
        index = index.append_column(name, rows.column(name))
    return index
