"""Failed tiles: which kind each real error is of, and how many are named in the log."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import rasterio
from rasterio.transform import from_origin

from hisem.archive.reader import PairReader
from hisem.captions.failures import KINDS, NAMED, UNSUITABLE, FailureLog, kind_of
from hisem.errors import RasterError
from hisem.object_store import REASONS


def raster(path: Path, dtype: str = "uint8", west: float = 0.0) -> str:
    path.parent.mkdir(exist_ok=True)
    profile = {"driver": "GTiff", "height": 64, "width": 64, "count": 3, "dtype": dtype, "crs": "EPSG:32632"}
    with rasterio.open(path, "w", **profile, transform=from_origin(west, 64, 1, 1)) as file:
        file.write(np.random.default_rng(0).integers(1, 255, (3, 64, 64)).astype(dtype))
    return str(path)


def broken(kind: str, folder: Path) -> str:
    """A raster that cannot be read beside a good one."""
    path = folder / f"{kind}.tif"
    if kind == "empty":
        path.touch()
    elif kind == "junk":
        path.write_text("no raster")
    elif kind == "truncated":
        path.write_bytes(Path(raster(path)).read_bytes()[:5000])
    elif kind == "under a file":
        path = Path(raster(path)) / "inside.tif"
    elif kind == "float":
        raster(path, "float32")
    elif kind == "float in a folder of misleading name":
        path = Path(raster(folder / "no such file: copy it again" / "float.tif", "float32"))
    elif kind == "far":
        raster(path, west=9e5)
    elif kind == "folder":
        path.mkdir()
    return str(path)


@pytest.mark.parametrize(
    ("broken_raster", "kind"),
    [
        ("missing", "missing"),
        ("under a file", "unreachable"),
        ("empty", "damaged"),
        ("junk", "damaged"),
        ("truncated", "damaged"),
        ("folder", "damaged"),
        ("float", UNSUITABLE),
        ("float in a folder of misleading name", UNSUITABLE),
        ("far", UNSUITABLE),
    ],
)
def test_errors_of_rasters_have_their_kinds(broken_raster: str, kind: str, tmp_path: Path) -> None:
    good, bad = raster(tmp_path / "good.tif"), broken(broken_raster, tmp_path)
    with pytest.raises(RasterError) as caught, PairReader([good], [bad], 64) as reader:
        reader.read(reader.grid.extent)
    assert kind_of(str(caught.value)) == kind, caught.value


def test_errors_of_stores_have_their_kinds() -> None:
    told = [
        f"s3://b/a.tif: cannot be opened as a raster (HTTP {number}). {why}." for number, (_, why) in enumerate(REASONS)
    ]
    assert [kind_of(error) for error in told] == ["denied", "missing", "unreachable", "unreachable"]


def rows(*failed: tuple[str, str]) -> pa.Table:
    """Failed rows of tiles with their errors, and one that is ok."""
    made = [
        {"pair_id": tile.split("/")[0], "tile_id": tile, "status": "failed", "error": error} for tile, error in failed
    ]
    return pa.Table.from_pylist([*made, {"pair_id": "good", "tile_id": "good/0", "status": "ok", "error": None}])


def test_the_first_tiles_of_each_kind_are_named(caplog: pytest.LogCaptureFixture) -> None:
    failures = FailureLog()
    many = [(f"p/{number}", "/a/b.tif: no such file; restore it.") for number in range(NAMED)]
    with caplog.at_level(logging.WARNING):
        assert failures.tell(rows(*many[:15])) == {"missing": 15}
        assert failures.tell(rows(*many, ("q/7", "the model failed on this tile"))) == {"missing": NAMED, "model": 1}
        failures.end()
    named = [record for record in caplog.records if hasattr(record, "tile_id")]
    ids = [(record.__dict__["pair_id"], record.__dict__["tile_id"]) for record in named]
    assert ids == [*(("p", tile) for tile, _ in many[:15]), *(("p", tile) for tile, _ in many[:5]), ("q", "q/7")]
    assert named[0].getMessage() == "p/0 has failed: /a/b.tif: no such file; restore it."
    assert {record.__dict__["failure"] for record in caplog.records} == {"missing", "model"}
    (rest,) = [record.getMessage() for record in caplog.records if record not in named]
    assert rest.startswith("15 more tile(s) have failed (missing)")


def test_there_are_few_kinds() -> None:
    kinds = [kind for kind, _ in KINDS]
    assert len(set(kinds)) == len(kinds) < 10
    assert UNSUITABLE not in kinds
    assert kind_of(None) == UNSUITABLE


def test_of_a_long_error_its_ends_are_looked_at() -> None:
    path = "/archive/x " + 50_000 * "a."  # which all of it would take minutes
    assert kind_of(f"{path}: no such file; correct the catalogue or restore the file.") == "missing"
