"""Catalogues in both formats, and every way in which one is refused."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from hisem.archive.catalogue import REJECTED, SAFE_ID, read_catalogue, write_catalogue
from hisem.errors import CatalogueError, StorageError
from hisem.schemas import CATALOGUE

HEADER = "pair_id,before,after,before_time,after_time"


def write_csv(folder: Path, *lines: str, header: str = HEADER) -> str:
    path = folder / "catalogue.csv"
    path.write_text("\n".join([header, *lines, ""]), encoding="utf-8")
    return str(path)


def test_csv_becomes_lists_times_and_absolute_paths(tmp_path: Path) -> None:
    path = write_csv(
        tmp_path,
        "a,x/1.tif|x/2.tif,../y.tif,2020-01-02,2021-01-02T03:04:05+02:00,train,/masks/m.tif,left alone",
        "b-1.2_C,/data/b.tif,s3://bucket/../b.tif,,2021-01-02T03:04:05Z,,,",
        header=f"{HEADER},split,before_mask,owner",
    )
    table = read_catalogue(path)
    assert table.schema == CATALOGUE
    first, second = table.to_pylist()
    assert first == {
        "pair_id": "a",
        "before": [f"{tmp_path}/x/1.tif", f"{tmp_path}/x/2.tif"],
        "after": [f"{tmp_path.parent}/y.tif"],
        "before_time": datetime(2020, 1, 2, tzinfo=UTC),
        "after_time": datetime(2021, 1, 2, 1, 4, 5, tzinfo=UTC),
        "split": "train",
        "before_mask": ["/masks/m.tif"],
        "after_mask": None,
    }
    assert second["after"] == ["s3://bucket/../b.tif"], "URIs stay as they are"
    assert (second["before_time"], second["split"]) == (None, None)


def test_parquet_takes_lists_or_strings_and_any_time(tmp_path: Path) -> None:
    path = tmp_path / "catalogue.parquet"
    times = [datetime(2020, 1, 2), None]
    pq.write_table(
        pa.table(
            {
                "pair_id": ["a", "b"],
                "before": pa.array([["1.tif", "2.tif"], ["/3.tif"]], pa.large_list(pa.large_string())),
                "after": ["1.tif|2.tif", "file:///x/4.tif"],
                "before_time": pa.array(times, pa.timestamp("ns")),
                "after_time": ["2020-01-02T00:00:00Z", None],
            }
        ),
        path,
    )
    table = read_catalogue(str(path))
    assert table.schema == CATALOGUE
    rows = table.to_pylist()
    assert rows[0]["before"] == rows[0]["after"] == [f"{tmp_path}/1.tif", f"{tmp_path}/2.tif"]
    assert rows[0]["before_time"] == rows[0]["after_time"] == datetime(2020, 1, 2, tzinfo=UTC)
    assert rows[1]["after"] == ["/x/4.tif"]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_written_catalogues_read_back_and_move_with_their_folder(tmp_path: Path, suffix: str) -> None:
    table = pa.Table.from_pylist(
        [
            {
                "pair_id": "a",
                "before": ["1.tif", "2.tif"],
                "after": ["/abs/3, really.tif"],
                "before_time": datetime(2020, 1, 2, 3, 4, 5, 678, tzinfo=UTC),
                "after_mask": ["m.tif"],
            }
        ],
        schema=CATALOGUE,
    )
    write_catalogue(table, f"{tmp_path}/here/catalogue.{suffix}")
    (tmp_path / "here").rename(tmp_path / "there")
    (row,) = read_catalogue(f"{tmp_path}/there/catalogue.{suffix}").to_pylist()
    assert row["before"] == [f"{tmp_path}/there/1.tif", f"{tmp_path}/there/2.tif"]
    assert row["after"] == ["/abs/3, really.tif"]
    assert row["before_time"] == datetime(2020, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
    assert (row["after_time"], row["split"], row["before_mask"]) == (None, None, None)


UNUSABLE = [
    (",1.tif,2.tif,,", "no-id-row-1", "pair_id is null"),
    ("a/b,1.tif,2.tif,,", "a-b__c14cddc0", "'a/b' cannot be part"),
    ("ä,1.tif,2.tif,,", "-__33e6d73f", "only letters, digits"),
    (f"{'a' * 1025},1.tif,2.tif,,", f"{'a' * 40}__", "1024 of them at most"),
    ("a\x1b[31m,1.tif,2.tif,,", "a-31m__", "cannot be part"),
    ("b,,2.tif,,", "b", "names no raster"),
    ("b,1.tif,,,", "b", "names no raster"),
    ("b,1.tif,2.tif| ,,", "b", "pair b names no raster, or an empty one, in after"),
    ("b,1.tif,2.tif,yesterday,", "b", "before_time 'yesterday' is not an ISO 8601 time"),
    ("b,1.tif,2.tif,1717236720,", "b", "is not an ISO 8601 time"),
    ("b,1.tif,2.tif,10000-01-01,", "b", "is not an ISO 8601 time"),
    ("b,1.tif,2.tif,0001-01-01T00:00:00+14:00,", "b", "is not an ISO 8601 time"),
    ("b,1.tif,2.tif,2024-05-02,2024-05-01", "b", "later than after_time"),
    ("b,1.tif,s3://me:secret@bucket/2.tif,,", "b", "holds a password"),
    ("b,1.tif,2\0.tif,,", "b", "no path can have"),
    (f"b,1.tif,{'x' * 10_000},,", "b", "10"),
    ("b,1.tif,file:2.tif,,", "b", "no absolute path"),
    ("b,1.tif,file://host/2.tif,,", "b", "names the host"),
    ("b,1.tif,~nobody-of-this-name/2.tif,,", "b", "~"),
    ("b,1.tif,2.tif,,,,,", "no-id-row-1", "line 3 has 8 cell(s), the header 5"),
    ("b,1.tif", "no-id-row-1", "line 3 has 2 cell(s), the header 5"),
    ('b,1.tif,"2".tif,,', "no-id-row-1", "line 3 is not comma-separated"),
]


@pytest.mark.parametrize(("line", "pair_id", "reason"), UNUSABLE, ids=range(len(UNUSABLE)))
def test_an_unusable_row_is_rejected_alone(
    tmp_path: Path, line: str, pair_id: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_csv(tmp_path, "a,1.tif,2.tif,,", line, "c,1.tif,2.tif,,")
    table = read_catalogue(path)
    assert table.schema.names == [*CATALOGUE.names, REJECTED]
    first, bad, last = table.to_pylist()
    assert (first["pair_id"], first[REJECTED], last["pair_id"], last[REJECTED]) == ("a", None, "c", None)
    assert bad["pair_id"].startswith(pair_id)
    assert SAFE_ID.fullmatch(bad["pair_id"])
    assert bad[REJECTED].startswith(f"{path}: row 1: ")
    assert reason in bad[REJECTED]
    assert "secret" not in str(bad)
    assert "1 of 3 row(s) cannot be used" in caplog.text
    # Without a row that can be used, the table cannot be.
    with pytest.raises(CatalogueError, match=r"none of its 2 row\(s\) can be used"):
        read_catalogue(write_csv(tmp_path, line, line))


def test_the_order_of_rejected_rows_does_not_change_names(tmp_path: Path) -> None:
    lines = ["a,1.tif,2.tif,,", "b c,1.tif,2.tif,,"]
    names = [
        set(read_catalogue(write_csv(tmp_path, *some)).column("pair_id").to_pylist()) for some in (lines, lines[::-1])
    ]
    assert names[0] == names[1]


def test_bytes_that_are_not_text_reject_their_row(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    header = f"{HEADER},owner\n".encode()
    path.write_bytes(b"\xef\xbb\xbf" + header + "a,1.tif,2.tif,,,J\xf6rg\nb,\xfc.tif,2.tif,,,\n".encode("latin-1"))
    first, second = read_catalogue(str(path)).to_pylist()
    assert (first["pair_id"], first[REJECTED]) == ("a", None)  # a column that is not read
    assert "line 3 is not UTF-8" in second[REJECTED]
    path.write_text(f"{HEADER}\na,1.tif,2.tif,,\n", encoding="utf-16")
    with pytest.raises(CatalogueError, match="UTF-16"):
        read_catalogue(str(path))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b'{"type": "Feature"}\n{"type": "Feature"}\n', "JSON, which pair.py --items reads"),
        (b"[1, 2]", "JSON"),
        (b"PAR1 and more", "Parquet"),
        (b"PK\x03\x04 and more", "spreadsheet"),
        (b"\x1f\x8b and more", "gzip"),
    ],
)
def test_other_formats_are_named(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "c.csv").write_bytes(content)
    with pytest.raises(CatalogueError, match=rf"c\.csv: is .*{what}"):
        read_catalogue(f"{tmp_path}/c.csv")
    with pytest.raises(CatalogueError, match=r"found \.ndjson; STAC items in JSON are paired by pair\.py --items"):
        read_catalogue(f"{tmp_path}/c.ndjson")


def test_a_quote_that_is_not_closed_hides_no_rows(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match="line 2 opens a quote that is not closed"):
        read_catalogue(write_csv(tmp_path, 'a,"1.tif,2.tif,,', "b,1.tif,2.tif,,"))
    (row,) = read_catalogue(write_csv(tmp_path, 'a,"1\n.tif",2.tif,,')).to_pylist()
    assert row["before"] == [f"{tmp_path}/1\n.tif"]


def test_split_decides_nothing_where_it_is_unknown(tmp_path: Path) -> None:
    lines = ["a,1.tif,2.tif,,,dev", "b,1.tif,2.tif,,,val"]
    rows = read_catalogue(write_csv(tmp_path, *lines, header=f"{HEADER},split")).to_pylist()
    assert [row["split"] for row in rows] == [None, "val"]
    assert "'dev' is unknown" in rows[0][REJECTED]


TIMES = {
    "int64": pa.array([20240601, 20240602]),
    "seconds": pa.array([1717236720, None], pa.int32()),
    "float": pa.array([1717236720.0, None]),
    "bool": pa.array([True, False]),
    "decimal": pa.array([None, Decimal("20240601")]),
    "duration": pa.array([1, 2], pa.duration("s")),
    "time": pa.array([1, 2], pa.time32("s")),
    "bytes": pa.array([b"2024-06-01", None]),
}


@pytest.mark.parametrize("column", ["before_time", "after_time"])
@pytest.mark.parametrize("values", TIMES.values(), ids=TIMES)
def test_numbers_are_no_times(tmp_path: Path, column: str, values: pa.Array) -> None:
    write_parquet(tmp_path, **{column: values})
    with pytest.raises(CatalogueError, match=f"column {column} is {str(values.type)[:6]}"):
        read_catalogue(f"{tmp_path}/c.parquet")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([date(2024, 6, 1), None]), datetime(2024, 6, 1, tzinfo=UTC)),
        (pa.array([date(2024, 6, 1), None], pa.date64()), datetime(2024, 6, 1, tzinfo=UTC)),
        (pa.array([1717236720, None], pa.timestamp("s")), datetime(2024, 6, 1, 10, 12, tzinfo=UTC)),
        (pa.array([1717236720123456789, None], pa.timestamp("ns")), datetime(2024, 6, 1, 10, 12, 0, 123456, UTC)),
        (pa.array([1717236720, None], pa.timestamp("s", "Asia/Tokyo")), datetime(2024, 6, 1, 10, 12, tzinfo=UTC)),
        (pa.array(["20240601", None]).dictionary_encode(), datetime(2024, 6, 1, tzinfo=UTC)),
        (pa.array(["2024-06-01T12:12:00+02:00", None], pa.string_view()), datetime(2024, 6, 1, 10, 12, tzinfo=UTC)),
    ],
)
def test_what_a_time_may_be(tmp_path: Path, values: pa.Array, expected: datetime) -> None:
    write_parquet(tmp_path, before_time=values)
    table = read_catalogue(f"{tmp_path}/c.parquet")
    assert table.column("before_time").to_pylist() == [expected, None]
    assert table.schema == CATALOGUE


@pytest.mark.parametrize("unit", ["ms", "us"])
@pytest.mark.parametrize("sign", [1, -1])
def test_years_that_no_calendar_has_reject_their_row(tmp_path: Path, unit: str, sign: int) -> None:
    write_parquet(tmp_path, before_time=pa.array([sign * 2**62, 1], pa.timestamp(unit)))
    first, second = read_catalogue(f"{tmp_path}/c.parquet").to_pylist()
    assert "outside the years" in first[REJECTED]
    assert second[REJECTED] is None


WRONG = {
    "pair_id": [pa.array([1.5, 2.5]), pa.array([True, False]), pa.array([["a"], ["b"]]), pa.array([1, 2], pa.date32())],
    "before": [pa.array([1, 2]), pa.array([[1], [2]]), pa.array([[["a"]], [["b"]]]), pa.array([[True], []])],
    "before_mask": [pa.array([1.5, 2.5]), pa.array([{"a": 1}, None])],
    "split": [pa.array([1.0, 2.0]), pa.array([True, False])],
}


@pytest.mark.parametrize(("column", "values"), [(name, one) for name, some in WRONG.items() for one in some])
def test_columns_of_other_types_are_refused(tmp_path: Path, column: str, values: pa.Array) -> None:
    write_parquet(tmp_path, **{column: values})
    with pytest.raises(CatalogueError, match=f"column {column} is"):
        read_catalogue(f"{tmp_path}/c.parquet")


def test_nulls_and_whole_numbers_in_parquet(tmp_path: Path) -> None:
    write_parquet(tmp_path, pair_id=pa.array([17, None]), after=pa.array([["x.tif"], [None]]))
    first, second = read_catalogue(f"{tmp_path}/c.parquet").to_pylist()
    assert (first["pair_id"], first[REJECTED]) == ("17", None)
    assert (second["pair_id"], second["after"]) == ("no-id-row-1", [])


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_columns_that_occur_twice_are_one_error(tmp_path: Path, suffix: str) -> None:
    names = [*HEADER.split(","), "before"]
    table = pa.table([pa.array(["a"])] * len(names), names=names)
    path = f"{tmp_path}/c.{suffix}"
    pq.write_table(table, path) if suffix == "parquet" else pacsv.write_csv(table, path)
    with pytest.raises(CatalogueError, match=r"column\(s\) before occur more than once"):
        read_catalogue(path)


def write_parquet(folder: Path, **columns: pa.Array) -> None:
    sound = {
        "pair_id": pa.array(["a", "b"]),
        "before": pa.array([["1.tif"], ["1.tif"]]),
        "after": pa.array([["2.tif"], ["2.tif"]]),
        "before_time": pa.nulls(2),
        "after_time": pa.nulls(2),
    }
    pq.write_table(pa.table(sound | columns), folder / "c.parquet")


def test_repeated_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match=r"must be unique, but 1 value.* a"):
        read_catalogue(write_csv(tmp_path, "a,1.tif,2.tif,,", "a,3.tif,4.tif,,"))


def test_unusable_tables_are_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match=r"missing column\(s\) after, after_time; found"):
        read_catalogue(write_csv(tmp_path, "a,1.tif,", header="pair_id,before,before_time"))
    with pytest.raises(CatalogueError, match="no pairs found"):
        read_catalogue(write_csv(tmp_path))
    with pytest.raises(CatalogueError, match=r"ends in \.parquet or \.csv, found \.xlsx"):
        read_catalogue(f"{tmp_path}/catalogue.xlsx")
    with pytest.raises(StorageError, match="cannot be read"):
        read_catalogue(f"{tmp_path}/absent.csv")
    columns = {"pair_id": pa.array(["a"]), "before": pa.array([1]), "after": pa.array(["x"])}
    times = dict.fromkeys(["before_time", "after_time"], pa.nulls(1))
    pq.write_table(pa.table(columns | times), tmp_path / "c.parquet")
    with pytest.raises(CatalogueError, match="column before is int64"):
        read_catalogue(f"{tmp_path}/c.parquet")


def test_a_path_that_csv_cannot_hold_is_refused(tmp_path: Path) -> None:
    row = {"pair_id": "a", "before": ["a|b.tif"], "after": ["c.tif"]}
    with pytest.raises(CatalogueError, match=r"contains '\|', which CSV cannot hold; use \.parquet"):
        write_catalogue(pa.Table.from_pylist([row], schema=CATALOGUE), f"{tmp_path}/c.csv")
