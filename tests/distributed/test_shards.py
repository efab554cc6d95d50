"""Archive to shards on Ray, against a plain loop over the archive room."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hisem import storage
from hisem.archive import png
from hisem.archive.catalogue import read_catalogue
from hisem.archive.index import index_pair
from hisem.archive.options import ReadOptions
from hisem.archive.tiles import read_tiles
from hisem.distributed.archive import (
    MANIFEST,
    is_synthetic,
    read_benchmark,
    read_shard_columns,
    shard_archive,
    shard_levir_cc,
)
from hisem.distributed.forecast import forecast_shards
from hisem.distributed.index import index_archive
from hisem.errors import ReferencesError, StorageError
from hisem.schemas import REFERENCES, SHARD

TILE = 32


def test_shards_equal_a_plain_loop(archive, shards):
    catalogue = read_catalogue(storage.join(archive, "catalogue.parquet"))
    expected = {
        tile.row["tile_id"]: tile for pair in catalogue.to_pylist() for tile in read_tiles(index_pair(pair, TILE), TILE)
    }
    table = read_shard_columns(shards, SHARD.names)
    assert sorted(table.column("tile_id").to_pylist()) == sorted(expected)
    references = {
        (row["pair_id"], row["row_off"], row["col_off"]): row
        for row in storage.read_parquet(storage.join(archive, "references.parquet")).to_pylist()
    }
    for row in table.to_pylist():
        tile = expected[row["tile_id"]]
        assert row["status"] == tile.status
        if tile.before is not None and tile.after is not None:
            assert np.array_equal(png.decode(row["before_image"]), tile.before)
            assert np.array_equal(png.decode(row["after_image"]), tile.after)
        told = references[row["pair_id"], row["row_off"], row["col_off"]]
        assert row["references"] == told["references"]
        assert row["changed"] == told["changed"]


def test_reading_options_reach_the_pixels_and_are_remembered(archive, tmp_path, ray_cluster):
    options = ReadOptions(overlap=8, min_valid=0.9, bands=("3", "2", "1"), scaling="percentiles")
    catalogue, out = storage.join(archive, "with_gone.parquet"), str(tmp_path / "out")
    summary = shard_archive(catalogue, out, TILE, options=options)
    expected = {
        tile.row["tile_id"]: tile
        for pair in read_catalogue(catalogue).to_pylist()
        if pair["pair_id"] != "gone"
        for tile in read_tiles(index_pair(pair, TILE, options), TILE, options)
    }
    rows = read_shard_columns(out, SHARD.names).to_pylist()
    assert summary.statuses["skipped"] > 0
    assert sorted(row["tile_id"] for row in rows) == sorted([*expected, "gone/pair"])
    for row in rows:
        tile = expected.get(row["tile_id"])
        assert row["status"] == (tile.status if tile else "failed")
        if tile and tile.before is not None and tile.after is not None:
            assert np.array_equal(png.decode(row["before_image"]), tile.before)
            assert np.array_equal(png.decode(row["after_image"]), tile.after)
    with pytest.raises(StorageError, match=r"was made with .*percentiles"):
        shard_archive(catalogue, out, TILE, options=ReadOptions(overlap=8, min_valid=0.9))


def test_shard_folder_holds_shards_only_and_an_index(shards):
    for path in storage.list_files(shards):
        assert pq.read_schema(path).names == SHARD.names
    assert storage.exists(storage.join(shards, "_index/index.parquet"))


def test_a_pair_that_cannot_be_opened_is_one_failed_row(archive, ray_cluster, tmp_path):
    summary = shard_archive(storage.join(archive, "with_gone.parquet"), str(tmp_path / "out"), TILE)
    assert summary.statuses["failed"] == 1
    rows = read_shard_columns(str(tmp_path / "out"), SHARD.names).to_pylist()
    failed = [row for row in rows if row["status"] == "failed"]
    assert [row["tile_id"] for row in failed] == ["gone/pair"]
    assert "nowhere.tif" in failed[0]["error"]
    assert len(rows) == 6 * 16 + 1


def test_shards_of_version_0_1_get_the_mark_of_synthetic_data(archive, shards, tmp_path, ray_cluster):
    """Without it a model of the demo would count as one of real data."""
    old = str(shutil.copytree(shards, tmp_path / "shards"))
    manifest = json.loads(storage.read_bytes(storage.join(old, MANIFEST)))
    del manifest["synthetic"]
    storage.write_bytes(storage.join(old, MANIFEST), json.dumps(manifest).encode())
    assert not is_synthetic(old)
    shard_archive(storage.join(archive, "catalogue.parquet"), old, TILE, storage.join(archive, "references.parquet"))
    assert is_synthetic(old)


def test_the_manifest_of_default_options_is_what_it_was(shards):
    assert set(json.loads(storage.read_bytes(storage.join(shards, MANIFEST)))) == {
        "tile_size",
        "references",
        "synthetic",
    }
    assert read_benchmark(shards) is None


def test_again_changes_nothing(archive, shards):
    before = {path: storage.read_bytes(path) for path in storage.list_files(shards)}
    references = storage.join(archive, "references.parquet")
    shard_archive(storage.join(archive, "catalogue.parquet"), shards, TILE, references)
    assert {path: storage.read_bytes(path) for path in storage.list_files(shards)} == before


def test_an_interrupted_output_is_done_again(archive, ray_cluster, tmp_path):
    out = str(tmp_path / "out")
    catalogue = storage.join(archive, "catalogue.parquet")
    first = shard_archive(catalogue, out, TILE)
    storage.delete(storage.join(out, MANIFEST))
    storage.write_bytes(storage.join(out, "part-000000.parquet"), b"half a file")
    assert shard_archive(catalogue, out, TILE) == first


def test_other_settings_and_foreign_files_are_refused(archive, shards, tmp_path, ray_cluster):
    with pytest.raises(StorageError, match="holds shards with other tiles"):
        shard_archive(storage.join(archive, "catalogue.parquet"), shards, 2 * TILE)
    storage.write_bytes(tmp_path / "mine" / "diary.txt", b"dear diary")
    with pytest.raises(StorageError, match=r"diary\.txt"):
        shard_archive(storage.join(archive, "catalogue.parquet"), str(tmp_path / "mine"), TILE)
    assert storage.read_bytes(tmp_path / "mine" / "diary.txt") == b"dear diary"


def test_corrected_references_are_not_taken_for_the_old_ones(archive, shards, tmp_path, ray_cluster):
    table = storage.read_parquet(storage.join(archive, "references.parquet"))
    rows = table.to_pylist()
    rows[0]["references"][0] = "something else"
    storage.write_parquet(table.from_pylist(rows, schema=table.schema), tmp_path / "references.parquet")
    with pytest.raises(StorageError, match="was made with"):
        shard_archive(storage.join(archive, "catalogue.parquet"), shards, TILE, str(tmp_path / "references.parquet"))


def test_an_archive_of_which_nothing_opens(archive, tmp_path, ray_cluster):
    whole = storage.read_parquet(storage.join(archive, "with_gone.parquet"))
    storage.write_parquet(whole.slice(6), tmp_path / "gone.parquet")
    summary = shard_archive(str(tmp_path / "gone.parquet"), str(tmp_path / "out"), TILE)
    assert (summary.tiles, summary.statuses["failed"]) == (1, 1)


def test_the_index_keeps_a_pairs_rows_together(archive, ray_cluster):
    index, failed = index_archive(read_catalogue(storage.join(archive, "with_gone.parquet")), TILE)
    pairs = index.column("pair_id").to_pylist()
    assert len(failed) == 1
    assert pairs == sorted(pairs)
    assert len(set(index.column("tile_id").to_pylist())) == 6 * 16


def test_levir_cc_import(shared_data, ray_cluster, tmp_path):
    summary = shard_levir_cc(str(shared_data / "levir_cc"), str(tmp_path / "levir"))
    assert summary.splits == {"test": 62, "train": 6, "val": 1}
    table = read_shard_columns(str(tmp_path / "levir"), ["references", "changed", "status"])
    assert table.num_rows == 69
    assert {len(references) for references in table.column("references").to_pylist()} == {5}
    assert sum(table.column("changed").to_pylist()) == 29
    assert read_benchmark(str(tmp_path / "levir")) == "LEVIR-CC"
    assert shard_levir_cc(str(shared_data / "levir_cc"), str(tmp_path / "levir")) == summary


def test_rows_that_cannot_be_used_are_failed_pairs(archive, ray_cluster, tmp_path, caplog):
    scene = storage.read_parquet(storage.join(archive, "catalogue.parquet")).to_pylist()[0]
    before, after = scene["before"][0], scene["after"][0]
    lines = [
        f"good,{before},{Path(after).as_uri()},,",
        f"b d,{before},{after},,",
        f"late,{before},{after},2024-05-02,2024-05-01",
        f"number,{before},{after},1717236720,",
        f",{before},{after},,",
        "short,x",
    ]
    catalogue = tmp_path / "c.csv"
    catalogue.write_text("\n".join(["pair_id,before,after,before_time,after_time", *lines]))
    out = str(tmp_path / "out")
    summary = shard_archive(str(catalogue), out, TILE)
    rows = read_shard_columns(out, SHARD.names).to_pylist()
    failed = {row["pair_id"]: row["error"] for row in rows if row["status"] == "failed"}
    assert len(failed) == summary.statuses["failed"] == 5
    assert {row["pair_id"] for row in rows} - set(failed) == {"good"}
    assert "is later than" in failed["late"]
    assert "ISO 8601" in failed["number"]
    assert [line for line in caplog.messages if "5 of 6 row(s) cannot be used" in line]
    assert shard_archive(str(catalogue), out, TILE) == summary  # the same rows under the same names


@pytest.mark.parametrize("moved", [False, True])
def test_references_that_describe_no_tile_are_counted_or_refused(archive, ray_cluster, tmp_path, caplog, moved):
    catalogue = storage.join(archive, "catalogue.parquet")
    table = storage.read_parquet(storage.join(archive, "references.parquet")).select(REFERENCES.names)
    rows = table.to_pylist()
    for row in rows if moved else rows[:3]:
        row["row_off"] += 1
    uri = str(tmp_path / "r.parquet")
    storage.write_parquet(pa.Table.from_pylist(rows, schema=REFERENCES), uri)
    out = str(tmp_path / "out")
    if moved:
        for run in (lambda: shard_archive(catalogue, out, TILE, uri), lambda: forecast_shards(catalogue, TILE, uri)):
            with pytest.raises(ReferencesError, match=f"0 row.*, {len(rows)} do not .*row_off 1.*--tile-size"):
                run()
        assert not (tmp_path / "out").exists()
        return
    summary = shard_archive(catalogue, out, TILE, uri)
    assert summary.described == len(rows) - 3
    (line,) = [line for line in caplog.messages if "describe a tile" in line]
    assert f"{len(rows) - 3} row(s) describe a tile of {TILE} pixels, 3 do not" in line


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "3", '{"tile_size": "32"}', "[" * 100_000, "\xff", '{"tile_size": 32, "benchmark": 1}'],
)
def test_a_damaged_manifest_is_named(shards, tmp_path, content):
    copy = tmp_path / "shards"
    shutil.copytree(shards, copy)
    (copy / MANIFEST).write_bytes(content.encode("latin-1"))
    with pytest.raises(StorageError, match=r"_index/manifest\.json: .*run tile\.py again"):
        read_benchmark(str(copy))
