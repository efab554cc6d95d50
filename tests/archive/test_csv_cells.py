"""Every CSV file that is written: cells that a spreadsheet would run are quoted, and read back as they were."""

from __future__ import annotations

import ast
import csv
import io
import json
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

import hisem
from hisem.archive.catalogue import read_catalogue, write_catalogue
from hisem.archive.footprint_table import read_footprints
from hisem.archive.pairing import WHOLE_ARCHIVE, pair_archive
from hisem.schemas import CATALOGUE

NOW = datetime(2024, 6, 1, tzinfo=UTC)


def cells(path: Path) -> list[str]:
    rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))
    return [cell for row in rows[1:] for cell in row]


def is_run(cell: str) -> bool:
    return cell.startswith(("=", "+", "-", "@", "\t", "\r"))


def test_csv_is_written_in_one_place() -> None:
    places = []
    for path in Path(hisem.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith((".write_csv", ".to_csv", "csv.writer")):
                places.append(path.name)
    assert places == ["rows.py"]


@pytest.mark.parametrize("name", ["-1", "-2-3", "--", "-a.b"])
def test_a_catalogue_comes_back(tmp_path: Path, name: str) -> None:
    row = {
        "pair_id": name,
        "before": ["=cmd.tif", "b.tif"],
        "after": ["@sum.tif"],
        "before_time": NOW,
        "after_time": NOW,
        "split": "train",
        "before_mask": ["+mask.tif"],
    }
    table = pa.Table.from_pylist([row], schema=CATALOGUE)
    write_catalogue(table, str(tmp_path / "pairs.csv"))
    write_catalogue(table, str(tmp_path / "pairs.parquet"))
    assert read_catalogue(str(tmp_path / "pairs.csv")).equals(read_catalogue(str(tmp_path / "pairs.parquet")))
    assert not [cell for cell in cells(tmp_path / "pairs.csv") if is_run(cell) and cell != "-1"]


def test_what_was_left_out_is_no_formula(tmp_path: Path) -> None:
    item: dict[str, object] = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": "=1+1",
        "properties": {},
        "geometry": None,
        "assets": {},
    }
    item |= {"links": [], "collection": "@evil"}
    (tmp_path / "items.json").write_text(
        json.dumps({"type": "FeatureCollection", "features": [item]}), encoding="utf-8"
    )
    summary = pair_archive(str(tmp_path / "items.json"), str(tmp_path / "pairs.parquet"), WHOLE_ARCHIVE, NOW)
    assert summary.left_out[0].id == "=1+1"
    found = cells(Path(summary.left_out_table))
    assert "'=1+1" in found
    assert not [cell for cell in found if is_run(cell)]


def test_footprints_with_quoted_cells_are_read(tmp_path: Path) -> None:
    table = tmp_path / "footprints.csv"
    table.write_text(
        'id,time,geometry,rasters\n\'=a,2024-05-01,"POLYGON ((0 0, 1 0, 1 1, 0 0))",/x.tif\n', encoding="utf-8"
    )
    (found,) = read_footprints(str(table)).acquisitions
    assert found.id == "=a"
