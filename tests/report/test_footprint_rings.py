from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import shapely
from shapely.affinity import rotate

from hisem.report.footprint_rings import MAX_CORNERS, UNITS, footprint_rings


def drawn(*shapes: shapely.Geometry | None) -> list[shapely.Geometry | None]:
    """What a page draws of the shapes: rings put together again as it does."""
    column = pa.chunked_array([pa.array([None if s is None else shapely.to_wkb(s) for s in shapes], pa.binary())])
    found = []
    for rings in footprint_rings(column):
        parts = [np.cumsum(np.reshape(ring, (-1, 2)), axis=0) / UNITS for ring in rings or []]
        assert all(len(part) <= MAX_CORNERS for part in parts)
        found.append(shapely.multipolygons([shapely.Polygon(part) for part in parts]) if parts else None)
    return found


def test_footprints_are_told_to_the_centimetre() -> None:
    tilted = rotate(shapely.box(11.25, 48.0, 11.251, 48.001), 7)
    dense = shapely.segmentize(tilted, 0.00005)
    two = shapely.MultiPolygon([shapely.box(11, 47, 11.5, 47.5), shapely.box(12, 47, 12.5, 47.5)])
    for shape, found in zip((tilted, tilted, two), drawn(tilted, dense, two), strict=True):
        assert found is not None
        assert found.symmetric_difference(shape).area < 1e-3 * shape.area


def test_ragged_footprints_become_their_boxes() -> None:
    angles = np.linspace(0, 2 * np.pi, 80, endpoint=False)
    star = shapely.Polygon(np.stack([np.cos(angles), np.sin(angles)], 1) * (1 + np.arange(80) % 2)[:, None])
    (found,) = drawn(star)
    assert found is not None
    assert found.bounds == pytest.approx(star.bounds)
    assert found.area == pytest.approx(shapely.box(*star.bounds).area)


def test_what_has_no_area_has_no_rings() -> None:
    assert drawn(None, shapely.Polygon(), shapely.Point(1, 2)) == [None, None, None]


def test_an_archive_across_the_antimeridian_stays_together() -> None:
    split = shapely.MultiPolygon([shapely.box(179.9, 0, 180, 0.1), shapely.box(-180, 0, -179.9, 0.1)])
    found = drawn(shapely.box(179.5, 0, 179.6, 0.1), split, shapely.box(-179.5, 0, -179.4, 0.1))
    assert [shape and shape.bounds for shape in found] == [
        pytest.approx(bounds) for bounds in ((179.5, 0, 179.6, 0.1), (179.9, 0, 180.1, 0.1), (180.5, 0, 180.6, 0.1))
    ]


def test_longitudes_stay_where_the_widest_gap_is_at_180() -> None:
    found = drawn(shapely.box(-120, 30, -119, 31), shapely.box(10, 40, 11, 41))
    assert [shape and shape.bounds for shape in found] == [(-120, 30, -119, 31), (10, 40, 11, 41)]
