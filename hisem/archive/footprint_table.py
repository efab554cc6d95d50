"""A table of footprints and times as acquisitions, for archives that have no STAC items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import shapely

from hisem import storage
from hisem.archive.acquisitions import (
    Acquisition,
    LeftOut,
    Reading,
    Reason,
    Unusable,
    checked_cloud_cover,
    checked_footprint,
    checked_raster,
    checked_time,
    collected,
)
from hisem.archive.catalogue import absolute_paths, read_rows
from hisem.archive.geometries import parsed
from hisem.errors import AcquisitionsError
from hisem.schemas import TIMESTAMP

REQUIRED = ("id", "time", "geometry", "rasters")
OPTIONAL = ("collection", "cloud_cover", "mask")


def read_footprints(uri: str) -> Reading:
    """The acquisitions in a table, `.parquet` or `.csv`, one a row.

    Columns: `id`; `time` (timestamp or ISO 8601, UTC where it names no zone); `geometry` (WKB or WKT, EPSG:4326);
    `rasters` (list, or separated by `|`; relative ones are taken from the table's folder); and, where they
    are known, `collection`, `cloud_cover` (percent) and `mask` (as `rasters`). Others are ignored. Rows that
    cannot be used become `unusable`.

    Raises `AcquisitionsError` for missing columns, `StorageError` or `CatalogueError` where the file cannot
    be read.
    """
    uri = storage.absolute(uri)
    table = read_rows(uri, [*REQUIRED, *OPTIONAL])
    missing = [name for name in REQUIRED if name not in table.column_names]
    if missing:
        raise AcquisitionsError(
            f"{uri}: missing column(s) {', '.join(missing)}; found {', '.join(table.column_names) or 'none'}."
        )
    table = table.select([name for name in (*REQUIRED, *OPTIONAL) if name in table.column_names])
    kind = table.schema.field("time").type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        times = table.column("time").cast(TIMESTAMP, safe=False)  # nanoseconds are cut
        table = table.set_column(table.column_names.index("time"), "time", times)
    folder = uri.rpartition("/")[0]
    return collected(_acquisition(row, number, uri, folder) for number, row in enumerate(table.to_pylist()))


def _acquisition(row: Mapping[str, Any], number: int, uri: str, folder: str) -> Acquisition | LeftOut:
    """One row as an acquisition, or why it is none."""
    names = {name: str(row[name]) if row.get(name) not in (None, "") else None for name in ("id", "collection")}
    try:
        if names["id"] is None:
            raise Unusable(Reason.NOT_AN_ITEM, f"row {number} has no id")
        return Acquisition(
            id=names["id"],
            collection=names["collection"],
            time=checked_time(row["time"]),
            footprint=checked_footprint(_geometry(row["geometry"])),
            rasters=_paths(row["rasters"], "rasters", folder),
            masks=_paths(row["mask"], "mask", folder) if row.get("mask") else (),
            cloud_cover=checked_cloud_cover(row.get("cloud_cover")),
            where=uri,
        )
    except Unusable as error:
        return LeftOut(**names, where=uri, reason=error.reason, detail=error.detail)


def _geometry(value: Any) -> shapely.Geometry | None:
    """WKB or WKT as a geometry. Raises `Unusable` where it is neither."""
    try:
        return parsed(value if isinstance(value, (bytes, str)) else str(value) if value is not None else None)
    except ValueError as error:
        raise Unusable(Reason.NO_GEOMETRY, f"its geometry is neither WKB nor WKT: {error}") from error


def _paths(value: Any, name: str, folder: str) -> tuple[str, ...]:
    """Rasters of one cell. Raises `Unusable` where it names none."""
    paths = absolute_paths(value, folder) if isinstance(value, (str, list)) else []
    known = tuple(path for path in paths if path)
    if not known or len(known) < len(paths):
        raise Unusable(Reason.NO_ASSET, f"column {name} names no raster, or an empty one")
    return tuple(map(checked_raster, known))
