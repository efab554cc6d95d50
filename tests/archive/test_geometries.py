"""Footprints as hostile or careless writers make them: each is one row of what was left out, in bounded time."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely

from hisem.archive.acquisitions import Reason
from hisem.archive.footprint_table import read_footprints
from hisem.archive.footprints import MAX_POINTS, repaired
from hisem.archive.geometries import MAX_NESTED, parsed
from hisem.archive.stac import AssetChoice, read_items

SQUARE = "POLYGON ((0 0, 1 0, 1 1, 0 1, 0 0))"


def ring(count: int, rough: float = 0.0) -> shapely.Polygon:
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    radius = 1 + rough * np.random.default_rng(0).normal(size=count)
    return shapely.Polygon(np.column_stack([np.cos(angles), np.sin(angles)]) * radius[:, None])


def zigzag(count: int) -> shapely.Polygon:
    return shapely.Polygon(np.random.default_rng(0).uniform(0, 1, (count, 2)))


def over_the_line(count: int) -> shapely.Polygon:
    x = np.where(np.arange(count) % 2, 179.0, -179.0)
    return shapely.Polygon([*np.column_stack([x, np.linspace(0, 50, count)]), (170, 50), (170, 0)])


def comb(count: int) -> shapely.Polygon:
    x = np.repeat(np.linspace(0, 1, 2 * count), 2)[1:]
    return shapely.Polygon([(0, 0), *np.column_stack([x, np.tile([0.01, 1, 1, 0.01], count)[: len(x)]]), (1, 0)])


def retraced(count: int) -> shapely.Polygon:
    x = np.random.default_rng(0).permutation(count) / count
    return shapely.Polygon([*np.column_stack([x, np.zeros(count)]), (1, 1), (0, 1)])


def nested_wkb(depth: int, order: str = "<") -> bytes:
    head = (b"\x01" if order == "<" else b"\x00") + struct.pack(f"{order}II", 7, 1)
    return head * depth + shapely.to_wkb(shapely.box(0, 0, 1, 1))


def nested_json(depth: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(shapely.to_geojson(shapely.box(0, 0, 1, 1)))
    for _ in range(depth):
        found = {"type": "GeometryCollection", "geometries": [found]}
    return found


USABLE: dict[str, tuple[Any, float]] = {
    "a square": (SQUARE, 1.0),
    "with heights": ("POLYGON Z ((0 0 5, 1 0 NaN, 1 1 7, 0 1 5, 0 0 5))", 1.0),
    "with measures": ("POLYGON ZM ((0 0 5 1, 1 0 6 1, 1 1 7 1, 0 1 5 1, 0 0 5 1))", 1.0),
    "a collection in a collection": (f"GEOMETRYCOLLECTION (GEOMETRYCOLLECTION (POINT (5 5), {SQUARE}))", 1.0),
    "nested ten deep": (nested_wkb(10), 1.0),
    "a rough outline": (shapely.to_wkb(ring(5000, 0.0005)), np.pi),
    "a circle": (shapely.to_wkb(ring(9000)), np.pi),
    "a few crossings": (shapely.to_wkb(zigzag(8)), shapely.make_valid(zigzag(8)).area),
}

UNUSABLE: dict[str, Any] = {
    "200,000 points": shapely.to_wkb(ring(200_000)),
    "20,000 points": shapely.to_wkb(ring(20_000)),
    "2,000 that matter": shapely.to_wkb(comb(1000)),
    "crosses itself everywhere": shapely.to_wkb(zigzag(500)),
    "crosses itself everywhere and is large": shapely.to_wkb(zigzag(9000)),
    "retraces itself": shapely.to_wkb(retraced(200)),
    "parts on each other": shapely.to_wkb(shapely.MultiPolygon([comb(30), shapely.transform(comb(30), np.fliplr)])),
    "crosses 180 degrees everywhere": shapely.to_wkb(over_the_line(500)),
    "text nested a million deep": "GEOMETRYCOLLECTION (" * 1_000_000 + "POINT (0 0)" + ")" * 1_000_000,
    "text nested deep": "GEOMETRYCOLLECTION (" * 500 + SQUARE + ")" * 500,
    "WKB nested deep": nested_wkb(100_000),
    "WKB nested deep, the other order": nested_wkb(100_000, ">"),
    "WKB of multipolygons in multipolygons": (b"\x01" + struct.pack("<II", 6, 1)) * 100_000,
    "not a number": "POLYGON ((0 0, NaN 0, 1 1, 0 1, 0 0))",
    "infinite": "POLYGON ((0 0, inf 0, 1 1, 0 1, 0 0))",
    "huge": "POLYGON ((0 0, 1e300 0, 1e300 1e300, 0 1, 0 0))",
    "beyond the pole": "POLYGON ((0 80, 1 80, 1 95, 0 95, 0 80))",
    "empty": "POLYGON EMPTY",
    "an empty collection": "GEOMETRYCOLLECTION EMPTY",
    "empty parts": "MULTIPOLYGON (EMPTY, EMPTY)",
    "a line": "LINESTRING (0 0, 1 1)",
    "no area": "POLYGON ((0 0, 1 1, 2 2, 0 0))",
    "cut short": shapely.to_wkb(shapely.box(0, 0, 1, 1))[:40],
    "as many rings as can be said": b"\x01\x03\x00\x00\x00\xff\xff\xff\xff",
    "no WKB": b"\x00",
    "no WKT": "a polygon",
}


def test_what_is_usable_keeps_its_ground(tmp_path: Path) -> None:
    for geometry, area in USABLE.values():
        found = repaired(parsed(geometry))
        assert found.is_valid
        assert not found.has_z
        assert found.area == pytest.approx(area, rel=0.01)
        assert shapely.get_num_coordinates(found) <= MAX_POINTS


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_costs_too_much_or_covers_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        repaired(parsed(UNUSABLE[name]))


def test_repairs_are_asked_for_few_points_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes the square of points or crossings gets few, whatever was given."""
    seen = []

    def counted(polygons: Any, *args: Any, **options: Any) -> Any:
        seen.append(int(shapely.get_num_coordinates(polygons).sum()))
        return real(polygons, *args, **options)

    real = shapely.make_valid
    monkeypatch.setattr(shapely, "make_valid", counted)
    for geometry in [*(one for one, _ in USABLE.values()), *UNUSABLE.values()]:
        try:
            repaired(parsed(geometry))
        except ValueError:
            continue
    assert seen
    assert max(seen) <= MAX_POINTS


@pytest.mark.parametrize("depth", [1, 5, MAX_NESTED * 10])
def test_geojson_is_nested_within_bounds(depth: int) -> None:
    if depth < MAX_NESTED:
        assert repaired(parsed(nested_json(depth))).equals(shapely.box(0, 0, 1, 1))
    else:
        with pytest.raises(ValueError, match=r"nested|recursion"):
            parsed(nested_json(depth))


def test_one_bad_footprint_is_one_row_left_out_of_a_table(tmp_path: Path) -> None:
    geometries = {"good": SQUARE} | UNUSABLE
    for suffix, kind, wanted in (("wkb", pa.binary(), bytes), ("wkt", pa.string(), str)):
        rows = {name: value for name, value in geometries.items() if isinstance(value, wanted)}
        if kind == pa.binary():
            rows["good"] = shapely.to_wkb(shapely.box(0, 0, 1, 1))
        table = pa.table(
            {
                "id": list(rows),
                "time": [datetime(2024, 6, 1, tzinfo=UTC)] * len(rows),
                "geometry": pa.array(list(rows.values()), kind),
                "rasters": [["a.tif"]] * len(rows),
            }
        )
        pq.write_table(table, tmp_path / f"{suffix}.parquet")
        reading = read_footprints(str(tmp_path / f"{suffix}.parquet"))
        assert [one.id for one in reading.acquisitions] == ["good"]
        assert {one.id: one.reason for one in reading.unusable} == {
            name: Reason.NO_GEOMETRY for name in rows if name != "good"
        }
        assert all(0 < len(one.detail) < 1000 for one in reading.unusable)


JSON: dict[str, str] = {
    "not a number": '{"type": "Polygon", "coordinates": [[[0, 0], [NaN, 0], [1, 1], [0, 0]]]}',
    "infinite": '{"type": "Polygon", "coordinates": [[[0, 0], [Infinity, 0], [1, 1], [0, 0]]]}',
    "too large to be a number": '{"type": "Polygon", "coordinates": [[[0, 0], [1e999, 0], [1, 1], [0, 0]]]}',
    "a large integer": f'{{"type": "Polygon", "coordinates": [[[0, 0], [{10**400}, 0], [1, 1], [0, 0]]]}}',
    "no coordinates": '{"type": "Polygon"}',
    "empty": '{"type": "Polygon", "coordinates": []}',
    "null coordinates": '{"type": "Polygon", "coordinates": null}',
    "text for numbers": '{"type": "Polygon", "coordinates": [[["0", "0"], ["1", "0"], ["1", "1"], ["0", "0"]]]}',
    "numbers for points": '{"type": "Polygon", "coordinates": [[0, 0, 1, 0, 1, 1, 0, 0]]}',
    "one number a point": '{"type": "Polygon", "coordinates": [[[0], [1], [2], [0]]]}',
    "two points": '{"type": "Polygon", "coordinates": [[[0, 0], [1, 0]]]}',
    "not closed": '{"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 1]]]}',
    "of no type": '{"coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]]}',
    "of another type": '{"type": "Circle", "coordinates": [0, 0], "radius": 1}',
    "a number": "7",
    "text": '"POLYGON ((0 0, 1 0, 1 1, 0 0))"',
    "a list": "[[0, 0], [1, 0], [1, 1]]",
    "a collection without members": '{"type": "GeometryCollection", "geometries": [null, 7]}',
    "nested": json.dumps(nested_json(200)),
    "coordinates nested deep": '{"type": "Polygon", "coordinates": ' + "[" * 900 + "]" * 900 + "}",
    "100,000 points": json.dumps({"type": "Polygon", "coordinates": [shapely.get_coordinates(ring(100_000)).tolist()]}),
}


def test_one_bad_geometry_is_one_item_left_out_of_an_archive(tmp_path: Path) -> None:
    item = """{"type": "Feature", "stac_version": "1.0.0", "id": %s, "properties": {"datetime": "2024-06-01T00:00:00Z"},
        "geometry": %s, "bbox": [0, 0, 1, 1], "links": [], "assets": {"visual": {"href": "./a.tif"}}}"""
    geometries = {"good": shapely.to_geojson(shapely.box(0, 0, 1, 1))} | JSON
    items = ",".join(item % (json.dumps(name), geometry) for name, geometry in geometries.items())
    (tmp_path / "items.json").write_text('{"type": "FeatureCollection", "features": [' + items + "]}")
    reading = read_items(str(tmp_path / "items.json"), AssetChoice())
    assert [one.id for one in reading.acquisitions] == ["good"]
    assert {one.id: one.reason for one in reading.unusable} == dict.fromkeys(JSON, Reason.NO_GEOMETRY)


@pytest.mark.slow
def test_no_footprint_keeps_a_process_or_ends_it() -> None:
    """All of them, and combs across combs, in a process that may take a minute and a gigabyte."""
    code = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (120, 120))
sys.path.insert(0, {str(Path(__file__).parent)!r})
import numpy as np, shapely
from test_geometries import UNUSABLE, USABLE, comb
from hisem.archive.footprints import covered_fractions, equal_area, repaired
from hisem.archive.geometries import parsed
for geometry in [*UNUSABLE.values(), *(one for one, _ in USABLE.values())]:
    try:
        repaired(parsed(geometry))
    except ValueError:
        pass
across = repaired(comb(60))
down = shapely.transform(across, np.fliplr)
print(float(covered_fractions(equal_area([across])[0], equal_area([down, across])).max()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(1.0)
