"""Tiles and shards: every failure is a row, and the rest of the archive goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from affine import Affine

from hisem.archive import bands, coregistration, png
from hisem.archive.index import index_pair
from hisem.archive.options import ReadOptions
from hisem.archive.raster import open_raster
from hisem.archive.shift import RELIABLE, Shift
from hisem.archive.tiles import failed_pair_row, read_tiles, shard_table
from hisem.errors import RasterError
from hisem.schemas import FAILED, INDEX, OK, QUALITY_FIELDS, SHARD, SKIPPED, conform

Write = Callable[..., str]
Noise = Callable[..., npt.NDArray[np.uint8]]


def pair(pair_id: str, before: str, after: str) -> dict[str, Any]:
    return {"pair_id": pair_id, "before": [before], "after": [after], "split": "train"}


def test_tiles_carry_the_pixels_of_their_rows(write_raster: Write, noise: Noise) -> None:
    scenes = [noise(seed=seed) for seed in (1, 2)]
    paths = [write_raster(f"{number}.tif", scene) for number, scene in enumerate(scenes)]
    table = index_pair(pair("p", *paths), 32)
    tiles = list(read_tiles(table, 32))
    assert [tile.row for tile in tiles] == table.to_pylist()
    for tile in tiles:
        rows = slice(tile.row["row_off"], tile.row["row_off"] + 32)
        cols = slice(tile.row["col_off"], tile.row["col_off"] + 32)
        assert (tile.status, tile.error, tile.before_valid, tile.after_valid) == (OK, None, 1, 1)
        assert tile.before is not None
        assert tile.after is not None
        assert np.array_equal(tile.before, scenes[0][:, rows, cols].transpose(1, 2, 0))
        assert np.array_equal(tile.after, scenes[1][:, rows, cols].transpose(1, 2, 0))


def test_each_raster_is_opened_once_however_rows_are_mixed(
    write_raster: Write, noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def counting(uri: str) -> Any:
        opened.append(uri)
        return open_raster(uri)

    first, second = (write_raster(f"{number}.tif", noise(seed=number)) for number in range(2))
    table = pa.concat_tables([index_pair(pair("a", first, first), 32), index_pair(pair("b", second, second), 32)])
    mixed = table.take([17, 0, 9, 3, 1])
    monkeypatch.setattr(bands, "open_raster", counting)
    tiles = list(read_tiles(mixed, 32))
    assert [tile.row["tile_id"][0] for tile in tiles] == ["b", "b", "a", "a", "a"]
    assert opened == [second, second, first, first]


def test_broken_pairs_fail_and_the_others_go_on(write_raster: Write, noise: Noise, tmp_path: Path) -> None:
    good = write_raster("good.tif", noise(height=128, width=128))
    names = ["absent", "empty", "folder", "text", "rotated", "gray", "far", "nowhere"]
    copies = {name: write_raster(f"{name}.tif", noise(height=128, width=128)) for name in names}
    table = pa.concat_tables([index_pair(pair(name, good, copies.get(name, good)), 64) for name in ["x", *names, "y"]])

    for name in ("absent", "folder"):
        Path(copies[name]).unlink()
    Path(copies["folder"]).mkdir()
    Path(copies["empty"]).write_bytes(b"")
    Path(copies["text"]).write_text("no raster at all")
    write_raster("gray.tif", noise(bands=1))
    write_raster("rotated.tif", noise(), transform=Affine(10, 1, 500_000, 1, -10, 4_000_000))
    write_raster("far.tif", noise(), transform=Affine(10, 0, 100_000, 0, -10, 4_000_000))
    write_raster("nowhere.tif", noise(), crs=None)

    tiles = list(read_tiles(table, 64))
    assert [tile.row for tile in tiles] == table.to_pylist()
    for tile in tiles:
        name = tile.row["pair_id"]
        assert tile.status == (FAILED if name in names else OK)
        if tile.status == FAILED:
            assert tile.before is None
            assert tile.before_valid is None
            assert tile.error is not None
            assert copies[name] in tile.error
            assert len(tile.error) > len(copies[name]) + 20


@pytest.mark.parametrize("layout", [{"tiled": True, "blockxsize": 64, "blockysize": 64}, {"compress": "deflate"}, {}])
@pytest.mark.parametrize("shift", [0, 3])
def test_a_truncated_file_fails_where_it_is_cut(
    write_raster: Write, noise: Noise, layout: dict[str, Any], shift: int
) -> None:
    # As large as it is, because a warp reads 128 rows at a time.
    whole = write_raster("whole.tif", noise(height=512, width=192), transform=Affine(10, 0, shift, 0, -10, 0))
    cut = write_raster("cut.tif", noise(height=512, width=192), transform=Affine(10, 0, 0, 0, -10, 0), **layout)
    table = index_pair(pair("p", whole, cut), 64)
    content = Path(cut).read_bytes()
    Path(cut).write_bytes(content[: len(content) // 2])
    tiles = list(read_tiles(table, 64))
    statuses = [tile.status for tile in tiles]
    assert set(statuses[:3]) == {OK}
    assert set(statuses[15:]) == {FAILED}
    assert all("cut.tif: rows" in str(tile.error) for tile in tiles if tile.status == FAILED)


@pytest.fixture
def displaced(write_raster: Write, noise: Noise) -> pa.Table:
    """The index of two tiles of 64 pixels: content moved 3 right and 2 down, and content that stays."""
    before = noise(height=64, width=128)
    after = before.copy()
    after[:, 2:, 3:64] = before[:, :-2, :61]
    return index_pair(pair("p", write_raster("before.tif", before), write_raster("after.tif", after)), 64)


def test_every_tile_tells_its_shift(displaced: pa.Table) -> None:
    moved, still = read_tiles(displaced, 64)
    assert (moved.status, moved.error, still.status, still.error) == (OK, None, OK, None)
    assert (moved.shift.x, moved.shift.y) == pytest.approx((3, 2), abs=0.1)
    assert (still.shift.x, still.shift.y) == (0, 0)
    assert min(moved.shift.confidence, still.shift.confidence) > 0.9
    table = shard_table([moved, still])
    found = table.select(["shift_x", "shift_y", "shift_confidence"]).to_pylist()
    for row, tile in zip(found, (moved, still), strict=True):
        assert list(row.values()) == pytest.approx([tile.shift.x, tile.shift.y, tile.shift.confidence])


def test_displaced_tiles_are_flagged(displaced: pa.Table) -> None:
    moved, still = read_tiles(displaced, 64, ReadOptions(max_shift=3.5))
    assert (moved.status, still.status, still.error) == (OK, OK, None)
    assert moved.before is not None
    assert "displaced by 3.6" in str(moved.error)
    assert "more than the 3.5 allowed" in str(moved.error)
    assert [tile.error for tile in read_tiles(displaced, 64, ReadOptions(max_shift=3.7))] == [None, None]


def test_displaced_tiles_are_skipped_where_asked(displaced: pa.Table) -> None:
    moved, still = read_tiles(displaced, 64, ReadOptions(max_shift=2.0, skip_shifted=True))
    assert (moved.status, moved.before, still.status) == (SKIPPED, None, OK)
    assert "displaced by 3.6" in str(moved.error)
    assert moved.shift.x == pytest.approx(3, abs=0.1)


def test_a_doubtful_shift_flags_nothing(displaced: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coregistration, "estimate_shift", lambda *_: Shift(9.0, 0.0, RELIABLE - 0.01))
    assert [tile.error for tile in read_tiles(displaced, 64, ReadOptions(max_shift=1.0))] == [None, None]


def test_no_shift_is_null(write_raster: Write) -> None:
    flat = write_raster("flat.tif", np.full((3, 64, 64), 90, np.uint8))
    (tile,) = read_tiles(index_pair(pair("p", flat, flat), 64), 64, ReadOptions(max_shift=1.0))
    assert (tile.status, tile.error) == (OK, None)
    (row,) = shard_table([tile]).select(["shift_x", "shift_y", "shift_confidence"]).to_pylist()
    assert row == {"shift_x": None, "shift_y": None, "shift_confidence": None}


def test_tiles_with_too_few_valid_pixels_are_skipped(write_raster: Write, noise: Noise) -> None:
    good = write_raster("good.tif", noise(height=64, width=128))
    holed = noise(height=64, width=128)
    holed[:, :, :64] = 0
    holed[:, :16, 64:] = 0
    table = index_pair(pair("p", good, write_raster("holed.tif", holed, nodata=0)), 64)
    void, rest = read_tiles(table, 64)
    assert (void.status, void.before_valid, void.after_valid, void.after) == (SKIPPED, 1, 0, None)
    assert "100.0% of the pixels before and 0.0% after, less than the 50.0% required" in str(void.error)
    assert (rest.status, rest.after_valid) == (OK, 0.75)
    assert [tile.status for tile in read_tiles(table, 64, ReadOptions(min_valid=0.8))] == [SKIPPED, SKIPPED]
    assert [tile.status for tile in read_tiles(table, 64, ReadOptions(min_valid=0.0))] == [OK, OK]


def test_overlapping_tiles_and_padded_ones_say_what_they_hold(write_raster: Write, noise: Noise) -> None:
    scene = noise(height=40, width=100)
    path = write_raster("scene.tif", scene)
    options = ReadOptions(overlap=16)
    tiles = list(read_tiles(index_pair(pair("p", path, path), 64, options), 64, options))
    assert [tile.row["tile_id"] for tile in tiles] == ["p/0-0-64", "p/0-36-64"]
    for tile in tiles:
        assert (tile.row["height"], tile.row["width"]) == (40, 64), "a padded tile is smaller in its row"
        assert (tile.status, tile.before_valid) == (OK, 40 / 64)
        assert tile.before is not None
        assert np.array_equal(tile.before[:40], scene[:, :, tile.row["col_off"] :][:, :, :64].transpose(1, 2, 0))
        assert not tile.before[40:].any()
    assert {
        tile.status for tile in read_tiles(index_pair(pair("p", path, path), 64), 64, ReadOptions(min_valid=0.7))
    } == {SKIPPED}


def test_a_raster_replaced_since_indexing_fails(write_raster: Write, noise: Noise) -> None:
    path = write_raster("scene.tif", noise())
    table = index_pair(pair("p", path, path), 64)
    write_raster("scene.tif", noise(), transform=Affine(10, 0, 500_010, 0, -10, 4_000_000))
    assert {tile.status for tile in read_tiles(table, 64)} == {FAILED}
    assert "make the index again" in str(next(read_tiles(table, 64)).error)


def test_shards_hold_what_was_read(write_raster: Write, noise: Noise) -> None:
    path = write_raster("scene.tif", noise())
    table = index_pair(pair("p", path, path), 64)
    Path(path).with_name("gone.tif").unlink(missing_ok=True)
    gone = index_pair(pair("q", path, write_raster("gone.tif", noise())), 64)
    Path(path).with_name("gone.tif").unlink()
    tiles = list(read_tiles(pa.concat_tables([table, gone]), 64))
    shard = shard_table(iter(tiles))
    assert shard.schema == SHARD
    assert conform(shard, SHARD, "shard").equals(shard)
    assert shard.select(INDEX.names).equals(pa.concat_tables([table, gone]).combine_chunks())
    assert shard.column("status").to_pylist() == [OK] * 4 + [FAILED] * 4
    for tile, content in zip(tiles, shard.column("after_image").to_pylist(), strict=True):
        assert (content is None) == (tile.after is None)
        if tile.after is not None:
            assert np.array_equal(png.decode(content), tile.after)
    assert shard.column("references").null_count == 8
    assert shard_table([]).schema == SHARD


def test_a_failed_pair_is_one_row_of_the_contract() -> None:
    row = failed_pair_row(pair("p", "a.tif", "b.tif"), RasterError("a.tif: no such file"))
    assert set(row) == {*INDEX.names, *(field.name for field in QUALITY_FIELDS)}
    table = conform(pa.Table.from_pylist([row], schema=SHARD), SHARD, "row")
    (found,) = table.to_pylist()
    assert (found["tile_id"], found["status"], found["error"]) == ("p/pair", FAILED, "a.tif: no such file")
    assert [found[name] for name in ("row_off", "col_off", "height", "width")] == [0, 0, 0, 0]
    assert (found["split"], found["geometry"], found["before"]) == ("train", None, ["a.tif"])
