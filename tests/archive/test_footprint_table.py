"""Tables of footprints, as Parquet and CSV, and every row that cannot be used."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
import shapely

from hisem.archive.acquisitions import Acquisition, Reason
from hisem.archive.footprint_table import read_footprints
from hisem.errors import AcquisitionsError, CatalogueError, HisemError, StorageError

SQUARE = shapely.box(0, 0, 1, 1)
ROW: dict[str, Any] = {
    "id": "a",
    "collection": "c",
    "time": "2024-05-01T12:00:00+02:00",
    "geometry": SQUARE.wkt,
    "rasters": "x/1.tif|s3://bucket/2.tif",
    "cloud_cover": "7.5",
    "mask": "m.tif",
    "owner": "left alone",
}


def write(folder: Path, *rows: dict[str, Any]) -> str:
    path = folder / "footprints.csv"
    pacsv.write_csv(pa.Table.from_pylist(list(rows)), path)
    return str(path)


def test_csv_and_parquet_say_the_same(tmp_path: Path) -> None:
    expected = Acquisition(
        id="a",
        collection="c",
        time=datetime(2024, 5, 1, 10, tzinfo=UTC),
        footprint=shapely.normalize(SQUARE),
        rasters=(f"{tmp_path}/x/1.tif", "s3://bucket/2.tif"),
        masks=(f"{tmp_path}/m.tif",),
        cloud_cover=7.5,
        where="",
    )
    typed = {
        "time": pa.array([datetime(2024, 5, 1, 10)], pa.timestamp("ns")),
        "geometry": pa.array([SQUARE.wkb]),
        "rasters": pa.array([["x/1.tif", "s3://bucket/2.tif"]]),
        "cloud_cover": pa.array([7.5], pa.float32()),
        "mask": pa.array([["m.tif"]]),
        "id": pa.array(["a"]),
        "collection": pa.array(["c"]),
    }
    pq.write_table(pa.table(typed), tmp_path / "footprints.parquet")
    for uri in (write(tmp_path, ROW), f"{tmp_path}/footprints.parquet"):
        reading = read_footprints(uri)
        (found,) = reading.acquisitions
        assert reading.unusable == []
        assert found.where == uri
        assert found.footprint.equals(expected.footprint)
        assert {**vars(found), "footprint": 0, "where": 0} == {**vars(expected), "footprint": 0, "where": 0}


def test_optional_columns_may_be_absent_or_null(tmp_path: Path) -> None:
    row = {name: ROW[name] for name in ("id", "time", "geometry", "rasters")}
    other = row | {"id": "b", "collection": None, "cloud_cover": None, "mask": None}
    for rows in ([row], [row | dict.fromkeys(("collection", "cloud_cover", "mask")), other]):
        for found in read_footprints(write(tmp_path, *rows)).acquisitions:
            assert (found.collection, found.cloud_cover, found.masks) == (None, None, ())


def test_days_are_times(tmp_path: Path) -> None:
    table = pa.table({"id": [7], "time": [date(2024, 5, 1)], "geometry": [SQUARE.wkb], "rasters": ["/a.tif"]})
    pq.write_table(table, tmp_path / "f.parquet")
    (found,) = read_footprints(f"{tmp_path}/f.parquet").acquisitions
    assert (found.id, found.time) == ("7", datetime(2024, 5, 1, tzinfo=UTC))


@pytest.mark.parametrize(
    ("change", "reason", "told"),
    [
        ({"id": None}, Reason.NOT_AN_ITEM, "row 1 has no id"),
        ({"time": None}, Reason.NO_DATETIME, "says no time"),
        ({"time": "spring"}, Reason.NO_DATETIME, "'spring' is not ISO 8601"),
        ({"geometry": None}, Reason.NO_GEOMETRY, "no geometry"),
        ({"geometry": "POLYGON ((0 0, 1"}, Reason.NO_GEOMETRY, "neither WKB nor WKT"),
        ({"geometry": "POINT (0 0)"}, Reason.NO_GEOMETRY, "a Point without area"),
        ({"rasters": None}, Reason.NO_ASSET, "column rasters names no raster"),
        ({"rasters": "a.tif| "}, Reason.NO_ASSET, "column rasters names no raster, or an empty one"),
        ({"rasters": "https://me:pw@x.example/a.tif"}, Reason.NO_ASSET, "https://x.example/a.tif holds a password"),
        ({"mask": "|"}, Reason.NO_ASSET, "column mask names no raster"),
        ({"cloud_cover": "some"}, Reason.BAD_CLOUD_COVER, "'some' is not a percentage"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path: Path, change: dict[str, Any], reason: Reason, told: str) -> None:
    uri = write(tmp_path, ROW, {**ROW, "id": "b", **change})
    reading = read_footprints(uri)
    assert [one.id for one in reading.acquisitions] == ["a"]
    (lost,) = reading.unusable
    assert (lost.reason, lost.id, lost.where) == (reason, {**ROW, "id": "b", **change}["id"], uri)
    assert told in lost.detail


def test_parquet_of_other_types(tmp_path: Path) -> None:
    columns = {"id": ["a", "b"], "time": [1, 2], "geometry": [SQUARE.wkb, b"no"], "rasters": [3, 4]}
    pq.write_table(pa.table(columns), tmp_path / "f.parquet")
    reading = read_footprints(f"{tmp_path}/f.parquet")
    assert [one.reason for one in reading.unusable] == [Reason.NO_DATETIME, Reason.NO_DATETIME]
    columns["time"] = ["2024-05-01", "2024-05-01"]
    pq.write_table(pa.table(columns), tmp_path / "f.parquet")
    reading = read_footprints(f"{tmp_path}/f.parquet")
    assert [one.reason for one in reading.unusable] == [Reason.NO_ASSET, Reason.NO_GEOMETRY]


def test_an_empty_table_holds_nothing(tmp_path: Path) -> None:
    pq.write_table(pa.table({name: pa.array([], pa.string()) for name in ROW}), tmp_path / "f.parquet")
    reading = read_footprints(f"{tmp_path}/f.parquet")
    assert (reading.acquisitions, reading.unusable) == ([], [])


@pytest.mark.parametrize(
    ("name", "content", "error", "told"),
    [
        (
            "f.csv",
            b"id,time\na,2024-05-01\n",
            AcquisitionsError,
            r"missing column\(s\) geometry, rasters; found id, time",
        ),
        ("f.csv", b"id,time\na\n", AcquisitionsError, r"missing column\(s\) geometry, rasters"),
        ("f.csv", b"", CatalogueError, "is empty"),
        ("f.parquet", b"PAR1 and no more", StorageError, "cannot be read as Parquet"),
        ("absent.csv", None, StorageError, "cannot be read"),
    ],
)
def test_tables_that_cannot_be_read(
    tmp_path: Path, name: str, content: bytes | None, error: type[HisemError], told: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=told):
        read_footprints(f"{tmp_path}/{name}")
