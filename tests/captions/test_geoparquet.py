"""How captions lie in a file, as readers see it that know nothing of us: GeoPandas, DuckDB, a validator."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import geopandas
import geoparquet_validator
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS

from hisem.archive.grid import Grid, Window
from hisem.captions.geoparquet import ROW_GROUP_ROWS, arranged, encoded
from hisem.errors import SchemaError
from hisem.schemas import CAPTION, OK, SKIPPED, conform

NIGHT = datetime(2024, 6, 1, tzinfo=UTC)
SIDES = ("xmin", "ymin", "xmax", "ymax")


def captions(tile_ids: list[str], geometry: list[bytes | None], **over: Any) -> pa.Table:
    """Rows with these footprints; columns in `over` are given whole."""
    count = len(tile_ids)
    columns = {
        "tile_id": tile_ids,
        "pair_id": [tile.partition("/")[0] for tile in tile_ids],
        "before": [["b.tif"]] * count,
        "after": [["a.tif"]] * count,
        "geometry": pa.array(geometry, pa.binary()),
        "status": [OK] * count,
        "model_name": ["hisem"] * count,
        "model_version": ["1"] * count,
        "model_digest": ["a" * 64] * count,
        "captioned_at": [NIGHT] * count,
    }
    columns |= dict.fromkeys(("row_off", "col_off", "height", "width"), [0] * count)
    nullable = [field.name for field in CAPTION if field.nullable]
    return conform(pa.table(columns | over), CAPTION, "captions", optional=nullable)


def square(west: float, south: float, size: float = 0.01) -> bytes:
    return shapely.to_wkb(shapely.box(west, south, west + size, south + size))


def few() -> pa.Table:
    """Rows of all sorts: near and far, in one place, of two models, without footprint, with what models may say."""
    places = [
        square(9.9, 53.5),
        None,
        square(-70.1, -33.5),
        square(9.9, 53.5),
        square(9.9, 53.5),
        None,
        square(9.91, 53.5),
    ]
    return captions(
        ["d/0", "c/0", "b/0", "a/1", "a/1", "a/pair", "a/2"],
        places,
        model_digest=["a" * 64] * 4 + ["b" * 64] + ["a" * 64] * 2,
        status=[OK, SKIPPED, *[OK] * 5],
        change_map=[[[row, 255]] for row in range(7)],
        changed=[True, None, False, True, True, None, False],
        caption=["two houses are built", None, *["the scene is the same as before"] * 5],
    )  # fmt: skip


def metadata(content: bytes) -> dict[str, Any]:
    return json.loads(pq.ParquetFile(io.BytesIO(content)).metadata.metadata[b"geo"])


def complaints(content: bytes) -> list[str]:
    """What the validator has against a file, by the rules of GeoParquet 1.1."""
    report = geoparquet_validator.check_bytes("captions.parquet", content)
    assert report["version"] == "1.1.0"
    # No row group without footprints can have statistics of the boxes.
    known = "/conf/distribution/geospatial-statistics"
    return [f"{o['id']}: {o['message']}" for o in report["outcomes"] if o["status"] == "fail" and o["id"] != known]


def groups_met(content: bytes, area: tuple[float, float, float, float]) -> list[int]:
    """Numbers of the row groups whose statistics do not tell that no box meets `area`."""
    west, south, east, north = area
    file = pq.ParquetFile(io.BytesIO(content)).metadata
    column = {file.schema.column(number).path: number for number in range(file.num_columns)}
    met = []
    for number in range(file.num_row_groups):
        xmin, ymin, xmax, ymax = (file.row_group(number).column(column[f"bbox.{side}"]).statistics for side in SIDES)
        if xmin.min <= east and xmax.max >= west and ymin.min <= north and ymax.max >= south:
            met.append(number)
    return met


def keys(rows: pa.Table) -> list[tuple[str, str]]:
    return list(zip(rows.column("tile_id").to_pylist(), rows.column("model_digest").to_pylist(), strict=True))


def test_the_same_rows_with_the_box_of_each_footprint() -> None:
    given = few()
    found = arranged(given)
    assert found.schema == CAPTION
    wanted = {(row["tile_id"], row["model_digest"]): row for row in given.to_pylist()}
    for row in wanted.values():
        outline = row["geometry"] and shapely.from_wkb(row["geometry"])
        row["bbox"] = dict(zip(SIDES, outline.bounds, strict=True)) if outline else None
    assert {(row["tile_id"], row["model_digest"]): row for row in found.to_pylist()} == wanted
    assert len(found) == len(given)


def test_a_file_gives_back_the_rows() -> None:
    rows = arranged(few())
    found = pq.read_table(io.BytesIO(encoded(rows)))
    assert found.schema.equals(CAPTION)
    assert found.equals(rows)


def test_rows_follow_the_curve_and_ties_the_key() -> None:
    """The curve, written out as text: bits of latitude and longitude in turn, the highest first."""
    rng = np.random.default_rng(3)
    west, south = rng.uniform(-179, 178, 300), rng.uniform(-89, 88, 300)
    west[:40], south[:40] = 9.9, 53.5
    tiles = [f"p/{number}" for number in rng.permutation(300)]
    rows = captions(tiles, [square(x, y) for x, y in zip(west, south, strict=True)])

    def place(number: int) -> tuple[str, str]:
        x = int((west[number] + 0.005 + 180) / 360 * 65536)
        y = int((south[number] + 0.005 + 90) / 180 * 65536)
        return "".join(b + a for a, b in zip(f"{x:016b}", f"{y:016b}", strict=True)), tiles[number]

    assert arranged(rows).column("tile_id").to_pylist() == [tiles[number] for number in sorted(range(300), key=place)]


def test_rows_without_footprint_come_last_by_tile() -> None:
    found = keys(arranged(few()))
    assert found[-2:] == [("a/pair", "a" * 64), ("c/0", "a" * 64)]
    assert found[1:4] == [("a/1", "a" * 64), ("a/1", "b" * 64), ("d/0", "a" * 64)]


def test_the_same_rows_in_any_order_give_the_same_bytes() -> None:
    long = [f"{number:02000}" for number in range(5000)]  # of which a row group has many pages
    rows = pa.concat_tables([few(), captions([f"p/{n}" for n in range(5000)], [square(9, 53, 1)] * 5000, error=long)])
    wanted = encoded(arranged(rows))
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(rows))
        chunks = pa.concat_tables([rows.take(order[:2]), rows.take(order[2:])])
        assert encoded(arranged(chunks.replace_schema_metadata({"of": "another writer"}))) == wanted
    parts = arranged(rows)
    assert encoded(pa.concat_tables([parts.slice(first, 97) for first in range(0, len(parts), 97)])) == wanted


def test_the_metadata_are_those_of_geoparquet() -> None:
    rows = few()
    outlines = [shapely.from_wkb(wkb) for wkb in rows.column("geometry").to_pylist() if wkb]
    content = encoded(arranged(rows))
    assert metadata(content) == {
        "version": "1.1.0",
        "primary_column": "geometry",
        "columns": {
            "geometry": {  # without "crs" it is OGC:CRS84
                "encoding": "WKB",
                "geometry_types": ["Polygon"],
                "bbox": list(shapely.MultiPolygon(outlines).bounds),
                "covering": {"bbox": {side: ["bbox", side] for side in SIDES}},
            }
        },
    }
    assert complaints(content) == []
    found = geopandas.read_parquet(io.BytesIO(content))
    assert found.crs == "OGC:CRS84"
    assert found.geometry.name == "geometry"
    assert found.set_geometry("geometry").geometry.to_wkb().tolist() == arranged(rows).column("geometry").to_pylist()


@pytest.mark.parametrize("count", [0, 3])
def test_a_file_without_footprints_is_geoparquet_too(count: int) -> None:
    content = encoded(arranged(captions([f"p/{number}" for number in range(count)], [None] * count)))
    column = metadata(content)["columns"]["geometry"]
    assert column["geometry_types"] == []
    assert "bbox" not in column
    assert "covering" in column
    assert complaints(content) == []
    found = geopandas.read_parquet(io.BytesIO(content))
    assert found.crs == "OGC:CRS84"
    assert len(found) == count
    assert found.geometry.isna().all()
    assert len(geopandas.read_parquet(io.BytesIO(content), bbox=(-180, -90, 180, 90))) == 0


OGRINFO = shutil.which("ogrinfo")
READS_PARQUET = (
    bool(OGRINFO) and "Parquet" in subprocess.run(["ogrinfo", "--formats"], capture_output=True).stdout.decode()
)


@pytest.mark.skipif(not READS_PARQUET, reason="needs ogrinfo of a GDAL that is built with Arrow and Parquet")
def test_gdal_shows_footprints_and_captions(tmp_path: Path) -> None:
    rows = captions(["p/0", "p/1"], [square(9.9, 53.5), None], caption=["a house is built", None])
    (tmp_path / "part.parquet").write_bytes(encoded(arranged(rows)))
    command = ["ogrinfo", "-al", "-json", "-features", str(tmp_path / "part.parquet")]
    (layer,) = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["layers"]
    (column,) = layer["geometryFields"]
    assert (column["name"], layer["featureCount"]) == ("geometry", 2)
    assert column["coordinateSystem"]["projjson"]["type"] == "GeographicCRS"
    first, second = layer["features"]
    assert first["properties"]["caption"] == "a house is built"
    assert shapely.from_geojson(json.dumps(first["geometry"])).equals(shapely.from_wkb(square(9.9, 53.5)))
    assert second["geometry"] is None


def test_tiles_on_the_antimeridian_are_found_from_both_sides() -> None:
    """Footprints as tiles have them: in UTM zone 60 some lie on either side, and some on both."""
    grid = Grid(2560, 25600, Affine(10, 0, 700_000, 0, -10, 8_000_000), CRS.from_epsg(32760))
    windows = [Window(row, col, 256, 256) for row in range(0, 2560, 256) for col in range(0, 25600, 256)]
    tiles = [f"fiji/{window.row_off}-{window.col_off}-256" for window in windows]
    outlines = grid.footprints(windows)
    rows = arranged(captions(tiles, outlines))
    content = encoded(rows)
    assert metadata(content)["columns"]["geometry"]["geometry_types"] == ["Polygon", "MultiPolygon"]
    assert metadata(content)["columns"]["geometry"]["bbox"][::2] == [-180, 180]
    assert complaints(content) == []

    both = [t for t, wkb in zip(tiles, outlines, strict=True) if shapely.from_wkb(wkb).geom_type == "MultiPolygon"]
    assert 0 < len(both) < 50
    assert set(rows.column("tile_id").to_pylist()[-len(both) :]) == set(both)
    _, south, _, north = shapely.total_bounds(shapely.from_wkb(outlines))
    for west, east in [(179.99, 180), (-180, -179.99)]:
        area = shapely.box(west, south, east, north)
        found = geopandas.read_parquet(io.BytesIO(content), bbox=area.bounds)
        wanted = {t for t, wkb in zip(tiles, outlines, strict=True) if shapely.from_wkb(wkb).intersects(area)}
        assert set(both) <= set(found[found.intersects(area)].tile_id) == wanted


def test_a_small_area_reads_few_row_groups(tmp_path: Path) -> None:
    """50,000 tiles of a region two degrees wide, an area of a twentieth of a degree."""
    rng = np.random.default_rng(0)
    west, south = rng.uniform(9, 11, 50_000), rng.uniform(52, 54, 50_000)
    boxes = shapely.box(west, south, west + 0.004, south + 0.0025)
    tiles = [f"p/{number}" for number in range(50_000)]
    content = encoded(arranged(captions(tiles, shapely.to_wkb(boxes).tolist())))
    file = pq.ParquetFile(io.BytesIO(content))
    assert file.num_row_groups == -(-50_000 // ROW_GROUP_ROWS) == 13
    (tmp_path / "captions.parquet").write_bytes(content)

    read = []
    for corner in rng.uniform((9, 52), (10.95, 53.95), (20, 2)):
        area = (*corner.tolist(), *(corner + 0.05).tolist())
        wanted = {tiles[n] for n in np.flatnonzero(shapely.intersects(boxes, shapely.box(*area)))}
        assert wanted
        met = groups_met(content, area)
        read.append(len(met))
        # What the statistics leave out holds none of them, and readers that rely on them find all.
        assert wanted <= set(file.read_row_groups(met, columns=["tile_id"]).column("tile_id").to_pylist())
        assert set(geopandas.read_parquet(tmp_path / "captions.parquet", bbox=area).tile_id) == wanted
    assert max(read) <= 4
    assert np.mean(read) < 3  # of 13
    west_, south_, east_, north_ = area
    counted = duckdb.sql(
        f"SELECT count(*) FROM '{tmp_path}/captions.parquet' WHERE bbox.xmin <= {east_} AND bbox.xmax >= {west_} "
        f"AND bbox.ymin <= {north_} AND bbox.ymax >= {south_}"
    ).fetchone()
    assert counted == (len(wanted),)
    # Pages have statistics of their own, in an index that is read before them.
    box = file.metadata.row_group(0).column(file.schema.names.index("xmin"))
    assert box.has_column_index
    assert box.compression == "ZSTD"
    assert complaints(content) == []


def test_what_is_no_footprint_is_refused_by_name() -> None:
    rows = captions(["p/0", "p/1"], [square(9.9, 53.5), b"\x01"])
    with pytest.raises(SchemaError, match=r"geometry of p/1 is not WKB \(so in 1 row"):
        arranged(rows)
