"""The catalogue: which scene pairs an archive holds, one row each, in Parquet or CSV."""

from __future__ import annotations

import io
import posixpath
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from hisem import storage
from hisem.errors import CatalogueError, SchemaError
from hisem.object_store import require_no_secret
from hisem.schemas import CATALOGUE, OPTIONAL_PAIR_FIELDS, STRINGS, TIMESTAMP, conform, require_unique

SUFFIXES = (".parquet", ".csv")
"""Of catalogues, and of tables of footprints."""

SEPARATOR = "|"
SPLITS = ("train", "val", "test")
OPTIONAL = [field.name for field in OPTIONAL_PAIR_FIELDS]
SAFE_ID = re.compile(r"[A-Za-z0-9._-]+")


def read_catalogue(uri: str) -> pa.Table:
    """Read a catalogue, `.parquet` or `.csv`, in `schemas.CATALOGUE`.

    In CSV, several rasters of one date are separated by `|`, times are ISO 8601 (UTC where they name no
    zone), and empty cells are null. Relative raster paths are taken from the catalogue's folder and
    become absolute; URIs stay. Other columns are dropped.

    Raises `CatalogueError` for another suffix, missing columns, no rows, a repeated or unsafe `pair_id`,
    a pair without rasters, a URI that holds a secret, a time that is none, or a split other than train, val
    and test; `StorageError` where the file cannot be read.
    """
    raw = read_rows(uri, CATALOGUE.names)
    folder = storage.absolute(uri).rpartition("/")[0]
    for name in CATALOGUE.names:
        if name in raw.column_names:
            raw = raw.set_column(raw.column_names.index(name), name, _parsed(raw.column(name), name, uri, folder))
    table = _conformed(raw, uri)
    if table.num_rows == 0:
        raise CatalogueError(f"{uri}: no pairs found; a catalogue needs at least one row.")
    _require_sound_rows(table, uri)
    require_unique(table, "pair_id", uri, CatalogueError)
    return table


def write_catalogue(table: pa.Table, uri: str) -> None:
    """Write a catalogue as `.parquet` or `.csv`, as `read_catalogue` reads it; raster paths stay as they are.

    Raises `CatalogueError` for another suffix, missing columns, a path that CSV cannot hold, and whatever
    `read_catalogue` would refuse in a row.
    """
    suffix = catalogue_suffix(uri)
    table = _conformed(table, uri)
    _require_sound_rows(table, uri)
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
    content = io.BytesIO()
    pacsv.write_csv(table, content)
    storage.write_bytes(uri, content.getvalue())


def catalogue_suffix(uri: str) -> str:
    """`parquet` or `csv`, whichever `uri` ends in. Raises `CatalogueError` where it ends in neither."""
    suffix = posixpath.splitext(uri)[1].lower()
    if suffix not in SUFFIXES:
        raise CatalogueError(f"{uri}: a catalogue ends in {' or '.join(SUFFIXES)}, found {suffix or 'no suffix'}.")
    return suffix[1:]


def read_rows(uri: str, columns: Sequence[str]) -> pa.Table:
    """The table in a file, in the format of its suffix, which may have `columns` as text.

    Raises `CatalogueError` where the file is of another format, `StorageError` where it cannot be read.
    """
    return _read_csv(uri, columns) if catalogue_suffix(uri) == "csv" else storage.read_parquet(uri)


def _read_csv(uri: str, columns: Sequence[str]) -> pa.Table:
    """A CSV file with `columns`, where present, as strings and empty cells as null."""
    convert = pacsv.ConvertOptions(
        column_types=dict.fromkeys(columns, pa.string()),
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=True,
    )
    try:
        return pacsv.read_csv(io.BytesIO(storage.read_bytes(uri)), convert_options=convert)
    except pa.ArrowInvalid as error:
        raise CatalogueError(f"{uri}: cannot be read as comma-separated UTF-8 text ({error}).") from error


def _parsed(column: pa.ChunkedArray, name: str, uri: str, folder: str) -> pa.ChunkedArray:
    """One column with strings parsed to what the schema holds: lists of absolute paths, times."""
    kind = CATALOGUE.field(name).type
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    if kind == STRINGS and (is_text or pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        return _mapped(column, lambda value: absolute_paths(value, folder), STRINGS)
    if kind == TIMESTAMP and is_text:
        return _mapped(column, lambda value: _parsed_time(value, name, uri), TIMESTAMP)
    return column


def _mapped(column: pa.ChunkedArray, parse: Callable[[Any], Any], kind: pa.DataType) -> pa.ChunkedArray:
    values = [None if value is None else parse(value) for value in column.to_pylist()]
    return pa.chunked_array([pa.array(values, kind)])


def absolute_paths(value: str | list[str | None], folder: str) -> list[str | None]:
    """The rasters of one cell: a list, or a string with `|` between them. Relative ones are taken from `folder`.

    Blank ones become None, for the caller to name.
    """
    parts = value.split(SEPARATOR) if isinstance(value, str) else value
    return [_absolute_path(part.strip(), folder) if part and part.strip() else None for part in parts]


def _absolute_path(path: str, folder: str) -> str:
    """`path` taken from `folder` where it is relative, without `..`; a remote URI as it is."""
    if storage.is_remote(path):
        return path
    if not path.startswith(("/", "~", "file://")):
        path = f"{folder}/{path}"
    if not storage.is_remote(path):
        return posixpath.normpath(storage.absolute(path))
    scheme, _, rest = path.partition("://")
    return f"{scheme}://{posixpath.normpath(rest)}"


def _parsed_time(text: str, name: str, uri: str) -> datetime:
    """ISO 8601 as a time with zone; UTC where the text names none."""
    try:
        time = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise CatalogueError(f"{uri}: {name} {text!r} is not an ISO 8601 time such as 2024-05-01T10:30:00Z.") from error
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _joined(column: pa.ChunkedArray, name: str, uri: str) -> pa.Array:
    """Lists of paths as one string each, for CSV."""
    lists = column.to_pylist()
    awkward = [path for paths in lists for path in paths or () if path and SEPARATOR in path]
    if awkward:
        raise CatalogueError(
            f"{uri}: {name} {awkward[0]!r} contains {SEPARATOR!r}, which CSV cannot hold; use .parquet."
        )
    return pa.array([None if paths is None else SEPARATOR.join(paths) for paths in lists], pa.string())


def _conformed(table: pa.Table, uri: str) -> pa.Table:
    try:
        return conform(table, CATALOGUE, uri, optional=OPTIONAL)
    except SchemaError as error:
        raise CatalogueError(str(error)) from error


def _require_sound_rows(table: pa.Table, uri: str) -> None:
    """Raise `CatalogueError` for an unsafe pair_id, a date without rasters, a secret, or an unknown split."""
    unsafe = [pair_id for pair_id in table.column("pair_id").to_pylist() if not SAFE_ID.fullmatch(pair_id)]
    if unsafe:
        raise CatalogueError(
            f"{uri}: {len(unsafe)} pair_id value(s) cannot be part of a tile's name: "
            f"{', '.join(map(repr, unsafe[:5]))}; only letters, digits, '.', '_' and '-' are allowed."
        )
    for name in ("before", "after", "before_mask", "after_mask"):
        for row in table.select(["pair_id", name]).to_pylist():
            for path in row[name] or ():
                require_no_secret(path or "", CatalogueError)
            # Masks may be absent; a list with a gap in it is a mistake in every column.
            if row[name] == [] and name.endswith("_mask"):
                continue
            if row[name] is not None and (not row[name] or None in row[name]):
                raise CatalogueError(f"{uri}: pair {row['pair_id']} names no raster, or an empty one, in {name}.")
    splits = pc.unique(table.column("split").drop_null()).to_pylist()
    unknown = sorted(set(splits) - set(SPLITS))
    if unknown:
        raise CatalogueError(
            f"{uri}: split {', '.join(map(repr, unknown[:5]))} is unknown; it is one of {', '.join(SPLITS)}, or empty."
        )
