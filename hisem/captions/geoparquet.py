"""How published rows lie in a file: GeoParquet 1.1, in an order by which a filter on a box or an area reads little.

Footprints are WKB in longitude and latitude (the format's default, OGC:CRS84). One that crosses the
antimeridian consists of parts on both sides of it; its box then reaches around the Earth, so that no
reader misses it.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely

from hisem.errors import SchemaError
from hisem.schemas import BOUNDS, CAPTION

ROW_GROUP_ROWS = 4096
"""Rows that a reader takes or skips together. Of 64,000 captions (21 MB) an area with 800 of them reads 3.5 MB, with
8,192 rows 5.4 MB, with 2,048 rows 2.0 MB; but the footer, which every reader of a file reads, doubles to 174 kB."""

CURVE_BITS = 16
"""Of each axis: a cell of the curve is 0.0055 degrees wide and half as high."""

HALF_EARTH = 180.0
"""Degrees; a wider box is that of a footprint on both sides of the antimeridian."""

Floats = npt.NDArray[np.float64]
Geometries = npt.NDArray[np.object_]


def arranged(rows: pa.Table) -> pa.Table:
    """The same rows (schema CAPTION) with `bbox`, in an order that depends on nothing but themselves.

    They follow a Z-order curve through the centres of their boxes. Behind them come those whose box reaches
    around the Earth, which would spoil the row groups of others, then those without footprint; what ties is
    ordered by key. Raises `SchemaError` naming a tile whose `geometry` is not WKB.
    """
    bounds = shapely.bounds(_geometries(rows))
    placed = np.isfinite(bounds).all(axis=1)
    wide = placed & (bounds[:, 2] - bounds[:, 0] > HALF_EARTH)
    boxes = pa.StructArray.from_arrays(
        [pa.array(side, pa.float64()) for side in bounds.T], fields=list(BOUNDS), mask=pa.array(~placed)
    )
    keys = pa.table(
        {
            "group": pa.array(np.where(placed, wide, 2), pa.int8()),
            "curve": pa.array(_curve(bounds)),
            "tile_id": rows.column("tile_id"),
            "model_digest": rows.column("model_digest"),
        }
    )
    order = pc.sort_indices(keys, sort_keys=[(name, "ascending") for name in keys.column_names])
    return rows.set_column(CAPTION.get_field_index("bbox"), CAPTION.field("bbox"), boxes).take(order)


def encoded(rows: pa.Table) -> bytes:
    """A GeoParquet file of rows that were `arranged`; the same rows give the same bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        rows.combine_chunks().replace_schema_metadata({"geo": json.dumps(_geo(rows))}),
        sink,
        row_group_size=ROW_GROUP_ROWS,
        compression="zstd",
        write_page_index=True,
    )
    return sink.getvalue().to_pybytes()


def _geometries(rows: pa.Table) -> Geometries:
    """Footprints, None where there are none."""
    wkb = rows.column("geometry").to_numpy()
    geometries = shapely.from_wkb(wkb, on_invalid="ignore")
    broken = np.flatnonzero(shapely.is_missing(geometries) & pc.is_valid(rows.column("geometry")).to_numpy())
    if len(broken):
        raise SchemaError(
            f"captions: geometry of {rows.column('tile_id')[int(broken[0])]} is not WKB (so in {len(broken)} row(s))."
        )
    return geometries


def _curve(bounds: Floats) -> npt.NDArray[np.uint32]:
    """Where the centre of each box lies on the Z-order curve over the Earth; 0 for a box that is NaN."""
    west, south, east, north = np.nan_to_num(bounds).T
    cells = 1 << CURVE_BITS
    place = np.zeros(len(bounds), np.uint32)
    for axis, fraction in enumerate([((west + east) / 2 + 180) / 360, ((south + north) / 2 + 90) / 180]):
        cell = np.clip(fraction * cells, 0, cells - 1).astype(np.uint32)
        for bit in range(CURVE_BITS):
            place |= ((cell >> bit) & 1) << (2 * bit + axis)
    return place


def _geo(rows: pa.Table) -> dict[str, Any]:
    """The `geo` metadata. A file without footprints claims neither types nor a box, but has the covering.

    Readers of a folder take the metadata of its first file for all.
    """
    geometries = _geometries(rows)
    geometries = geometries[~shapely.is_missing(geometries)]
    _, one_of_each = np.unique(shapely.get_type_id(geometries), return_index=True)
    column: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": [geometry.geom_type for geometry in geometries[one_of_each]],
        "covering": {"bbox": {side.name: ["bbox", side.name] for side in BOUNDS}},
    }
    boxes = rows.column("bbox").combine_chunks()
    if boxes.null_count < len(boxes):
        sides = zip((pc.min, pc.min, pc.max, pc.max), boxes.flatten(), strict=True)
        column["bbox"] = [outermost(side).as_py() for outermost, side in sides]
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
