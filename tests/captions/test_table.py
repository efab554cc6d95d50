"""The captions table: rows appear whole, once, and only when they are published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from hisem import storage
from hisem.captions import table as captions
from hisem.errors import SchemaError, StorageError
from hisem.schemas import CAPTION, FAILED, OK, SKIPPED

MAY, JUNE = datetime(2024, 5, 31, 23, 59, tzinfo=UTC), datetime(2024, 6, 1, tzinfo=UTC)
OLD, NEW = "a" * 64, "b" * 64


def row(tile: str, **over: Any) -> dict[str, Any]:
    required = {
        "tile_id": tile,
        "pair_id": tile.partition("/")[0],
        "before": ["b.tif"],
        "after": ["a.tif"],
        "after_time": MAY,
        "row_off": 0,
        "col_off": 0,
        "height": 64,
        "width": 64,
        "status": OK,
        "caption": f"caption of {tile}",
        "model_name": "hisem",
        "model_version": "1",
        "model_digest": OLD,
        "captioned_at": JUNE,
    }
    return required | over


def rows(*given: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(given), schema=CAPTION)


def keys(output: str) -> Counter[tuple[str, str]]:
    return Counter((r["tile_id"], r["model_digest"]) for r in captions.read_captions(output).to_pylist())


def files(output: str) -> dict[str, bytes]:
    """Every file below the output and its content."""
    root = Path(output)
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(params=["path", "file"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "out") if request.param == "path" else f"file://{tmp_path}/out"


def test_an_output_that_is_not_there_is_empty(output: str) -> None:
    assert captions.read_captions(output).equals(CAPTION.empty_table())
    assert captions.captioned_tiles(output, OLD) == set()
    assert captions.publish(output) == 0
    assert not storage.exists(output)


def test_staged_rows_are_invisible_until_published(output: str) -> None:
    captions.stage(rows(row("p/0"), row("p/1")), output, "run-0")
    captions.stage(rows(row("p/2")), output, "run-1")
    assert captions.read_captions(output).num_rows == 0
    assert captions.captioned_tiles(output, OLD) == set()
    assert captions.published_files(output) == []
    # Nor does a reader of the whole output see them, who knows nothing of us.
    assert ds.dataset(storage.absolute(output), format="parquet").count_rows() == 0

    assert captions.publish(output) == 3
    assert keys(output) == {("p/0", OLD): 1, ("p/1", OLD): 1, ("p/2", OLD): 1}
    assert captions.captioned_tiles(output, OLD) == {"p/0", "p/1", "p/2"}
    assert captions.captioned_tiles(output, NEW) == set()
    published = Path(storage.absolute(output)) / "captions"
    assert ds.dataset(published, format="parquet", partitioning="hive").count_rows() == 3
    assert not [name for name in files(storage.absolute(output)) if name.startswith("_staging")]
    assert captions.publish(output) == 0


def test_rows_come_back_as_they_went_in(output: str) -> None:
    given = rows(
        row("p/0", change_probability=0.25, changed=True, change_map=[[0, 255]], change_bbox=[1.0, 2.0, 3.0, 4.0]),
        row("p/1", after_time=None, before_mask=["m.tif"], second_caption="s", crs="EPSG:4326", geometry=b"\x01"),
    )
    captions.stage(given, output, "run")
    captions.publish(output)
    found = captions.read_captions(output).sort_by("tile_id")
    assert found.schema == CAPTION
    assert found.equals(given)


def test_partitions_by_date_of_the_newer_scene_and_version(tmp_path: Path) -> None:
    output = str(tmp_path)
    captions.stage(
        rows(
            row("p/1"),
            row("q/0", after_time=JUNE),
            row("p/0"),
            row("r/0", after_time=None),
            row("p/0", model_digest=NEW, model_version="2"),
        ),
        output,
        "run",
    )
    assert captions.publish(output) == 5
    parts = {Path(name).parent.as_posix(): pq.ParquetFile(tmp_path / name).read() for name in files(output)}
    assert {folder: part.column("tile_id").to_pylist() for folder, part in parts.items()} == {
        "captions/acquired=2024-05-31/model=1": ["p/0", "p/1"],
        "captions/acquired=2024-05-31/model=2": ["p/0"],
        "captions/acquired=2024-06-01/model=1": ["q/0"],
        "captions/acquired=unknown/model=1": ["r/0"],
    }
    assert len(files(output)) == len(parts)


def test_publishing_the_same_rows_twice_changes_nothing(tmp_path: Path) -> None:
    output, staged = str(tmp_path), rows(row("p/1"), row("p/0"), row("q/0", after_time=JUNE))
    captions.stage(staged, output, "run")
    assert captions.publish(output) == 3
    before = files(output)
    for again in (staged, staged.take([2, 0, 1]), staged.slice(0, 1)):
        captions.stage(again, output, "again")
        assert captions.publish(output) == 0
        assert files(output) == before


def test_a_row_staged_twice_is_published_once(tmp_path: Path) -> None:
    """As two runs do that were killed one after the other."""
    output = str(tmp_path)
    captions.stage(rows(row("p/0", caption="first"), row("p/0", caption="second"), row("p/1")), output, "run-0")
    captions.stage(rows(row("p/1"), row("p/2"), row("p/0", model_digest=NEW)), output, "run-1")
    assert captions.publish(output) == 4
    assert set(keys(output).values()) == {1}
    said = {(r["tile_id"], r["model_digest"]): r["caption"] for r in captions.read_captions(output).to_pylist()}
    assert said["p/0", OLD] == "first"
    assert set(said) == {("p/0", OLD), ("p/1", OLD), ("p/2", OLD), ("p/0", NEW)}


class Killed(BaseException):
    """The end of the process, wherever it comes."""


def test_a_publication_killed_at_any_point_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before every write and every deletion in turn; each time another run finishes the work."""
    given = rows(row("p/0"), row("q/0", after_time=JUNE), row("p/1"), row("p/0", model_digest=NEW, model_version="2"))
    wanted = Counter(zip(given.column("tile_id").to_pylist(), given.column("model_digest").to_pylist(), strict=True))
    step = 0
    while True:
        output, left = str(tmp_path / str(step)), step
        captions.stage(given.slice(0, 2), output, "run-0")
        captions.stage(given.slice(2), output, "run-1")

        def dying(real: Callable[..., None]) -> Callable[..., None]:
            def call(*args: Any) -> None:
                nonlocal left
                if left == 0:
                    raise Killed
                left -= 1
                real(*args)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(storage, "write_parquet", dying(storage.write_parquet))
            patch.setattr(storage, "delete", dying(storage.delete))
            try:
                captions.publish(output)
            except Killed:
                killed = True
            else:
                killed = False
        seen = keys(output)
        assert set(seen.values()) <= {1}
        added = captions.publish(output)
        assert added == 4 - len(seen)
        assert keys(output) == wanted
        assert not [name for name in files(output) if name.startswith("_staging")]
        if not killed:
            break
        step += 1
    assert step == 5  # three files written, two staged ones deleted


def test_rows_staged_while_another_run_publishes_are_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, real = str(tmp_path), storage.write_parquet

    def busy(table: pa.Table, uri: str) -> None:
        real(table, uri)
        if "_staging" not in uri:
            captions.stage(rows(row("q/0")), output, "other-run")

    captions.stage(rows(row("p/0")), output, "run")
    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_parquet", busy)
        assert captions.publish(output) == 1
    assert captions.publish(output) == 1
    assert keys(output) == {("p/0", OLD): 1, ("q/0", OLD): 1}


def test_failed_and_skipped_tiles_are_rows_too_and_count_as_done(tmp_path: Path) -> None:
    output = str(tmp_path)
    captions.stage(
        rows(
            row("p/0", status=FAILED, error="b.tif: truncated", caption=None),
            row("p/1", status=SKIPPED, error="0.1 valid", caption=None, before_valid=0.1),
            row("q/pair", status=FAILED, error="no such file", caption=None),
            row("p/2"),
        ),
        output,
        "run",
    )
    assert captions.publish(output) == 4
    found = {r["tile_id"]: (r["status"], r["error"]) for r in captions.read_captions(output).to_pylist()}
    assert found == {
        "p/0": ("failed", "b.tif: truncated"),
        "p/1": ("skipped", "0.1 valid"),
        "q/pair": ("failed", "no such file"),
        "p/2": ("ok", None),
    }
    assert captions.captioned_tiles(output, OLD) == set(found)


def test_each_model_has_its_own_done_tiles(tmp_path: Path) -> None:
    output = str(tmp_path)
    captions.stage(rows(row("p/0"), row("p/1")), output, "old")
    captions.publish(output)
    captions.stage(rows(row("p/1", model_digest=NEW), row("p/2", model_digest=NEW)), output, "new")
    captions.publish(output)
    assert captions.captioned_tiles(output, OLD) == {"p/0", "p/1"}
    assert captions.captioned_tiles(output, NEW) == {"p/1", "p/2"}
    assert captions.captioned_tiles(output, "c" * 64) == set()


NARROWER = CAPTION.remove(CAPTION.get_field_index("caption"))
RETYPED = CAPTION.set(CAPTION.get_field_index("changed"), pa.field("changed", pa.string()))


@pytest.mark.parametrize(
    ("foreign", "differ"),
    [
        (pa.schema([("id", pa.int64()), *NARROWER]), "caption, id"),
        (NARROWER, "caption"),
        (RETYPED, "changed"),
        (pa.schema(reversed(list(CAPTION))), "none, but their order does"),
    ],
)
def test_a_table_of_another_schema_is_refused_and_left_alone(tmp_path: Path, foreign: pa.Schema, differ: str) -> None:
    output = str(tmp_path)
    path = tmp_path / "captions" / "acquired=2020-01-01" / "model=0" / "theirs.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(foreign.empty_table(), path)
    captions.stage(rows(row("p/0")), output, "run")
    before = files(output)
    for attempt in (lambda: captions.captioned_tiles(output, OLD), lambda: captions.publish(output)):
        with pytest.raises(
            SchemaError, match=rf"{path}: not the captions table.*differ: {differ}\).*nothing was changed"
        ):
            attempt()
    assert files(output) == before


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "captions" / "broken.parquet"
    path.parent.mkdir()
    path.write_bytes(b"PAR1 cut off")
    for attempt in (captions.read_captions, lambda output: captions.captioned_tiles(output, OLD)):
        with pytest.raises(StorageError, match=rf"{path}: cannot be read as Parquet.*Remove it"):
            attempt(str(tmp_path))


def test_staging_refuses_rows_that_violate_the_schema(tmp_path: Path) -> None:
    without_digest = rows(row("p/0")).drop_columns(["model_digest"])
    with pytest.raises(SchemaError, match=r"captions: missing .*model_digest"):
        captions.stage(without_digest, str(tmp_path), "run")
    unnamed = pa.Table.from_pylist(
        [row("p/0", model_version=None)], schema=pa.schema([f.with_nullable(True) for f in CAPTION])
    )
    with pytest.raises(SchemaError, match="captions: column model_version is null"):
        captions.stage(unnamed, str(tmp_path), "run")
    assert files(str(tmp_path)) == {}


def test_many_dates_are_published_quickly(tmp_path: Path) -> None:
    """One pass over the rows: an archive has thousands of dates."""
    times = [datetime(2020 + number % 5, 1 + number % 12, 1 + number % 28, tzinfo=UTC) for number in range(20_000)]
    table = rows(*(row(f"p/{number}", after_time=time) for number, time in enumerate(times)))
    captions.stage(table, str(tmp_path), "run")
    assert captions.publish(str(tmp_path)) == 20_000
    dates = {time.date().isoformat() for time in times}
    assert {path.name for path in (tmp_path / "captions").iterdir()} == {f"acquired={date}" for date in dates}
    assert captions.captioned_tiles(str(tmp_path), OLD) == set(table.column("tile_id").to_pylist())


def test_a_table_holds_tiles_that_were_read_one_way(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    captions.require_settings(output, {})
    captions.require_settings(output, {"bands": ["4", "3", "2"]})
    captions.require_settings(output, {})  # nothing is in it yet
    captions.stage(rows(row("a/0-0-64")), output, "run")
    with pytest.raises(StorageError, match=r"were read with the defaults, not \{'nodata': 0\.0\}"):
        captions.require_settings(output, {"nodata": 0.0})
    captions.publish(output)
    captions.require_settings(output, {})
    with pytest.raises(StorageError, match="Choose another --output"):
        captions.require_settings(output, {"nodata": 0.0})
    other = str(tmp_path / "other")
    captions.require_settings(other, {"nodata": 0.0})
    captions.stage(rows(row("a/0-0-64")), other, "run")
    captions.publish(other)
    captions.require_settings(other, {"nodata": 0.0})
    with pytest.raises(StorageError, match=r"read with \{'nodata': 0\.0\}, not the defaults"):
        captions.require_settings(other, {})
