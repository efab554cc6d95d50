"""Footprints for the morning page: rings of whole numbers that are short to write and quick to draw."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import shapely

UNITS = 1e7
"""Whole numbers to a degree: a centimetre or so."""
STRAIGHT = 0.01
"""Share of a footprint's extent by which its outline may be off."""
MAX_CORNERS = 12
"""Corners of a part beyond which its bounding box stands for it."""

Rings = list[list[int]]


def footprint_rings(column: pa.ChunkedArray) -> list[Rings | None]:
    """The outer rings of footprints (WKB in degrees): x, y, then each corner less the one before, in `UNITS`.

    None stands for a footprint that is null, or no polygon. Longitudes are east of one meridian and may exceed 180: it
    lies in the widest gap between the footprints, so that an archive across the antimeridian stays together.
    """
    shapes = shapely.from_wkb(column.to_numpy())
    parts, owners = shapely.get_parts(shapes, return_index=True)
    bounds = shapely.bounds(parts)  # NaN where empty
    solid = (shapely.get_type_id(parts) == shapely.GeometryType.POLYGON) & np.isfinite(bounds).all(axis=1)
    parts, owners, bounds = parts[solid], owners[solid], bounds[solid]
    parts = _plain(parts, bounds)
    shifts = np.where(bounds[:, 0] < _seam(bounds), 360.0, 0.0)
    found: list[Rings | None] = [None] * len(shapes)
    for owner, part, shift in zip(owners.tolist(), parts, shifts, strict=True):
        corners = shapely.get_coordinates(shapely.get_exterior_ring(part))[:-1]
        whole = np.rint(np.add(corners, (shift, 0)) * UNITS).astype(np.int64)
        steps = np.diff(whole, axis=0, prepend=0).ravel().tolist()
        found[owner] = [*(found[owner] or []), steps]
    return found


def _plain(parts: npt.NDArray[np.object_], bounds: npt.NDArray[np.float64]) -> npt.NDArray[np.object_]:
    """Polygons with few corners."""
    extents = np.maximum(bounds[:, 2] - bounds[:, 0], bounds[:, 3] - bounds[:, 1])
    plain = shapely.simplify(parts, STRAIGHT * extents)
    crooked = (shapely.get_num_coordinates(shapely.get_exterior_ring(plain)) > MAX_CORNERS + 1) | shapely.is_empty(
        plain
    )
    return np.where(crooked, shapely.envelope(parts), plain)


def _seam(bounds: npt.NDArray[np.float64]) -> float:
    """The longitude west of which 360 is added: -180, or the end of a wider gap than that around +-180."""
    if not len(bounds):
        return -180.0
    places = bounds[np.argsort(bounds[:, 0], kind="stable")]
    reached = np.maximum.accumulate(places[:, 2])
    gaps = places[1:, 0] - reached[:-1]
    around = places[0, 0] + 360 - reached[-1]
    if not len(gaps) or gaps.max() <= around:
        return -180.0
    return float(places[1 + gaps.argmax(), 0])
