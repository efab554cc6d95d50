"""The index on Ray: pairs of one task do not wait for each other, and blocks hold what they should."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import rasterio
from affine import Affine

from hisem import storage
from hisem.archive.blocks import LATTICES, number_blocks
from hisem.archive.catalogue import read_catalogue
from hisem.archive.index import index_pair, index_with_lattices
from hisem.archive.options import DEFAULTS, ReadOptions
from hisem.archive.reader import RANGES
from hisem.distributed import index as module
from hisem.distributed import session
from hisem.distributed.index import PAIRS_PER_TASK, cut, index_archive, index_pairs, tile_blocks
from hisem.errors import ResourceError
from hisem.schemas import CATALOGUE, INDEX, QUALITY_FIELDS

TILE = 32


def test_a_header_that_hangs_keeps_no_other_pair(archive, monkeypatch):
    pairs = read_catalogue(storage.join(archive, "with_gone.parquet"))
    opened: set[str] = set()
    others = threading.Event()

    def slow_at_first(pair: dict[str, Any], *rest: Any) -> pa.Table:
        if pair["pair_id"] == pairs["pair_id"][0].as_py():
            assert others.wait(60)
            return index_with_lattices(pair, *rest)
        try:
            return index_with_lattices(pair, *rest)
        finally:
            opened.add(pair["pair_id"])
            if len(opened) == len(pairs) - 1:
                others.set()

    monkeypatch.setattr(module, "index_with_lattices", slow_at_first)
    assert len(pairs) <= PAIRS_PER_TASK
    rows = index_pairs(pairs, TILE, DEFAULTS)
    assert len(rows) == 6 * 16 + 1
    assert rows.filter(pc.equal(rows["status"], "failed"))["tile_id"].to_pylist() == ["gone/pair"]


def test_a_task_that_dies_again_and_again_ends_the_run_with_the_reason(archive, ray_cluster, tmp_path, monkeypatch):
    def deadly(pairs: pa.Table, *rest: Any) -> pa.Table:
        with open(f"{tmp_path}/tries", "a") as tries:
            tries.write(".")
        os.kill(os.getpid(), signal.SIGKILL)
        return pairs

    monkeypatch.setattr(module, "index_pairs", deadly)
    monkeypatch.setitem(session.BLOCKS, "max_retries", 1)
    told = r"died again and again on the same work \(.*Memory may not"
    with pytest.raises(ResourceError, match=told), session.cluster():
        index_archive(read_catalogue(storage.join(archive, "catalogue.parquet")), TILE)
    assert (tmp_path / "tries").read_text() == ".."


def test_the_index_is_that_of_a_plain_loop(archive, ray_cluster):
    pairs = read_catalogue(storage.join(archive, "with_gone.parquet"))
    index, failed = index_archive(pairs, TILE)
    expected = [index_pair(pair, TILE) for pair in pairs.to_pylist() if pair["pair_id"] != "gone"]
    assert (
        index.select(INDEX.names)
        .combine_chunks()
        .equals(
            pa.concat_tables(expected).sort_by([("pair_id", "ascending"), ("row_off", "ascending")]).combine_chunks()
        )
    )
    assert index.column_names == [*INDEX.names, *LATTICES]
    assert failed.column_names == [*INDEX.names, *(field.name for field in QUALITY_FIELDS)]


def test_masks_that_cover_nothing_are_counted(archive, ray_cluster, tmp_path, caplog):
    rows = read_catalogue(storage.join(archive, "catalogue.parquet")).slice(0, 3).to_pylist()
    with rasterio.open(rows[0]["before"][0]) as scene:
        profile = scene.profile | {"count": 1, "nodata": None}
    for name, shift in (("here", 0), ("elsewhere", 10**5)):
        place = {"transform": profile["transform"] @ Affine.translation(shift, 0)}
        with rasterio.open(tmp_path / f"{name}.tif", "w", **profile | place) as mask:
            mask.write(np.zeros((1, profile["height"], profile["width"]), profile["dtype"]))
    here, elsewhere = ([str(tmp_path / f"{name}.tif")] for name in ("here", "elsewhere"))
    rows[0]["before_mask"] = here
    rows[1]["before_mask"], rows[2]["before_mask"] = [*elsewhere, *elsewhere], None
    index, failed = index_archive(pa.Table.from_pylist(rows, schema=CATALOGUE), TILE)
    assert (len(index), len(failed)) == (48, 0)
    (line,) = [line for line in caplog.messages if "mask that covers nothing" in line]
    assert "1 of 3 pair(s)" in line
    assert f"the first is {rows[1]['pair_id']}:" in line


def test_blocks_hold_each_row_once_and_in_order(archive, ray_cluster, monkeypatch):
    monkeypatch.setattr(module, "number_blocks", lambda index, most: number_blocks(index, 10))
    index, _ = index_archive(read_catalogue(storage.join(archive, "catalogue.parquet")), TILE)
    blocks = cut(index)
    assert [block["block"].unique().to_pylist() for block in blocks] == [[number] for number in range(len(blocks))]
    assert max(map(len, blocks)) <= 10
    assert all(len(block["pair_id"].unique()) == 1 for block in blocks)
    rows = pa.concat_tables(blocks).drop_columns(["block"])
    order = [("pair_id", "ascending"), ("row_off", "ascending"), ("col_off", "ascending")]
    assert rows.sort_by(order).equals(index.select(INDEX.names).combine_chunks())
    for block in blocks:
        assert block.sort_by(order).equals(block.combine_chunks())
    read = tile_blocks(index, ReadOptions(scaling="percentiles"))
    assert read.schema().names == [*INDEX.names, *RANGES, "block"]
    assert sorted(row["tile_id"] for row in read.take_all()) == sorted(index["tile_id"].to_pylist())
