"""Mutated catalogs, tables of footprints, items and references: our own errors, or what was read, and nothing else."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely

from hisem.archive.catalogue import SAFE_ID, read_catalogue
from hisem.archive.pairing import PairRequest, pair_archive
from hisem.archive.references import read_references
from hisem.errors import HisemError

NOW = datetime(2025, 1, 1, tzinfo=UTC)
SQUARE = shapely.box(0, 0, 1, 1)
TOKENS = [
    *(b'"', b",", b"\n", b"\r", b"\0", b"|", b"{", b"}", b"[", b"]", b"null", b"NaN", b"1e999", b"-", b"9" * 30),
    *(b"\xff\xfe", b"\xed\xa0\x80", b"\\ud800", b"true", b"file:", b"~x/", b"10000-", b"+14:00"),
]


def item(name: str, year: int) -> dict[str, Any]:
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": "c",
        "geometry": json.loads(shapely.to_geojson(SQUARE)),
        "bbox": [0, 0, 1, 1],
        "properties": {"datetime": f"{year}-05-01T10:00:00Z", "eo:cloud_cover": 3},
        "links": [],
        "assets": {"visual": {"href": f"/d/{name}.tif"}},
    }


def parquet(**columns: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def paired(path: str) -> None:
    folder = Path(path).parent
    for suffix in ("csv", "parquet"):
        pair_archive(path, str(folder / f"pairs.{suffix}"), PairRequest(), NOW)


def catalogued(path: str) -> None:
    table = read_catalogue(path)
    for row in table.to_pylist():
        assert SAFE_ID.fullmatch(row["pair_id"])
        assert row.get("error") or (row["before"] and row["after"])


ITEMS = [item("a", 2020), item("b", 2021), item("c", 2022)]
SEEDS: dict[str, tuple[bytes, Callable[[str], Any]]] = {
    "catalog.csv": (
        b"pair_id,before,after,before_time,after_time,split\n"
        b'a,/a/1.tif|x.tif,"/b/1.tif",2024-05-01,2025-05-01T10:00:00Z,train\n'
        b"b,2.tif,file:///b/2.tif,,2025-05-01T10:00:00+14:00,\n",
        catalogued,
    ),
    "footprints.csv": (
        b"id,time,geometry,rasters,cloud_cover,mask\n"
        + b"".join(f'i{n},202{n}-05-01,"{SQUARE.wkt}",/a/{n}.tif,3,\n'.encode() for n in range(4)),
        paired,
    ),
    "items.json": (json.dumps({"type": "FeatureCollection", "features": ITEMS}).encode(), paired),
    "items.ndjson": ("\n".join(map(json.dumps, ITEMS)).encode(), paired),
    "catalog.parquet": (
        parquet(
            pair_id=["a", "b"],
            before=[["x"], ["y"]],
            after=["x|y", "y"],
            before_time=pa.array([1, 2], pa.timestamp("ms")),
            after_time=[datetime(2024, 1, 1), None],
        ),
        catalogued,
    ),
    "footprints.parquet": (
        parquet(
            id=["a", "b"], time=pa.array([1, 2], pa.timestamp("ms")), geometry=[SQUARE.wkb] * 2, rasters=["/x", "/y"]
        ),
        paired,
    ),
    "references.parquet": (
        parquet(pair_id=["a", "b"], row_off=[0, 1], col_off=[0, 1], references=[["x"], ["y"]], changed=[True, None]),
        read_references,
    ),
}


def mutated(content: bytes, rng: random.Random, in_place: bool) -> bytes:
    """`content` with up to ten changes, of the same length where `in_place`."""
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4, 10])):
        at = rng.randrange(len(changed) + 1)
        kind = 0 if in_place else rng.randrange(5)
        if kind == 0 and at < len(changed):
            changed[at] = rng.randrange(256)
        elif kind == 1:
            del changed[at : at + rng.choice([1, 3, 20])]
        elif kind == 2:
            changed[at:at] = rng.choice(TOKENS)
        elif kind == 3:
            changed[at:at] = changed[at : at + rng.randrange(40)]
        elif kind == 4:
            changed[at : at + rng.choice([1, 4])] = rng.choice(TOKENS)
    return bytes(changed)


def survive(folder: Path, name: str, count: int, seed: int) -> None:
    """Read `count` mutations of one file; what is raised and not ours fails the test, with its file left behind."""
    content, read = SEEDS[name]
    rng = random.Random(f"{name} {seed}")
    path = folder / name
    read_once = 0
    for number in range(count):
        # Parquet whose length changes has no footer, which the first line of its reader sees.
        path.write_bytes(mutated(content, rng, in_place=name.endswith("parquet") and number % 8 > 0))
        try:
            read(str(path))
            read_once += 1
        except HisemError:
            continue
    assert read_once > 0


@pytest.mark.parametrize("name", SEEDS)
def test_mutations_end_in_our_errors(tmp_path: Path, name: str) -> None:
    survive(tmp_path, name, 60, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", SEEDS)
def test_many_mutations_end_in_our_errors(tmp_path: Path, name: str) -> None:
    survive(tmp_path, name, 1000, seed=1)
