"""Windows against brute force, transforms and footprints against rasterio."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import transform, transform_bounds
from rasterio.windows import Window as RasterioWindow
from rasterio.windows import transform as window_transform

from hisem.archive.grid import Grid, Window, nominal_size, tile_id, windows
from hisem.errors import ConfigError, RasterError

UTM_GRID = Grid(1000, 700, Affine(0.6, 0, 366_642.6, 0, -0.6, 4_104_511.2), CRS.from_epsg(26915))


@pytest.mark.parametrize("tile_size", [1, 7, 16, 64, 100])
@pytest.mark.parametrize("height", [1, 6, 15, 16, 17, 32, 63, 64, 99])
def test_windows_cover_every_pixel_inside_the_scene_with_unique_ids(height: int, tile_size: int) -> None:
    for width in (1, 7, 16, 33, 64, 101):
        found = windows(height, width, tile_size)
        seen = np.zeros((height, width), int)
        for window in found:
            assert 0 <= window.row_off <= window.row_off + window.height <= height
            assert 0 <= window.col_off <= window.col_off + window.width <= width
            assert (window.height, window.width) == (min(tile_size, height), min(tile_size, width))
            seen[window.slices(Window(0, 0, height, width))] += 1
        assert seen.min() >= 1
        assert len(found) == -(-height // tile_size) * -(-width // tile_size)
        assert len({tile_id("p", window, tile_size) for window in found}) == len(found)


def test_the_last_row_and_column_shift_inwards() -> None:
    assert [(w.row_off, w.col_off) for w in windows(100, 64, 64)] == [(0, 0), (36, 0)]
    assert windows(40, 100, 64) == [Window(0, 0, 40, 64), Window(0, 36, 40, 64)]
    assert tile_id("site-1", Window(36, 0, 64, 64), 64) == "site-1/36-0-64"


@pytest.mark.parametrize("resolution", [None, 10.0, 0.30000000000000004, 1e-05])
def test_a_tiles_name_tells_its_size(resolution: float | None) -> None:
    small = Window(0, 0, 40, 50)  # a scene smaller than a tile
    assert nominal_size(tile_id("a@b-7/c", small, 256, resolution)) == 256
    assert nominal_size("named by others") is None


@pytest.mark.parametrize("overlap", [1, 5, 15])
@pytest.mark.parametrize("height", [6, 16, 17, 47, 64, 99])
def test_overlapping_windows_share_pixels_and_cover_all(height: int, overlap: int) -> None:
    found = windows(height, 50, 16, overlap)
    seen = np.zeros((height, 50), int)
    for window in found:
        seen[window.slices(Window(0, 0, height, 50))] += 1
    assert seen.min() >= 1
    for axis, length in (("row_off", height), ("col_off", 50)):
        starts = sorted({getattr(window, axis) for window in found})
        steps = np.diff(starts).tolist()
        assert set(steps[:-1]) <= {16 - overlap}
        assert all(1 <= step <= 16 - overlap for step in steps[-1:])
        assert starts[-1] + min(16, length) == length
    assert len(set(found)) == len(found)


def test_ids_tell_windows_apart_whatever_the_overlap() -> None:
    known: dict[str, Window] = {}
    for overlap in range(16):
        for window in windows(70, 55, 16, overlap):
            assert known.setdefault(tile_id("p", window, 16), window) == window


@pytest.mark.parametrize(
    ("tile_size", "overlap", "named"),
    [(0, 0, "tile_size is 0"), (16, 16, "overlap is 16; it lies between 0 and 15"), (16, -1, "overlap is -1")],
)
def test_a_tiling_that_leads_nowhere_is_refused(tile_size: int, overlap: int, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        windows(10, 10, tile_size, overlap)


@pytest.mark.parametrize("window", windows(1000, 700, 256))
def test_transforms_equal_rasterio(window: Window) -> None:
    expected = window_transform(
        RasterioWindow(window.col_off, window.row_off, window.width, window.height), UTM_GRID.transform
    )
    assert UTM_GRID.transform_of(window) == expected


def test_footprints_are_the_projected_outlines() -> None:
    places = windows(1000, 700, 256)
    for window, content in zip(places, UTM_GRID.footprints(places), strict=True):
        outline = shapely.from_wkb(content)
        left, bottom, right, top = UTM_GRID.bounds_of(window)
        longitudes, latitudes = transform(
            UTM_GRID.crs, "EPSG:4326", [left, left, right, right], [bottom, top, top, bottom]
        )
        corners = shapely.Polygon(zip(longitudes, latitudes, strict=True))
        assert outline.is_valid
        assert outline.symmetric_difference(corners).area < 1e-5 * corners.area
        assert outline.bounds == pytest.approx(transform_bounds(UTM_GRID.crs, "EPSG:4326", left, bottom, right, top))


def test_footprints_in_degrees_are_the_window_bounds() -> None:
    grid = Grid(64, 64, Affine(0.5, 0, 10, 0, -0.25, 50), CRS.from_epsg(4326))
    (content,) = grid.footprints([Window(32, 16, 32, 16)])
    assert shapely.from_wkb(content).equals(shapely.box(18, 34, 26, 42))


def test_a_footprint_across_the_antimeridian_is_split() -> None:
    (x,), (y,) = transform("EPSG:4326", "EPSG:32660", [179.99], [10.0])
    grid = Grid(256, 256, Affine(20, 0, x, 0, -20, y), CRS.from_epsg(32660))
    outline = shapely.from_wkb(grid.footprints([grid.extent])[0])
    assert outline.geom_type == "MultiPolygon"
    assert {round(part.bounds[0]) for part in outline.geoms} == {-180, 180}
    assert outline.area < 0.01


@pytest.mark.parametrize(
    "grid",
    [
        Grid(64, 64, Affine.identity(), None),
        Grid(64, 64, Affine.identity(), CRS.from_epsg(4326)),
        Grid(64, 64, Affine(10, 0, 5, 0, -10, 5), None),
    ],
)
def test_no_footprint_without_georeference(grid: Grid) -> None:
    assert grid.footprints([grid.extent] * 2) == [None, None]


def test_a_crs_without_place_on_earth_is_an_error() -> None:
    local = CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1],AXIS["X",EAST],AXIS["Y",NORTH]]')
    grid = Grid(64, 64, Affine(10, 0, 5, 0, -10, 5), local)
    with pytest.raises(RasterError, match="check the CRS"):
        grid.footprints([grid.extent])
