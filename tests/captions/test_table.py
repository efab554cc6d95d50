"""The captions table: rows appear whole and once, and are replaced in one step."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import shapely

from hisem import storage
from hisem.captions import settings
from hisem.captions import table as captions
from hisem.captions.lock import Lock
from hisem.errors import SchemaError, StorageError
from hisem.schemas import CAPTION, FAILED, OK

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


def known(output: str, digest: str, *pairs: str) -> set[str]:
    return set(captions.known_rows(output, digest, pairs or None).column("tile_id").to_pylist())


def files(output: str) -> dict[str, bytes]:
    """Every file below the output, except those of the lock and the note of the last check, and its content."""
    root = Path(output)
    found = {str(path.relative_to(root)): path for path in sorted(root.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith(("_locks/", "_checked"))}


@pytest.fixture(params=["path", "file"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "out") if request.param == "path" else f"file://{tmp_path}/out"


def test_an_output_that_is_not_there_is_empty(output: str) -> None:
    assert captions.read_captions(output).equals(CAPTION.empty_table())
    assert known(output, OLD) == set()
    captions.publish(CAPTION.empty_table(), output)
    captions.require_table(output)
    assert not storage.exists(output)


def test_published_rows_are_there_for_any_reader(output: str) -> None:
    captions.publish(rows(row("p/0"), row("p/1"), row("q/2")), output)
    assert keys(output) == {("p/0", OLD): 1, ("p/1", OLD): 1, ("q/2", OLD): 1}
    assert known(output, OLD) == {"p/0", "p/1", "q/2"}
    assert known(output, OLD, "q", "r") == {"q/2"}
    assert known(output, NEW) == set()
    published = Path(storage.absolute(output)) / "captions"
    assert ds.dataset(published, format="parquet", partitioning="hive").count_rows() == 3


def test_rows_come_back_as_they_went_in(output: str) -> None:
    square = shapely.to_wkb(shapely.box(1, 2, 3, 4))
    given = rows(
        row("p/0", change_probability=0.25, changed=True, change_map=[[0, 255]], change_bbox=[1.0, 2.0, 3.0, 4.0]),
        row("p/1", after_time=None, before_mask=["m.tif"], second_caption="s", crs="EPSG:4326", geometry=square),
    )
    captions.publish(given, output)
    found = captions.read_captions(output).sort_by("tile_id")
    assert found.schema.equals(CAPTION)
    bounds = {"xmin": 1.0, "ymin": 2.0, "xmax": 3.0, "ymax": 4.0}
    assert found.column("bbox").to_pylist() == [None, bounds]
    assert found.drop_columns(["bbox"]).equals(given.drop_columns(["bbox"]))


def test_partitions_by_date_of_the_newer_scene_and_version(tmp_path: Path) -> None:
    output = str(tmp_path)
    captions.publish(
        rows(
            row("p/1"),
            row("q/0", after_time=JUNE),
            row("p/0"),
            row("r/0", after_time=None),
            row("p/0", model_digest=NEW, model_version="2"),
        ),
        output,
    )
    parts = {Path(name).parent.as_posix(): pq.ParquetFile(tmp_path / name).read() for name in files(output)}
    assert {folder: part.column("tile_id").to_pylist() for folder, part in parts.items()} == {
        "captions/acquired=2024-05-31/model=1": ["p/0", "p/1"],
        "captions/acquired=2024-05-31/model=2": ["p/0"],
        "captions/acquired=2024-06-01/model=1": ["q/0"],
        "captions/acquired=0000-00-00/model=1": ["r/0"],
    }
    assert len(files(output)) == len(parts)
    dates = ds.dataset(tmp_path / "captions", partitioning="hive").to_table(columns=["acquired"]).column("acquired")
    assert sorted(dates.to_pylist())[0] == "0000-00-00"  # before all dates, so that a filter since one leaves it out
    assert dates.null_count == 0  # which pandas cannot read beside dates


def test_publishing_the_same_rows_twice_changes_nothing(tmp_path: Path) -> None:
    output, given = str(tmp_path), rows(row("p/1"), row("p/0"), row("q/0", after_time=JUNE))
    captions.publish(given, output)
    before = files(output)
    for again in (given, given.take([2, 0, 1]), given.slice(0, 1)):
        captions.publish(again, output)
        assert files(output) == before


def test_many_rows_of_a_night_are_few_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions, "FILE_ROWS", 100)
    given = rows(*(row(f"p/{number}") for number in range(250)))
    captions.publish(given, str(tmp_path))
    assert sorted(pq.read_metadata(tmp_path / name).num_rows for name in files(str(tmp_path))) == [50, 100, 100]
    before = files(str(tmp_path))
    captions.publish(given.take(list(reversed(range(250)))), str(tmp_path))
    assert files(str(tmp_path)) == before


def test_a_row_that_was_captioned_later_takes_the_place_of_the_other(tmp_path: Path) -> None:
    output, later = str(tmp_path), JUNE + timedelta(hours=1)
    captions.publish(rows(row("p/0"), row("p/1"), row("p/0", model_digest=NEW, model_version="2")), output)
    names = set(files(output))
    captions.publish(rows(row("p/0", caption="better", captioned_at=later), row("p/2", captioned_at=later)), output)
    said = {(r["tile_id"], r["model_digest"]): r["caption"] for r in captions.read_captions(output).to_pylist()}
    assert said == {
        ("p/0", OLD): "better",
        ("p/1", OLD): "caption of p/1",
        ("p/2", OLD): "caption of p/2",
        ("p/0", NEW): "caption of p/0",
    }
    assert sum(keys(output).values()) == 4
    assert len(set(files(output)) - names) == 1  # the new tile's file; the other kept its name
    before = files(output)
    captions.publish(rows(row("p/0", caption="late, but older")), output)
    assert files(output) == before


def test_a_row_whose_acquisition_date_was_corrected_moves(tmp_path: Path) -> None:
    output = str(tmp_path)
    captions.publish(rows(row("p/0"), row("p/1")), output)
    captions.publish(rows(row("p/0", after_time=JUNE, captioned_at=JUNE + timedelta(hours=1))), output)
    assert set(keys(output).values()) == {1}
    found = ds.dataset(tmp_path / "captions", partitioning="hive").to_table(columns=["tile_id", "acquired"])
    assert dict(zip(*(found.column(name).to_pylist() for name in ("tile_id", "acquired")), strict=True)) == {
        "p/0": "2024-06-01",
        "p/1": "2024-05-31",
    }


def test_a_model_that_was_registered_since_replaces_its_rows_where_they_lie(tmp_path: Path) -> None:
    """The key is its digest: a version of the registry may have the one that was a folder before."""
    output, later = str(tmp_path), JUNE + timedelta(hours=1)
    captions.publish(rows(row("p/0"), row("p/1")), output)
    names = set(files(output))
    captions.publish(rows(row("p/0", model_version="7", caption="new", captioned_at=later)), output)
    found = {r["tile_id"]: (r["caption"], r["model_version"]) for r in captions.read_captions(output).to_pylist()}
    assert found == {"p/0": ("new", "7"), "p/1": ("caption of p/1", "1")}
    assert set(files(output)) == names


def test_an_older_row_of_another_date_pushes_out_no_newer_one(tmp_path: Path) -> None:
    output = str(tmp_path)
    captions.publish(rows(row("p/0")), output)
    before = files(output)
    captions.publish(rows(row("p/0", after_time=JUNE, captioned_at=JUNE - timedelta(hours=1))), output)
    assert files(output) == before


def test_of_rows_with_one_key_the_newest_counts_and_of_equal_ones_the_first() -> None:
    later = JUNE + timedelta(hours=1)
    given = rows(
        row("p/0", caption="first"),
        row("p/1", caption="old"),
        row("p/0", caption="second"),
        row("p/1", caption="new", captioned_at=later),
        row("p/0", model_digest=NEW),
    )
    found = captions.newest(given).to_pylist()
    assert [(r["tile_id"], r["caption"]) for r in found] == [
        ("p/0", "first"),
        ("p/1", "new"),
        ("p/0", "caption of p/0"),
    ]


def test_pairs_that_open_again_lose_their_failed_row(tmp_path: Path) -> None:
    output = str(tmp_path)
    failed = {"status": FAILED, "error": "no such file", "caption": None}
    captions.publish(
        rows(row("p/pair", **failed), row("q/pair", **failed), row("r/0"), row("s/pair", after_time=JUNE, **failed)),
        output,
    )
    captions.supersede(output, {"p", "s", "r"}, OLD)
    assert known(output, OLD) == {"q/pair", "r/0"}
    assert [name.split("/")[1] for name in files(output)] == ["acquired=2024-05-31"]
    captions.supersede(output, {"q"}, NEW)
    assert known(output, OLD) == {"q/pair", "r/0"}


class Killed(BaseException):
    """The end of the process, wherever it comes."""


def test_a_publication_killed_at_any_point_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before every write and every deletion in turn; each time publishing again finishes the work."""
    later = JUNE + timedelta(hours=1)
    there = rows(row("p/0", caption="old"), row("p/9", caption="old"), row("r/0", after_time=None))
    given = rows(
        row("p/0", captioned_at=later),
        row("q/0", after_time=JUNE, captioned_at=later),
        row("p/1", captioned_at=later),
        row("r/0", after_time=JUNE, captioned_at=later),
    )
    step = 0
    while True:
        output, left = str(tmp_path / str(step)), step
        captions.publish(there, output)

        def dying(real: Callable[..., None]) -> Callable[..., None]:
            def call(*args: Any) -> None:
                nonlocal left
                if left == 0:
                    raise Killed
                left -= 1
                real(*args)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(Lock, "write", dying(Lock.write))
            patch.setattr(Lock, "remove", dying(Lock.remove))
            try:
                captions.publish(given, output)
            except Killed:
                killed = True
            else:
                killed = False
        assert set(keys(output).values()) == {1}
        captions.publish(given, output)
        said = {r["tile_id"]: r["caption"] for r in captions.read_captions(output).to_pylist()}
        assert said == {tile: f"caption of {tile}" for tile in ("p/0", "q/0", "p/1", "r/0")} | {"p/9": "old"}
        assert set(keys(output).values()) == {1}
        if not killed:
            break
        step += 1
    assert step == 4  # one file rewritten, one emptied, two new ones


def test_each_model_has_its_own_done_tiles(tmp_path: Path) -> None:
    output = str(tmp_path)
    captions.publish(rows(row("p/0"), row("p/1", status=FAILED, caption=None)), output)
    captions.publish(rows(row("p/1", model_digest=NEW), row("p/2", model_digest=NEW)), output)
    assert known(output, OLD) == {"p/0", "p/1"}
    assert known(output, NEW) == {"p/1", "p/2"}
    assert known(output, "c" * 64) == set()
    statuses = captions.known_rows(output, OLD).select(["tile_id", "status"]).sort_by("tile_id").to_pylist()
    assert statuses == [{"tile_id": "p/0", "status": OK}, {"tile_id": "p/1", "status": FAILED}]


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
    before = files(output)
    for attempt in (lambda: captions.require_table(output), lambda: captions.publish(rows(row("p/0")), output)):
        with pytest.raises(
            SchemaError, match=rf"{path}: not the captions table.*differ: {differ}\).*nothing was changed"
        ):
            attempt()
    assert files(output) == before


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "captions" / "broken.parquet"
    path.parent.mkdir()
    path.write_bytes(b"PAR1 cut off")
    for attempt in (captions.read_captions, captions.require_table):
        with pytest.raises(StorageError, match=rf"{path}: cannot be read as Parquet.*remove it"):
            attempt(str(tmp_path))


def test_many_dates_are_published_quickly(tmp_path: Path) -> None:
    """One pass over the rows: an archive has thousands of dates."""
    times = [datetime(2020, 1 + number % 12, 1 + number % 28, tzinfo=UTC) for number in range(20_000)]
    table = rows(*(row(f"p/{number}", after_time=time) for number, time in enumerate(times)))
    captions.publish(table, str(tmp_path))
    dates = {time.date().isoformat() for time in times}
    assert {path.name for path in (tmp_path / "captions").iterdir()} == {f"acquired={date}" for date in dates}
    assert known(str(tmp_path), OLD) == set(table.column("tile_id").to_pylist())


def test_replacing_many_rows_makes_no_python_objects_of_them(tmp_path: Path) -> None:
    """A night may replace a million: of each, some bytes may be counted, and no strings and rows be made."""
    many = 20_000
    there = rows(*(row(f"p{number % 50}/{number}") for number in range(many)))
    captions.publish(there, str(tmp_path))
    place, field = CAPTION.get_field_index("captioned_at"), CAPTION.field("captioned_at")
    later = there.set_column(place, field, pa.array([JUNE + timedelta(hours=1)] * many, field.type))
    tracemalloc.start()
    try:
        captions.publish(captions.newest(pa.concat_tables([later, there])), str(tmp_path))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert set(captions.read_captions(str(tmp_path)).column("captioned_at").to_pylist()) == {JUNE + timedelta(hours=1)}
    assert most < 300 * many


def test_a_table_holds_tiles_that_were_read_one_way(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    settings.require_settings(output, {})
    settings.require_settings(output, {"bands": ["4", "3", "2"]})
    settings.require_settings(output, {})  # nothing is in it yet
    captions.publish(rows(row("a/0-0-64")), output)
    settings.require_settings(output, {})
    with pytest.raises(StorageError, match=r"were read with the defaults, not \{'nodata': 0\.0\}"):
        settings.require_settings(output, {"nodata": 0.0})
    other = str(tmp_path / "other")
    settings.require_settings(other, {"nodata": 0.0})
    captions.publish(rows(row("a/0-0-64")), other)
    settings.require_settings(other, {"nodata": 0.0})
    with pytest.raises(StorageError, match=r"read with \{'nodata': 0\.0\}, not the defaults"):
        settings.require_settings(other, {})
