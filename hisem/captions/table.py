"""The captions table: which rows it has, and how finished ones get in.

Published files lie in `OUT/captions/acquired=YYYY-MM-DD/model=V/`; readers look there alone. A file is never changed
but to replace or take out rows, and then as a whole under its own name, so that no reader sees a row twice.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from hisem import storage
from hisem.captions.geoparquet import arranged, encoded
from hisem.errors import SchemaError, StorageError
from hisem.schemas import CAPTION, conform

log = logging.getLogger(__name__)

PUBLISHED, SETTINGS = "captions", "_settings.json"
STAGING, JOB = "_staging", "job.json"
UNDATED = "__HIVE_DEFAULT_PARTITION__"
"""What Parquet readers take for a null partition."""

FILE_ROWS = 262_144
"""Rows of a published file at most."""
FILES_AT_ONCE = 16
"""Files whose keys are read at the same time: in a bucket each of them waits for some requests."""

KEYS = ["tile_id", "pair_id", "model_digest", "status", "captioned_at"]


def published_files(output: str) -> list[str]:
    """Paths of the published files, on the output's file system."""
    return storage.list_files(storage.join(output, PUBLISHED), ".parquet")


def known_rows(output: str, digest: str, pairs: Collection[str] | None = None) -> pa.Table:
    """The columns KEYS of this model's rows, of `pairs` or of all, and `file`, the path that each lies in.

    Of files without any of the pairs only the column of pair ids is read. Raises `SchemaError` naming a file of
    another schema and the columns that differ, before any use is made of the others.
    """
    fs, _ = storage.filesystem(output)
    wanted = None if pairs is None else pa.array(sorted(pairs), pa.string())
    with ThreadPoolExecutor(FILES_AT_ONCE) as threads:
        parts = list(threads.map(partial(_known_in, fs, digest, wanted), published_files(output)))
    empty = pa.schema([*(CAPTION.field(name) for name in KEYS), ("file", pa.string())]).empty_table()
    return pa.concat_tables([empty, *parts])


def _known_in(fs: pafs.FileSystem, digest: str, pairs: pa.Array | None, path: str) -> pa.Table:
    file = _open(path, fs, read_dictionary=["pair_id", "model_digest"])
    _require_schema(file.schema_arrow, path)
    columns = KEYS
    if pairs is not None:
        there = file.read(columns=["pair_id"]).column("pair_id")
        if not any(pc.any(pc.is_in(chunk.dictionary, pairs)).as_py() for chunk in there.chunks):
            columns = []
    if not columns:
        return pa.schema([*(CAPTION.field(name) for name in KEYS), ("file", pa.string())]).empty_table()
    rows = file.read(columns=columns).select(columns).cast(pa.schema([CAPTION.field(name) for name in columns]))
    rows = rows.filter(pc.equal(rows.column("model_digest"), digest))
    if pairs is not None:
        rows = rows.filter(pc.is_in(rows.column("pair_id"), pairs))
    return rows.append_column("file", pa.array([path] * len(rows), pa.string()))


def require_table(output: str) -> None:
    """Raise `SchemaError` or `StorageError` where what is published is no captions table of this version."""
    known_rows(output, "", ())


def require_settings(output: str, settings: dict[str, Any]) -> None:
    """Keep a table to one way of making pixels: its rows would hide tiles that were to be read otherwise.

    `settings` are those that are not the default; an output without rows takes them. Raises `StorageError`
    as `refuse_other_settings` does.
    """
    refuse_other_settings(output, settings)
    if _settings(output) != settings:
        storage.write_bytes(storage.join(output, SETTINGS), json.dumps(settings, indent=1).encode())


def refuse_other_settings(output: str, settings: dict[str, Any]) -> None:
    """Raise `StorageError` where the rows of an output were made with other settings."""
    known = _settings(output)
    if known != settings and (published_files(output) or storage.exists(storage.join(output, STAGING, JOB))):
        raise StorageError(
            f"{output}: its tiles were read with {known or 'the defaults'}, not {settings or 'the defaults'}. "
            "Choose another --output, or the same settings."
        )


def _settings(output: str) -> dict[str, Any]:
    path = storage.join(output, SETTINGS)
    return json.loads(storage.read_bytes(path)) if storage.exists(path) else {}


def newest(rows: pa.Table) -> pa.Table:
    """One row for each key, the one captioned last; of equal ones the first. Their order stays."""
    if not len(rows):
        return rows
    order = np.lexsort((-np.arange(len(rows)), rows.column("captioned_at").cast(pa.int64()).to_numpy()))
    keys = list(zip(rows.column("tile_id").to_pylist(), rows.column("model_digest").to_pylist(), strict=True))
    last = {keys[place]: place for place in order}
    return rows.take(pa.array(sorted(last.values()), pa.int64()))


def publish(rows: pa.Table, output: str) -> None:
    """Put rows (schema CAPTION, of one model, each key once) into the table.

    A row whose key is published replaces that one where it was captioned later, in the same file, and is left out
    where it was not: a publication that was interrupted can be repeated. New rows become files named after their
    keys, one for each acquisition date and model version up to FILE_ROWS.
    """
    rows = conform(rows, CAPTION, "captions")
    for digest in pc.unique(rows.column("model_digest")).to_pylist():
        mine = rows.filter(pc.equal(rows.column("model_digest"), digest))
        fresh = mine.take(_replace(mine, output, digest))
        for (date, version), part in _partitions(fresh):
            folder = storage.join(output, PUBLISHED, f"acquired={date}", f"model={version}")
            for start in range(0, len(part), FILE_ROWS):
                some = part.slice(start, FILE_ROWS)
                storage.write_bytes(storage.join(folder, f"{_content_name(some)}.parquet"), encoded(some))


def _replace(rows: pa.Table, output: str, digest: str) -> pa.Array:
    """Put the rows that were captioned later than known ones in their places; the places of those to be added.

    A known row whose acquisition date has changed since goes from its old file, and the new one is to be added. The
    file is the old one where the same model has another version now.
    """
    places = {tile: place for place, tile in enumerate(rows.column("tile_id").to_pylist())}
    fresh = set(places.values())
    times, dates = rows.column("captioned_at").to_pylist(), _dates(rows)
    stale: dict[str, dict[str, int | None]] = defaultdict(dict)
    for row in known_rows(output, digest, set(rows.column("pair_id").to_pylist())).to_pylist():
        place = places.get(row["tile_id"])
        if place is None:
            continue
        later = times[place] > row["captioned_at"]
        moves = later and row["file"].split("/")[-3] != f"acquired={dates[place]}"
        if later:
            stale[row["file"]][row["tile_id"]] = None if moves else place
        if not moves:
            fresh.discard(place)
    for file, tiles in sorted(stale.items()):
        instead = [place for place in tiles.values() if place is not None]
        _rewrite(output, file, digest, set(tiles), rows.take(pa.array(instead, pa.int64())))
    return pa.array(sorted(fresh), pa.int64())


def supersede(output: str, pairs: Collection[str], digest: str) -> None:
    """Take out this model's rows `<pair_id>/pair` of pairs that could not be opened once and can be now."""
    known = known_rows(output, digest, pairs)
    failed = known.filter(pc.equal(known.column("tile_id"), pc.binary_join_element_wise(known["pair_id"], "pair", "/")))
    for file in pc.unique(failed.column("file")).to_pylist():
        tiles = failed.filter(pc.equal(failed.column("file"), file)).column("tile_id").to_pylist()
        _rewrite(output, file, digest, set(tiles), CAPTION.empty_table())


def _rewrite(output: str, path: str, digest: str, gone: set[str], instead: pa.Table) -> None:
    """One file without a model's rows of the tiles `gone`, and with the rows `instead`, under its own name."""
    fs, _ = storage.filesystem(output)
    table = conform(_open(path, fs).read(), CAPTION, path)
    old = pc.and_(
        pc.is_in(table.column("tile_id"), pa.array(sorted(gone), pa.string())),
        pc.equal(table.column("model_digest"), digest),
    )
    left = pa.concat_tables([table.filter(pc.invert(old)), instead])
    uri = storage.join(output, PUBLISHED, path.rpartition(f"/{PUBLISHED}/")[2])
    if len(left):
        storage.write_bytes(uri, encoded(arranged(left)))
    else:
        storage.delete(uri)


def read_captions(output: str) -> pa.Table:
    """The whole published table, schema CAPTION."""
    fs, _ = storage.filesystem(output)
    parts = [conform(_open(path, fs).read(), CAPTION, path) for path in published_files(output)]
    return pa.concat_tables(parts) if parts else CAPTION.empty_table()


def _open(path: str, fs: pafs.FileSystem, **options: Any) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, filesystem=fs, **options)
    except (OSError, pa.ArrowInvalid) as error:
        raise StorageError(
            f"{path}: cannot be read as Parquet ({error}). Remove it or choose another --output."
        ) from error


def _dates(rows: pa.Table) -> list[str]:
    """Acquisition date of the newer scene of each row."""
    return pc.fill_null(pc.strftime(rows.column("after_time"), format="%Y-%m-%d"), UNDATED).to_pylist()


def _partitions(rows: pa.Table) -> Iterator[tuple[tuple[str, str], pa.Table]]:
    """Rows by partition, each arranged as it lies in its files."""
    places = defaultdict(list)
    for place, home in enumerate(zip(_dates(rows), rows.column("model_version").to_pylist(), strict=True)):
        places[home].append(place)
    for home in sorted(places):
        yield home, arranged(rows.take(places[home]))


def _content_name(part: pa.Table) -> str:
    """A name that depends on the keys of the rows alone."""
    whole = hashlib.sha256()
    for tile, digest in zip(part.column("tile_id").to_pylist(), part.column("model_digest").to_pylist(), strict=True):
        whole.update(f"{tile}\0{digest}\n".encode())
    return f"part-{whole.hexdigest()[:16]}"


def _require_schema(schema: pa.Schema, path: str) -> None:
    plain = {field.name: _plain(field.type) for field in schema}
    if schema.names != CAPTION.names or any(plain[field.name] != field.type for field in CAPTION):
        differ = sorted(set(schema.names) ^ set(CAPTION.names)) or [
            field.name for field in CAPTION if plain[field.name] != field.type
        ]
        raise SchemaError(
            f"{path}: not the captions table of this version (columns that differ: "
            f"{', '.join(differ) or 'none, but their order does'}). "
            "Choose another --output; nothing was changed."
        )


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type of the values that a dictionary holds, else the type."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind
