"""The catalogue: which scene pairs an archive holds, one row each, in Parquet or CSV."""

from __future__ import annotations

import hashlib
import logging
import posixpath
import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from hisem import storage
from hisem.archive.addresses import path_defect
from hisem.archive.rows import Rows, csv_bytes, is_text, read_rows, shown, table_suffix
from hisem.errors import CatalogueError, SchemaError, StorageError
from hisem.schemas import CATALOGUE, OPTIONAL_PAIR_FIELDS, STRINGS, TIMESTAMP, conform, require_unique

SEPARATOR = "|"
SPLITS = ("train", "val", "test")
OPTIONAL = [field.name for field in OPTIONAL_PAIR_FIELDS]
SAFE_ID = re.compile(r"[A-Za-z0-9._-]+")
LONGEST_ID = 1024
"""Characters of a pair_id at most: it is in the name of each of its tiles."""

REJECTED = "error"
"""Column of a catalogue that has been read, where rows of it cannot be used: why, or null."""

NULLABLE = pa.schema([field.with_nullable(True) for field in CATALOGUE])

log = logging.getLogger(__name__)


def read_catalogue(uri: str) -> pa.Table:
    """Read a catalogue, `.parquet` or `.csv`, in `schemas.CATALOGUE`.

    In CSV, several rasters of one date are separated by `|`, times are ISO 8601 (UTC where they name no
    zone), and empty cells are null. Relative raster paths are taken from the catalogue's folder and
    become absolute; URIs stay. Other columns are dropped.

    A row that cannot be used stays, with what of it can, and the table then has the column `REJECTED` that gives the
    reason: the pair fails, and the others do not. Its number and reason are logged. A pair_id that cannot be part of
    a tile's name is replaced by one that can.

    Raises `CatalogueError` for another suffix, missing or doubled columns, columns of a wrong type, no rows, a repeated
    `pair_id`, and where no row can be used; `StorageError` where the file cannot be read.
    """
    rows = read_rows(uri, CATALOGUE.names)
    folder = storage.absolute(uri).rpartition("/")[0]
    raw = rows.table
    for name in CATALOGUE.names:
        if name in raw.column_names:
            raw = raw.set_column(raw.column_names.index(name), name, _parsed(rows, name, folder))
    pairs = _conformed(raw, uri, NULLABLE).to_pylist()
    if not pairs:
        raise CatalogueError(f"{uri}: no pairs found; a catalogue needs at least one row.")
    for number, pair in enumerate(pairs):
        if reason := defect(pair):
            rows.reject(number, reason)
    if rows.rejected:
        pairs = _with_rejected(pairs, rows.rejected, uri)
    table = pa.Table.from_pylist(pairs, schema=CATALOGUE)
    if rows.rejected:
        table = table.append_column(REJECTED, pa.array([pair.get(REJECTED) for pair in pairs], pa.string()))
    require_unique(table, "pair_id", uri, CatalogueError)
    return table


def write_catalogue(table: pa.Table, uri: str) -> None:
    """Write a catalogue as `.parquet` or `.csv`, as `read_catalogue` reads it; raster paths stay as they are.

    Raises `CatalogueError` for another suffix, missing columns, a path that CSV cannot hold, and whatever
    `read_catalogue` would refuse in a row.
    """
    suffix = table_suffix(uri)
    table = _conformed(table, uri, CATALOGUE)
    for number, pair in enumerate(table.to_pylist()):
        if reason := defect(pair):
            raise CatalogueError(f"{uri}: row {number}: {reason}.")
    if suffix == "parquet":
        storage.write_parquet(table, uri)
        return
    for field in CATALOGUE:
        number = table.column_names.index(field.name)
        if field.type == STRINGS:
            table = table.set_column(number, field.name, _joined(table.column(field.name), field.name, uri))
        elif field.type == TIMESTAMP:
            texts = [time and time.isoformat() for time in table.column(field.name).to_pylist()]
            table = table.set_column(number, field.name, pa.array(texts, pa.string()))
    storage.write_bytes(uri, csv_bytes(table))


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _parsed(rows: Rows, name: str, folder: str) -> pa.ChunkedArray | pa.Array:
    """One column with strings parsed to what the schema holds: lists of absolute paths, times."""
    kind = CATALOGUE.field(name).type
    column = rows.table.column(name)
    listed = column.type.value_type if _is_list(column.type) else pa.null()
    listed = listed.value_type if pa.types.is_dictionary(listed) else listed
    if kind == STRINGS and (is_text(column.type) or is_text(listed)):
        return rows.mapped(name, lambda value: absolute_paths(value, folder), STRINGS)
    return rows.times(name) if kind == TIMESTAMP else column


def absolute_paths(value: str | list[str | None], folder: str) -> list[str | None]:
    """The rasters of one cell: a list, or a string with `|` between them. Relative ones are taken from `folder`.

    Blank ones become None, for the caller to name. Raises `ValueError` for a `file:` URI that names no local path.
    """
    parts = value.split(SEPARATOR) if isinstance(value, str) else value
    try:
        return [_absolute_path(part.strip(), folder) if part and part.strip() else None for part in parts]
    except StorageError as error:
        raise ValueError(str(error).rstrip(".")) from error


def _absolute_path(path: str, folder: str) -> str:
    """`path` taken from `folder` where it is relative, without `..`; a remote URI as it is."""
    if storage.is_remote(path):
        return path
    if not path.startswith(("/", "~", "file:")):
        path = f"{folder}/{path}"
    if not storage.is_remote(path):
        return posixpath.normpath(storage.absolute(path))
    scheme, _, rest = path.partition("://")
    return f"{scheme}://{posixpath.normpath(rest)}"


def _joined(column: pa.ChunkedArray, name: str, uri: str) -> pa.Array:
    """Lists of paths as one string each, for CSV."""
    lists = column.to_pylist()
    awkward = [path for paths in lists for path in paths or () if path and SEPARATOR in path]
    if awkward:
        raise CatalogueError(
            f"{uri}: {name} {awkward[0]!r} contains {SEPARATOR!r}, which CSV cannot hold; use .parquet."
        )
    return pa.array([None if paths is None else SEPARATOR.join(paths) for paths in lists], pa.string())


def _conformed(table: pa.Table, uri: str, schema: pa.Schema) -> pa.Table:
    try:
        return conform(table, schema, uri, optional=OPTIONAL)
    except SchemaError as error:
        raise CatalogueError(str(error)) from error


def defect(pair: Mapping[str, Any]) -> str | None:
    """Why a row cannot be used, None where it can: its pair_id, a date without rasters, paths, split and times."""
    pair_id = pair["pair_id"]
    if pair_id is None:
        return "pair_id is null"
    if not SAFE_ID.fullmatch(pair_id) or len(pair_id) > LONGEST_ID:
        return (
            f"pair_id {shown(pair_id)} cannot be part of a tile's name; only letters, digits, '.', '_' and '-' are "
            f"allowed, {LONGEST_ID} of them at most"
        )
    for name in ("before", "after", "before_mask", "after_mask"):
        paths = pair[name]
        if not paths and name.endswith("_mask"):
            continue
        if not paths or None in paths:  # a list with a gap in it is a mistake in every column
            return f"pair {pair_id} names no raster, or an empty one, in {name}"
        if wrong := next(filter(None, map(path_defect, paths)), None):
            return f"{name}: {wrong}"
    if pair["split"] is not None and pair["split"] not in SPLITS:
        return f"split {shown(pair['split'])} is unknown; it is one of {', '.join(SPLITS)}, or empty"
    before, after = pair["before_time"], pair["after_time"]
    if before and after and before > after:
        return f"before_time {before.isoformat()} is later than after_time {after.isoformat()}; exchange the dates"
    return None


def _with_rejected(pairs: list[dict[str, Any]], rejected: Mapping[int, str], uri: str) -> list[dict[str, Any]]:
    """`pairs` with `REJECTED` of those rows, and without what cannot be used of them; logs how many they are.

    Raises `CatalogueError` where all are rejected.
    """
    first = min(rejected)
    if len(rejected) == len(pairs):
        raise CatalogueError(f"{uri}: none of its {len(pairs)} row(s) can be used; row {first}: {rejected[first]}.")
    log.warning(
        "%s: %d of %d row(s) cannot be used, and become failed pairs; row %d: %s",
        *(uri, len(rejected), len(pairs), first, rejected[first]),
    )
    pairs = list(pairs)
    for number, reason in rejected.items():
        pair = dict(pairs[number])
        for name in ("before", "after", "before_mask", "after_mask"):
            pair[name] = [path for path in pair[name] or () if path and not path_defect(path)]
        pair["split"] = pair["split"] if pair["split"] in SPLITS else None
        pairs[number] = pair | {
            "pair_id": _safe_id(pair["pair_id"], number),
            REJECTED: f"{uri}: row {number}: {reason}.",
        }
    return pairs


def _safe_id(pair_id: str | None, number: int) -> str:
    """A name for the failed row of a pair whose own cannot be used; the same in every run."""
    if pair_id is None:
        return f"no-id-row-{number}"
    if SAFE_ID.fullmatch(pair_id) and len(pair_id) <= LONGEST_ID:
        return pair_id
    digest = hashlib.sha256(pair_id.encode("utf-8", "backslashreplace")).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', pair_id)[:40]}__{digest}"
