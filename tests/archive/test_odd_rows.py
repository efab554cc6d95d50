"""Rows and items with values that no archive should hold: each fails alone, and pairing goes through."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely

from hisem.archive.acquisitions import Acquisition
from hisem.archive.catalogue import read_catalogue
from hisem.archive.footprint_table import read_footprints
from hisem.archive.pairing import PairRequest, pair_archive
from hisem.archive.stac import AssetChoice, read_items

NOW = datetime(2025, 1, 1, tzinfo=UTC)
SQUARE = json.loads(shapely.to_geojson(shapely.box(0, 0, 1, 1)))

ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    10**30,
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
    "",
    " ",
    "\0",
    "\ud800",
    "\x1b[31m\r\n",
    "=1+1",
    "a|b",
    "~nobody-of-this-name/x",
    "file:x",
    "file://host/x",
    "../../etc/passwd",
    "x" * 100_000,
    "10000-01-01",
    "0001-01-01T00:00:00+14:00",
    [],
    [None],
    [[["a"]]],
    {},
    {"type": "Point"},
    {"type": "Polygon", "coordinates": [[[0, 0], [1e308, 1e308], [float("nan"), 0], [0, 0]]]},
    {"type": "GeometryCollection", "geometries": []},
    [{}] * 3,
]
FIELDS = ["id", "collection", "geometry", "bbox", "properties", "links", "assets", "stac_version", "type"]
INNER = [("properties", "datetime"), ("properties", "eo:cloud_cover"), ("assets", "visual"), ("assets", "")]


def item(name: str, year: int) -> dict[str, Any]:
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": "c",
        "geometry": SQUARE,
        "bbox": [0, 0, 1, 1],
        "properties": {"datetime": f"{year}-05-01T10:00:00Z", "eo:cloud_cover": 1},
        "links": [],
        "assets": {"visual": {"href": f"/data/{name}.tif"}},
    }


def odd_items() -> list[dict[str, Any]]:
    items = []
    for value in ODD:
        items += [item("odd", 2024) | {field: value} for field in FIELDS]
        for outer, inner in INNER:
            odd = item("odd", 2024)
            odd[outer] = odd[outer] | {inner: value}
            items.append(odd)
        items.append(item("odd", 2024) | {"assets": {"visual": {"href": value}}})
    return items


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_no_item_spoils_another(tmp_path: Path, suffix: str) -> None:
    odd = odd_items()
    path = tmp_path / "items.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [item("a", 2020), *odd, item("b", 2022)]}))
    reading = read_items(str(path), AssetChoice())
    accounted = len(reading.acquisitions) + len(reading.unusable) + reading.copies
    assert accounted == len(odd) + 2
    summary = pair_archive(str(path), f"{tmp_path}/pairs.{suffix}", PairRequest(), NOW)
    pairs = read_catalogue(summary.output)
    assert "error" not in pairs.column_names
    after = {path for paths in pairs.column("after").to_pylist() for path in paths}
    assert "/data/b.tif" in after


@pytest.mark.parametrize("value", ODD, ids=range(len(ODD)))
def test_no_line_of_items_spoils_another(tmp_path: Path, value: Any) -> None:
    lines = [json.dumps(one) for one in (item("a", 2020), value, item("b", 2022))]
    path = tmp_path / "items.ndjson"
    path.write_text("\n".join(["", lines[0], lines[1], "{", lines[2], ""]))
    for uri in (path, tmp_path):
        reading = read_items(str(uri), AssetChoice())
        assert [one.id for one in reading.acquisitions] == ["a", "b"]
        assert len(reading.unusable) == 2


CELLS: list[Any] = [value for value in ODD if not isinstance(value, dict)]
COLUMNS = ["id", "collection", "time", "geometry", "rasters", "cloud_cover", "mask"]


def row(name: str, **changes: Any) -> dict[str, Any]:
    sound = {
        "id": name,
        "collection": "c",
        "time": "2024-05-01",
        "geometry": shapely.box(0, 0, 1, 1).wkt,
        "rasters": f"/data/{name}.tif",
        "cloud_cover": "1",
        "mask": None,
    }
    return sound | changes


@pytest.mark.parametrize("column", COLUMNS)
def test_no_row_of_text_spoils_another(tmp_path: Path, column: str) -> None:
    texts = [value for value in CELLS if isinstance(value, str) and "\ud800" not in value and value != "\0"]
    rows = [row("a"), *(row("odd", **{column: text}) for text in texts), row("b")]
    path = tmp_path / "f.csv"
    cells = [["" if value is None else '"' + value.replace('"', '""') + '"' for value in one.values()] for one in rows]
    path.write_text("\n".join([",".join(COLUMNS), *map(",".join, cells)]), newline="")
    reading = read_footprints(str(path))
    assert {"a", "b"} <= {one.id for one in reading.acquisitions}
    assert len(reading.acquisitions) + len(reading.unusable) + reading.copies == len(rows)


ARROW = [
    pa.array([True, None, False]),
    pa.array([1, None, 2**62]),
    pa.array([float("nan"), float("inf"), None]),
    pa.array([Decimal("1.5"), None, Decimal("7")]),
    pa.array([2**62, -(2**62), None], pa.timestamp("us")),
    pa.array([2**31 - 1, -(2**31), None], pa.date32()),
    pa.array([1, 2, None], pa.duration("s")),
    pa.array([[[1]], None, [[]]]),
    pa.array([["a", None], None, []]),
    pa.array([{"a": 1}, None, {"a": None}]),
    pa.array([b"\xff\x00", b"", None]),
    pa.array(["x", "y", None]).dictionary_encode(),
    pa.nulls(3),
]


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("values", ARROW, ids=lambda values: str(values.type))
def test_no_row_of_another_type_spoils_the_run(tmp_path: Path, column: str, values: pa.Array) -> None:
    columns = {name: pa.array([row(one)[name] for one in "abc"]) for name in COLUMNS} | {column: values}
    pq.write_table(pa.table(columns), tmp_path / "f.parquet")
    reading = read_footprints(f"{tmp_path}/f.parquet")
    assert len(reading.acquisitions) + len(reading.unusable) + reading.copies == 3
    assert all(isinstance(one, Acquisition) and one.time.year < 9999 for one in reading.acquisitions)
    if column == "time":
        assert reading.acquisitions == []
    if column == "cloud_cover" and pa.types.is_boolean(values.type):
        assert [one.cloud_cover for one in reading.acquisitions] == [None]
