"""The rows of the tile index against rasterio, and the reasons for which pairs are refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.shutil import copy as copy_raster
from rasterio.transform import from_origin
from rasterio.warp import transform_bounds
from rasterio.windows import Window as RasterioWindow
from rasterio.windows import bounds as window_bounds

from hisem.archive import index
from hisem.archive.index import index_pair
from hisem.errors import RasterError
from hisem.schemas import INDEX

Write = Callable[..., str]
Noise = Callable[..., npt.NDArray[np.uint8]]


def pair(before: str | list[str], after: str | list[str], **columns: Any) -> dict[str, Any]:
    lists = [[value] if isinstance(value, str) else value for value in (before, after)]
    return {"pair_id": "p", "before": lists[0], "after": lists[1], **columns}


def test_rows_carry_the_pair_and_the_window(write_raster: Write, noise: Noise) -> None:
    path = write_raster("scene.tif", noise())
    table = index_pair(pair(path, path, split="val"), 64)
    assert table.schema == INDEX
    rows = table.to_pylist()
    assert [row["tile_id"] for row in rows] == ["p/0-0-64", "p/0-16-64", "p/32-0-64", "p/32-16-64"]
    assert {row["split"] for row in rows} == {"val"}
    assert {row["crs"] for row in rows} == {"EPSG:32633"}
    assert rows[3]["transform"] == [10, 0, 500_160, 0, -10, 3_999_680]
    assert rows[0]["before_mask"] is None
    assert rows[0]["before"] == [path]


def test_geometry_is_the_window_bounds(shared_data: Path) -> None:
    paths = [str(shared_data / "levir_cd_scenes" / date / "test_1.tif") for date in ("before", "after")]
    table = index_pair(pair(*paths), 256)
    assert table.num_rows == 16
    with rasterio.open(paths[0]) as raster:
        for row in table.to_pylist():
            place = RasterioWindow(row["col_off"], row["row_off"], row["width"], row["height"])
            expected = window_bounds(place, raster.transform)
            assert shapely.from_wkb(row["geometry"]).bounds == pytest.approx(expected, rel=0, abs=1e-12)
            assert row["transform"] == pytest.approx(list(raster.window_transform(place))[:6], rel=1e-15)


def test_mosaics_in_two_crs(shared_data: Path) -> None:
    before, after = (sorted(map(str, (shared_data / "joplin" / date).glob("*.tif"))) for date in ("pre", "post"))
    table = index_pair(pair(before, after), 256)
    assert table.num_rows == 64
    assert set(table.column("crs").to_pylist()) == {"EPSG:26915"}
    footprint = shapely.union_all(shapely.from_wkb(table.column("geometry").to_pylist()))
    with ExitStack() as stack:
        bounds = np.array([stack.enter_context(rasterio.open(path)).bounds for path in before])
    edges = *bounds[:, :2].min(axis=0), *bounds[:, 2:].max(axis=0)
    assert footprint.bounds == pytest.approx(transform_bounds("EPSG:26915", "EPSG:4326", *edges), abs=1e-6)


def test_images_without_georeference_have_no_place(write_raster: Write, noise: Noise) -> None:
    path = write_raster("scene.png", noise(), transform=None, crs=None)
    (row,) = index_pair(pair(path, path), 128).to_pylist()
    assert (row["crs"], row["transform"], row["geometry"]) == (None, None, None)
    assert (row["tile_id"], row["height"], row["width"]) == ("p/0-0-128", 96, 80)


def test_broken_rasters_are_named_with_cause_and_remedy(write_raster: Write, noise: Noise, tmp_path: Path) -> None:
    good = write_raster("good.tif", noise())
    (tmp_path / "empty.tif").touch()
    (tmp_path / "folder.tif").mkdir()
    (tmp_path / "text.tif").write_text("no raster at all")
    (tmp_path / "header.tif").write_bytes(Path(good).read_bytes()[:6])
    rotated = write_raster("rotated.tif", noise(), transform=Affine(10, 1, 500_000, 1, -10, 4_000_000))
    with rasterio.open(write_raster("gcps.tif", noise(), crs=None, transform=None), "r+") as raster:
        raster.gcps = ([GroundControlPoint(row, 0, row, row) for row in (0, 5, 9)], "EPSG:4326")
    vrt = tmp_path / "scene.vrt"
    copy_raster(good, vrt, driver="VRT")
    cases = {
        str(tmp_path / "absent.tif"): "no such file",
        str(tmp_path / "empty.tif"): "the file is empty",
        str(tmp_path / "folder.tif"): "is a folder",
        f"{good}/scene.tif": "cannot be reached",
        str(tmp_path / "text.tif"): r"cannot be opened .* Readable are GeoTIFF",
        str(tmp_path / "header.tif"): "damaged or incomplete",
        str(vrt): "cannot be opened",
        rotated: "must be warped first",
        str(tmp_path / "gcps.tif"): "control points",
        write_raster(
            "gray.tif", noise(bands=1)
        ): r"band '2' is not there.* found 1 band\(s\): 1 \(gray\)\. Choose with --bands",
        write_raster(
            "deep.tif", noise().astype(np.uint16)
        ): r"pixels of uint16.*--scaling percentiles, --scaling dtype, or --scaling range",
        write_raster("far.tif", noise(), transform=from_origin(400_000, 4_000_000, 10, 10)): "does not overlap",
        write_raster("nowhere.tif", noise(), crs=None): "both dates need a CRS",
        write_raster("pixels.tif", noise(), crs=None, transform=None): "both dates need a CRS",
    }
    for path, reason in cases.items():
        with pytest.raises(RasterError, match=reason) as raised:
            index_pair(pair(good, path), 64)
        assert path in str(raised.value)
        if "overlap" not in reason and "CRS" not in reason:
            with pytest.raises(RasterError, match=reason):
                index_pair(pair(path, good), 64)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_raster_without_read_permission_is_named(write_raster: Write, noise: Noise) -> None:
    path = write_raster("secret.tif", noise())
    Path(path).chmod(0)
    with pytest.raises(RasterError, match=r"secret\.tif: no permission"):
        index_pair(pair(path, path), 64)


def test_images_without_georeference_must_be_of_one_size_and_alone(write_raster: Write, noise: Noise) -> None:
    before = write_raster("before.png", noise(), transform=None, crs=None)
    after = write_raster("after.png", noise(height=97), transform=None, crs=None)
    placed = write_raster("placed.tif", noise(), crs=None)
    with pytest.raises(RasterError, match=r"after\.png: found 97 x 80 pixels .* 96 x 80"):
        index_pair(pair(before, after), 64)
    with pytest.raises(RasterError, match="2 rasters cannot form one scene"):
        index_pair(pair([before, before], before), 64)
    with pytest.raises(RasterError, match="one date has a geotransform"):
        index_pair(pair(before, placed), 64)


def test_a_misplaced_raster_does_not_blow_up_the_index(
    write_raster: Write, noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = write_raster("near.tif", noise())
    far = write_raster("far.tif", noise(), transform=from_origin(900_000, 4_000_000, 10, 10))
    monkeypatch.setattr(index, "MAX_TILES", 1000)
    with pytest.raises(RasterError, match="lies far from the others"):
        index_pair(pair([near, far], near), 64)
