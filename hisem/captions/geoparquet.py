"""How a published file lies on disk: GeoParquet 1.1, near tiles near each other, in row groups to skip."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from hisem.schemas import BOUNDS, CAPTION

ROW_GROUP_ROWS = 4096
"""Rows of a row group: some hundred kilobytes of the columns that a query reads, and a few requests to a bucket."""
CURVE_BITS = 16
"""Cells of the curve along an axis, as a power of two: 600 m at the equator."""
NOWHERE = np.iinfo(np.int64).max


def arranged(rows: pa.Table) -> pa.Table:
    """Rows of schema CAPTION with `bbox` filled from `geometry`, along a curve on which near tiles lie near.

    The order depends on the rows alone: by the Z-order of the footprints' centres, then by tile and model; tiles
    without a footprint come last.
    """
    bounds = shapely.bounds(shapely.from_wkb(rows.column("geometry").to_pylist())).reshape(-1, 4)  # NaN where null
    known = np.isfinite(bounds).all(axis=1)
    sides = [pa.array(side, pa.float64(), mask=~known) for side in bounds.T]
    boxes = pa.StructArray.from_arrays(sides, fields=list(BOUNDS), mask=pa.array(~known))
    place = rows.schema.get_field_index("bbox")
    rows = rows.set_column(place, CAPTION.field("bbox"), boxes)
    curve = np.full(len(rows), NOWHERE)
    curve[known] = _z_order((bounds[known, :2] + bounds[known, 2:]) / 2)
    order = [(name, "ascending") for name in ("curve", "tile_id", "model_digest")]
    return rows.append_column("curve", pa.array(curve)).sort_by(order).drop_columns(["curve"])


def _z_order(centres: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Places of N points (longitude, latitude in degrees) on the curve that interleaves the bits of their cells."""
    cells = (
        ((centres + np.array([180, 90])) / np.array([360, 180]) * 2**CURVE_BITS)
        .astype(np.int64)
        .clip(0, 2**CURVE_BITS - 1)
    )
    bits = np.arange(CURVE_BITS)
    return ((cells[..., None] >> bits & 1) << 2 * bits + np.arange(2)[:, None]).sum(axis=(1, 2))


def encoded(rows: pa.Table) -> bytes:
    """One Parquet file of rows as `arranged` gives them."""
    metadata = {b"geo": json.dumps(_geo(rows)).encode()}
    sink = pa.BufferOutputStream()
    pq.write_table(
        rows.replace_schema_metadata(metadata),
        sink,
        compression="zstd",
        row_group_size=ROW_GROUP_ROWS,
        write_page_index=True,
    )
    return sink.getvalue().to_pybytes()


def _geo(rows: pa.Table) -> dict[str, Any]:
    """The file's metadata by https://geoparquet.org/releases/v1.1.0; without `crs` it is longitude and latitude."""
    shapes = shapely.from_wkb([shape for shape in rows.column("geometry").to_pylist() if shape is not None])
    column: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": sorted({shape.geom_type for shape in shapes}),
        "covering": {"bbox": {field.name: ["bbox", field.name] for field in BOUNDS}},
    }
    if len(shapes):
        column["bbox"] = [float(side) for side in shapely.total_bounds(shapes)]
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
