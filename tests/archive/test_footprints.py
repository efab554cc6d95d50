"""Footprints: repaired against hand-made truth, areas against a sphere's own."""

from __future__ import annotations

import numpy as np
import pytest
import shapely

from hisem.archive.footprints import MAX_POINTS, covered_fractions, equal_area, repaired

SPLIT = shapely.union(shapely.box(179, 10, 180, 11), shapely.box(-180, 10, -178, 11))


@pytest.mark.parametrize(
    "text",
    [
        "POLYGON ((179 10, -178 10, -178 11, 179 11, 179 10))",
        "POLYGON ((179 10, 179 11, -178 11, -178 10, 179 10))",
        "POLYGON ((179 10, 182 10, 182 11, 179 11, 179 10))",
        "POLYGON ((-181 10, -178 10, -178 11, -181 11, -181 10))",
        "POLYGON Z ((179 10 7, -178 10 7, -178 11 7, 179 11 7, 179 10 7))",
        "MULTIPOLYGON (((179 10, 180 10, 180 11, 179 11, 179 10)), ((-180 10, -178 10, -178 11, -180 11, -180 10)))",
        "GEOMETRYCOLLECTION (POLYGON ((179 10, -178 10, -178 11, 179 11, 179 10)), POINT (0 0))",
    ],
)
def test_however_the_antimeridian_is_crossed_the_ground_is_the_same(text: str) -> None:
    found = repaired(shapely.from_wkt(text))
    assert found.is_valid
    assert not found.has_z
    assert found.symmetric_difference(SPLIT).area < 1e-9


def dense(west: float, east: float, count: int = 400) -> shapely.Polygon:
    """A box from 10 to 11 degrees north with about `count` points."""
    return shapely.segmentize(shapely.box(west, 10, east, 11), (2 * (east - west) + 2) / count)


def jumping(polygon: shapely.Geometry) -> shapely.Geometry:
    return shapely.transform(polygon, lambda points: np.column_stack([(points[:, 0] + 180) % 360 - 180, points[:, 1]]))


HOLED = dense(179.5, 180.5).difference(shapely.box(180.1, 10.2, 180.3, 10.4))


@pytest.mark.parametrize(
    ("footprint", "area"),
    [
        (dense(179.5, 180.5), 1.0),
        (jumping(dense(179.5, 180.5)), 1.0),
        (shapely.MultiPolygon([dense(179.5, 180, 160), dense(-180, -179.5, 160)]), 1.0),
        (jumping(shapely.Point(180, 10).buffer(0.5, quad_segs=75)), np.pi / 4),
        (HOLED, 0.96),
        (jumping(HOLED), 0.96),
        (shapely.Polygon([(x, 80) for x in (np.arange(400) * 0.9 + 180.3) % 360 - 180]), 3600.0),  # around the pole
    ],
)
def test_many_points_at_the_antimeridian_keep_the_ground(footprint: shapely.Geometry, area: float) -> None:
    found = repaired(footprint)
    assert shapely.get_num_coordinates(footprint) > MAX_POINTS
    assert found.is_valid
    assert found.area == pytest.approx(area, rel=0.01)
    assert -180 <= found.bounds[0] < found.bounds[2] <= 180


SQUARES = shapely.MultiPolygon([shapely.box(x, y, x + 0.5, y + 0.5) for x in range(10) for y in range(10)])
ANGLES = np.linspace(0, 2 * np.pi, 400, endpoint=False)
RADII = 1 + np.random.default_rng(0).uniform(-0.2, 0.2, 400)
NOISY = shapely.Polygon(np.column_stack([np.cos(ANGLES) * RADII, np.sin(ANGLES) * RADII]))


@pytest.mark.parametrize("footprint", [SQUARES, NOISY])
def test_valid_ground_with_many_points_that_matter_is_kept(footprint: shapely.Geometry) -> None:
    assert footprint.is_valid
    found = repaired(footprint)
    assert found.is_valid
    assert found.symmetric_difference(footprint).area < 0.01 * footprint.area


@pytest.mark.parametrize(
    ("text", "area"),
    [
        ("POLYGON ((0 0, 2 0, 2 2, 0 2, 0 0))", 4),
        ("POLYGON ((0 0, 2 2, 2 0, 0 2, 0 0))", 2),  # a bow tie
        ("MULTIPOLYGON (((0 0, 2 0, 2 2, 0 2, 0 0)), ((1 0, 3 0, 3 2, 1 2, 1 0)))", 6),  # its parts overlap
        ("POLYGON ((0 0, 2 0, 2 2, 2 3, 2 2, 0 2, 0 0))", 4),  # a spike
        ("POLYGON ((0 0, 3 0, 3 3, 0 3, 0 0), (1 1, 1 2, 2 2, 2 1, 1 1))", 8),
        ("POLYGON ((-180 -60, 180 -60, 180 60, -180 60, -180 -60))", 360 * 120),  # around the Earth
        ("POLYGON ((185 0, 187 0, 187 2, 185 2, 185 0))", 4),
        ("POLYGON ((0 80, 90 80, 180 80, -90 80, 0 80))", 360 * 10),  # around the pole
    ],
)
def test_repairs_keep_the_ground(text: str, area: float) -> None:
    found = repaired(shapely.from_wkt(text))
    assert found.is_valid
    assert found.geom_type in ("Polygon", "MultiPolygon")
    west, south, east, north = found.bounds
    assert (west, south) >= (-180, -90)
    assert (east, north) <= (180, 90)
    assert found.area == pytest.approx(area)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("POINT (1 2)", "a Point without area"),
        ("POLYGON EMPTY", "a Polygon without area"),
        ("MULTIPOLYGON EMPTY", "without area"),
        ("POLYGON ((0 0, 1 1, 2 2, 0 0))", "a Polygon without area"),
        ("POLYGON ((500000 0, 500010 0, 500010 10, 500000 0))", "from 500000, 0 to 500010, 10 are not longitudes"),
        ("POLYGON ((0 89, 1 89, 1 91, 0 89))", "not longitudes and latitudes in degrees"),
    ],
)
def test_what_covers_no_ground_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        repaired(shapely.from_wkt(text))


@pytest.mark.filterwarnings("ignore:invalid value")
def test_coordinates_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="not longitudes and latitudes in degrees"):
        repaired(shapely.Polygon([(0, 0), (np.nan, 0), (1, 1)]))


def test_areas_are_those_of_the_sphere() -> None:
    boxes = [shapely.box(-180, -90, 180, 90), shapely.box(10, 0, 11, 1), shapely.box(10, 79, 11, 80)]
    expected = [
        np.radians(east - west) * (np.sin(np.radians(north)) - np.sin(np.radians(south)))
        for west, south, east, north in (box.bounds for box in boxes)
    ]
    assert shapely.area(equal_area(boxes)) == pytest.approx(expected)
    assert expected[0] == pytest.approx(4 * np.pi)


def test_overlaps_are_fractions_of_ground_not_of_degrees() -> None:
    """The northern half in degrees, at 60 to 80 degrees, is less than half of the ground."""
    whole, north, far = equal_area([shapely.box(0, 60, 10, 80), shapely.box(0, 70, 10, 90), shapely.box(50, 0, 60, 9)])
    found = covered_fractions(whole, np.array([whole, north, far]))
    ground = np.diff(np.sin(np.radians([60, 70, 80])))
    assert found == pytest.approx([1, ground[1] / ground.sum(), 0])
    assert found[1] < 0.4


def test_footprints_stay_valid_on_the_plane() -> None:
    """A vertex just beside a long edge comes to lie on its other side."""
    thin = shapely.from_wkt("POLYGON ((0 0, 40 40, 60 60.0, 20.0 20.0000001, 0 10, 0 0))")
    assert thin.is_valid
    assert shapely.is_valid(equal_area([thin])).all()
