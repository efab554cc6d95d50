"""Catalogues in both formats, and every way in which one is refused."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hisem.archive.catalogue import read_catalogue, write_catalogue
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


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("a,1.tif,2.tif,,", "must be unique, but 1 value.* a"),
        (",1.tif,2.tif,,", "pair_id is null"),
        ("a/b,1.tif,2.tif,,", "'a/b'; only letters, digits"),
        ("ä,1.tif,2.tif,,", "only letters, digits"),
        ("b,,2.tif,,", "before is null"),
        ("b,1.tif,,,", "after is null"),
        ("b,1.tif,2.tif| ,,", "pair b names no raster, or an empty one, in after"),
        ("b,1.tif,2.tif,yesterday,", "before_time 'yesterday' is not an ISO 8601 time"),
        ("b,1.tif,2.tif,,,,,", "comma-separated"),
    ],
)
def test_unusable_rows_are_named(tmp_path: Path, line: str, reason: str) -> None:
    path = write_csv(tmp_path, "a,1.tif,2.tif,,", line)
    with pytest.raises(CatalogueError, match=reason) as raised:
        read_catalogue(path)
    assert path in str(raised.value)


def test_unusable_tables_are_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match=r"missing column\(s\) after, after_time; found"):
        read_catalogue(write_csv(tmp_path, "a,1.tif,", header="pair_id,before,before_time"))
    with pytest.raises(CatalogueError, match="no pairs found"):
        read_catalogue(write_csv(tmp_path))
    with pytest.raises(CatalogueError, match="split 'dev' is unknown; it is one of train, val, test"):
        read_catalogue(write_csv(tmp_path, "a,1.tif,2.tif,,,dev", header=f"{HEADER},split"))
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
