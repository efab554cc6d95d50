"""A table of footprints and times as acquisitions, for archives that have no STAC items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import shapely

from hisem import storage
from hisem.archive.acquisitions import (
    Acquisition,
    LeftOut,
    Reading,
    Reason,
    Unusable,
    acquisition_or_reason,
    checked_cloud_cover,
    checked_footprint,
    checked_id,
    checked_raster,
    checked_time,
    collected,
)
from hisem.archive.catalogue import absolute_paths
from hisem.archive.geometries import parsed
from hisem.archive.rows import Rows, is_text, read_rows
from hisem.errors import AcquisitionsError

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
    rows = read_rows(uri, [*REQUIRED, *OPTIONAL])
    names = rows.table.column_names
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise AcquisitionsError(f"{uri}: missing column(s) {', '.join(missing)}; found {', '.join(names) or 'none'}.")
    timed = Rows(rows.table, {})
    if not is_text(rows.table.column("time").type):  # which `checked_time` reads
        rows = Rows(rows.table.set_column(names.index("time"), "time", timed.times("time")), rows.rejected)
    columns = {name: rows.values(name) for name in (*REQUIRED, *OPTIONAL) if name in names}
    folder = uri.rpartition("/")[0]
    found = []
    for number in range(rows.table.num_rows):
        row = {name: values[number] for name, values in columns.items()}
        rejected = [(Reason.UNREADABLE, rows.rejected.get(number)), (Reason.NO_DATETIME, timed.rejected.get(number))]
        found.append(_acquisition(row, number, uri, folder, rejected))
    return collected(found)


def _acquisition(
    row: Mapping[str, Any], number: int, uri: str, folder: str, rejected: Sequence[tuple[Reason, str | None]]
) -> Acquisition | LeftOut:
    """One row as an acquisition, or why it is none, which `rejected` may say already."""
    names = {name: _name(row.get(name)) for name in ("id", "collection")}

    def acquisition() -> Acquisition:
        for reason, detail in rejected:
            if detail is not None:
                raise Unusable(reason, f"row {number}: {detail}")
        if names["id"] is None:
            raise Unusable(Reason.NOT_AN_ITEM, f"row {number} has no id")
        return Acquisition(
            id=checked_id(names["id"]),
            collection=names["collection"] and checked_id(names["collection"]),
            time=checked_time(row["time"]),
            footprint=checked_footprint(_geometry(row["geometry"])),
            rasters=_paths(row["rasters"], "rasters", folder),
            masks=_paths(row["mask"], "mask", folder) if row.get("mask") else (),
            cloud_cover=checked_cloud_cover(row.get("cloud_cover")),
            where=uri,
        )

    return acquisition_or_reason(acquisition, names["id"], names["collection"], uri)


def _name(value: Any) -> str | None:
    """Text or a whole number as a name; None for anything else."""
    return str(value) if value not in (None, "") and type(value) in (str, int) else None


def _geometry(value: Any) -> shapely.Geometry | None:
    """WKB or WKT as a geometry. Raises `Unusable` where it is neither."""
    try:
        return parsed(value if isinstance(value, (bytes, str)) else str(value) if value is not None else None)
    except ValueError as error:
        raise Unusable(Reason.NO_GEOMETRY, f"its geometry is neither WKB nor WKT: {error}") from error


def _paths(value: Any, name: str, folder: str) -> tuple[str, ...]:
    """Rasters of one cell. Raises `Unusable` where it names none."""
    is_text = isinstance(value, str) or (
        isinstance(value, list) and all(isinstance(path, str | None) for path in value)
    )
    try:
        paths = absolute_paths(value, folder) if is_text else []
    except ValueError as error:
        raise Unusable(Reason.NO_ASSET, str(error)) from error
    known = tuple(path for path in paths if path)
    if not known or len(known) < len(paths):
        raise Unusable(Reason.NO_ASSET, f"column {name} names no raster, or an empty one")
    return tuple(map(checked_raster, known))
