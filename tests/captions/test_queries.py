"""The queries that the README publishes, run as they stand there, on a table in the place that they name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import combinations
from pathlib import Path
from typing import Any

import duckdb
import duckdb_extension_spatial
import geopandas
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import transform

from hisem.archive.grid import Grid, windows
from hisem.archive.synthetic.language import references
from hisem.archive.synthetic.truth import Kind, Place, Truth
from hisem.captions.geoparquet import arranged, encoded
from hisem.schemas import CAPTION, FAILED, OK, SKIPPED

README = Path(__file__).resolve().parents[2] / "README.md"
NOW = datetime.now(UTC)
UNDATED = "0000-00-00"


def blocks() -> list[str]:
    """The Python of the section, in order: in GeoPandas, per month, in DuckDB."""
    section = README.read_text(encoding="utf-8").partition("\n## Queries\n")[2].partition("\n## ")[0]
    return re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home directory for `~`, in which DuckDB finds its spatial extension installed."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (packed,) = Path(duckdb_extension_spatial.__file__).parent.rglob("*.duckdb_extension")
    ((platform,),) = duckdb.execute("PRAGMA platform").fetchall()
    installed = tmp_path / "extensions" / f"v{duckdb.__version__}" / platform
    installed.mkdir(parents=True)
    (installed / packed.name).symlink_to(packed)
    duckdb.execute(f"SET home_directory = '{tmp_path}'; SET extension_directory = '{tmp_path}/extensions'")
    yield tmp_path
    duckdb.execute("RESET home_directory; RESET extension_directory")


def caption(tile: str, days_ago: int | None, **over: Any) -> dict[str, Any]:
    """One row, of a scene so many days old or without a date."""
    return {
        "tile_id": tile,
        "pair_id": tile.partition("/")[0],
        "before": ["b.tif"],
        "after": ["a.tif"],
        "after_time": None if days_ago is None else NOW - timedelta(days=days_ago),
        **dict.fromkeys(("row_off", "col_off", "height", "width"), 0),
        "status": OK,
        "caption": "two houses are built in the center",
        "changed": True,
        "model_name": "hisem",
        "model_version": "1",
        "model_digest": "a" * 64,
        "captioned_at": NOW,
    } | over


def folder(row: dict[str, Any]) -> str:
    day = row["after_time"].date().isoformat() if row["after_time"] else UNDATED
    return f"acquired={day}/model={row['model_version']}"


def published(home: Path, rows: list[dict[str, Any]]) -> Path:
    """The table `~/hisem/table/captions` with these rows, a file in each folder."""
    table = home / "hisem" / "table" / "captions"
    for name in {folder(row) for row in rows}:
        part = pa.Table.from_pylist([row for row in rows if folder(row) == name], schema=CAPTION)
        (table / name).mkdir(parents=True)
        (table / name / "part-0.parquet").write_bytes(encoded(arranged(part)))
    return table


def around_hamburg() -> list[dict[str, Any]]:
    """Tiles of a region around the README's polygon, seen today, yesterday, and before, and some without a place."""
    rng = np.random.default_rng(0)
    rows = []
    for number, days in enumerate([0, 1, 2, 3, 40, None] * 60):
        west, south = rng.uniform(9.7, 10.3), rng.uniform(53.4, 53.7)
        place = shapely.to_wkb(shapely.box(west, south, west + 0.01, south + 0.01)) if number % 7 else None
        rows.append(caption(f"p/{number}", days, geometry=place, changed=[True, True, False, None][number % 4]))
    rows.append(caption("q/pair", 0, status=SKIPPED, changed=None, caption=None))
    # The first file, whose metadata readers take for all, has no footprints.
    return [*rows, caption("q/0", 400)]


def changed_inside(rows: list[dict[str, Any]], area: shapely.Polygon, since: date) -> set[str]:
    """Row by row: the changed tiles of scenes since that date whose footprint meets `area`."""
    return {
        row["tile_id"]
        for row in rows
        if row["changed"]
        and row["after_time"]
        and row["after_time"].date() >= since
        and row.get("geometry")
        and shapely.from_wkb(row["geometry"]).intersects(area)
    }


def for_area(area: shapely.Polygon | None) -> str:
    """The first block, for the README's own polygon or for another one."""
    query, count = re.subn(r"POLYGON \(\(.*?\)\)", area.wkt if area else r"\g<0>", blocks()[0])
    assert count == 1
    return query


def run_geopandas(names: dict[str, Any], area: shapely.Polygon | None = None) -> set[str]:
    exec(for_area(area), names)
    return set(names["tiles"].tile_id)


def run_duckdb(names: dict[str, Any], area: shapely.Polygon | None = None) -> set[str]:
    exec(for_area(area), names)
    exec("import duckdb\n" + blocks()[2], names)
    return {row[0] for row in names["found"].fetchall()}


@pytest.mark.parametrize("run", [run_geopandas, run_duckdb])
def test_changed_tiles_inside_a_polygon(home: Path, run: Callable[[dict[str, Any]], set[str]]) -> None:
    rows = around_hamburg()
    published(home, rows)
    names: dict[str, Any] = {}
    found, area, since = run(names), names["area"], names["yesterday"]
    assert since in ((NOW - timedelta(days=1)).date(), NOW.date())  # as midnight may pass meanwhile
    assert found == changed_inside(rows, area, since)
    # The polygon decides, not its box alone; and there is something to find.
    assert len(found) >= 5
    assert found < changed_inside(rows, shapely.box(*area.bounds), since)


@pytest.mark.parametrize("run", [run_geopandas, run_duckdb])
@pytest.mark.parametrize("code", [32760, 32701, 3857, 3031])
def test_tiles_across_180_degrees_are_found_from_both_sides(
    home: Path, run: Callable[..., set[str]], code: int
) -> None:
    """Tiles of a scene around that line, of which one column, or the pole's neighbors, lie across it."""
    crs = CRS.from_epsg(code)
    (x,), (y,) = transform("EPSG:4326", crs, [179.999], [-80.0 if code == 3031 else -17.0])
    grid = Grid(2048, 2048, Affine(10, 0, x - 10_240, 0, -10, y + 10_240), crs)
    tiles = windows(2048, 2048, 256)
    rows = [
        caption(f"fiji/{tile.row_off}-{tile.col_off}-256", 0, geometry=wkb, changed=True)
        for tile, wkb in zip(tiles, grid.footprints(tiles), strict=True)
    ]
    published(home, rows)
    outlines = {row["tile_id"]: shapely.from_wkb(row["geometry"]) for row in rows}
    across = {tile for tile, outline in outlines.items() if outline.geom_type == "MultiPolygon"}
    assert 8 <= len(across) <= 16
    _, south, _, north = shapely.total_bounds(list(outlines.values()))
    found = []
    for west, east in [(179.9999, 180), (-180, -179.9999), (-179.97, -179.95)]:
        names: dict[str, Any] = {}
        area = shapely.box(west, south, east, north)
        found.append(run(names, area))
        assert found[-1] == changed_inside(rows, area, names["yesterday"])
    assert across <= found[0] & found[1]
    assert found[2] < set(outlines)


@pytest.mark.parametrize("run", [run_geopandas, run_duckdb])
def test_a_filter_on_the_date_opens_its_folders_alone(home: Path, run: Callable[[dict[str, Any]], set[str]]) -> None:
    """All files of other dates are broken, but the one that readers take the columns from."""
    rows = around_hamburg()
    table = published(home, rows)
    _, *others = sorted(table.rglob("*.parquet"), key=str)
    wanted = {folder(row) for row in rows if row["after_time"] and row["after_time"] > NOW - timedelta(days=1.5)}
    left = [file for file in others if str(file.parent.relative_to(table)) not in wanted]
    assert len(left) >= 4
    for file in left:
        file.write_bytes(b"no Parquet")
    names: dict[str, Any] = {}
    assert run(names) == changed_inside(rows, names["area"], names["yesterday"])


def test_tiles_with_new_houses_per_month(home: Path) -> None:
    """Each tile is told of in all the wordings of the synthetic archive; the truth behind the sentences is counted."""
    rng = np.random.default_rng(0)
    stories: list[tuple[Truth, ...]] = [(), *combinations([Truth(kind, Place.CENTER, 2) for kind in Kind], 1)]
    stories += [(Truth(Kind.HOUSE_BUILT, Place.TOP, count),) for count in (1, 2, 3) for _ in range(4)]
    stories += [(Truth(a, Place.TOP, 1), Truth(b, Place.LEFT, 3)) for a, b in combinations(Kind, 2)]
    stories += [tuple(Truth(kind, Place.BOTTOM) for kind in three) for three in combinations(Kind, 3)]
    rows, wanted = [], Counter[str | None]()
    for number, story in enumerate(stories):
        for wording, sentence in enumerate(references(story, rng)):
            days = [0, 10, 40, 100, 400, None][(number + wording) % 6]
            row = caption(f"p/{number}-{wording}", days, caption=sentence, changed=bool(story))
            rows.append(row)
            if any(truth.kind is Kind.HOUSE_BUILT for truth in story):
                wanted[row["after_time"].strftime("%Y-%m") if row["after_time"] else None] += 1
    # What people wrote of other archives; and what is no change, failed, or told by two models.
    for number, (sentence, told) in enumerate(SENTENCES.items()):
        rows.append(caption(f"q/{number}", 0, caption=sentence))
        wanted[NOW.strftime("%Y-%m")] += told
    rows += [caption("r/0", 0, changed=None), caption("r/1", 0, changed=False), caption("r/2", 0, caption=None)]
    rows += [caption("s/0", 0), caption("s/0", 0, model_version="2", model_digest="b" * 64)]
    wanted[NOW.strftime("%Y-%m")] += 1
    published(home, rows)

    names: dict[str, Any] = {"TABLE": "~/hisem/table/captions"}
    exec(blocks()[1], names)
    assert dict(names["months"].fetchall()) == wanted
    assert len(wanted) >= 4


SENTENCES = {
    "many houses and a road are built on the empty land": True,
    "villas appear along the road": True,
    "a row of houses is built and the trees disappear": True,
    "some houses and trees are removed while a road is built": False,
    "the houses are demolished and a new road is built": False,
    "a greenhouse is built": False,
    "a road is built beside the houses": False,
}


def test_the_section_has_the_queries() -> None:
    queries = blocks()
    assert [name in query for query, name in zip(queries, ("geopandas", "duckdb", "spatial"), strict=True)] == [
        True
    ] * 3


def pandas_block() -> str:
    """The first query that the README has, before the section: in pandas."""
    found = re.search(
        r"^```python\n(import pandas as pd\n.*?)^```$", README.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    assert found
    return found[1]


PLACE = shapely.to_wkb(shapely.box(9.95, 53.5, 9.96, 53.51))
FAILED_PAIR = {"status": FAILED, "caption": None, "changed": None, "error": "/archive/b.tif: no such file."}
TABLES: dict[str, list[dict[str, Any]]] = {
    "without a date": [caption("a/0", None, geometry=PLACE), caption("b/0", None, geometry=PLACE, changed=False)],
    "failed": [caption("a/pair", 3, **FAILED_PAIR), caption("b/pair", 0, **FAILED_PAIR)],
    "failed, without a date": [caption("a/pair", None, **FAILED_PAIR)],
    "some with a date": [caption("a/0", None, geometry=PLACE), caption("b/0", 0, geometry=PLACE)],
    "some failed": [caption("a/0", None, geometry=PLACE), caption("b/pair", 0, **FAILED_PAIR)],
    "without places": [caption("a/0", None), caption("b/0", 0)],
    "versions that are numbers and words": [
        caption("a/0", None, geometry=PLACE),
        caption("b/0", 0, geometry=PLACE, model_version="dev"),
    ],
}


@pytest.mark.parametrize("name", TABLES)
def test_every_query_reads_every_table(home: Path, name: str) -> None:
    """Readers infer the type of a partition from names of folders, and take columns from the first file."""
    rows = TABLES[name]
    published(home, rows)
    names: dict[str, Any] = {}
    exec(pandas_block(), names)
    assert set(names["table"].tile_id) == {row["tile_id"] for row in rows}
    whole = pd.read_parquet("~/hisem/table/captions")
    undated = whole.acquired == UNDATED
    assert set(whole.tile_id[undated]) == {row["tile_id"] for row in rows if row["after_time"] is None}
    assert len(geopandas.read_parquet(home / "hisem" / "table" / "captions")) == len(rows)
    for run in (run_geopandas, run_duckdb):
        assert run(names) == changed_inside(rows, names["area"], names["yesterday"])
    exec(blocks()[1], names)
    wanted = Counter(row["after_time"] and row["after_time"].strftime("%Y-%m") for row in rows if row["changed"])
    assert dict(names["months"].fetchall()) == wanted
