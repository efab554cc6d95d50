"""The captions table: what is in it, and how finished rows get there.

Rows are staged as Parquet files under `OUT/_staging/`, then published into
`OUT/captions/acquired=YYYY-MM-DD/model=V/` under names made from their content, so that publishing the
same rows twice changes nothing. Readers look at `OUT/captions/` alone and never see a staged row.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from hisem import storage
from hisem.errors import SchemaError, StorageError
from hisem.schemas import CAPTION, conform

log = logging.getLogger(__name__)

PUBLISHED, STAGING, SETTINGS = "captions", "_staging", "_settings.json"
UNDATED = "unknown"


def published_files(output: str) -> list[str]:
    """Paths of the published files, on the output's file system."""
    return storage.list_files(storage.join(output, PUBLISHED), ".parquet")


def captioned_tiles(output: str, model_digest: str) -> set[str]:
    """Tiles this model has a row for, whatever the status; refuses an output of another schema.

    Raises `SchemaError` naming the file and the columns that differ.
    """
    fs, _ = storage.filesystem(output)
    done: set[str] = set()
    for path in published_files(output):
        file = _open(path, fs)
        _require_schema(file.schema_arrow, path)
        keys = file.read(columns=["tile_id", "model_digest"])
        done |= set(keys.filter(pc.equal(keys.column("model_digest"), model_digest)).column("tile_id").to_pylist())
    return done


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
    if known != settings and (published_files(output) or _staged_files(output)):
        raise StorageError(
            f"{output}: its tiles were read with {known or 'the defaults'}, not {settings or 'the defaults'}. "
            "Choose another --output, or the same settings."
        )


def _settings(output: str) -> dict[str, Any]:
    path = storage.join(output, SETTINGS)
    return json.loads(storage.read_bytes(path)) if storage.exists(path) else {}


def stage(table: pa.Table, output: str, name: str) -> None:
    """Put rows (schema CAPTION) aside under a name of this run."""
    storage.write_parquet(conform(table, CAPTION, "captions"), storage.join(output, STAGING, f"{name}.parquet"))


def publish(output: str) -> int:
    """Publish what is staged, also by killed runs, one file per acquisition date and model; clear the staging.

    A row whose key is published already is left out, so a publication that was interrupted can be
    repeated; of rows that were staged twice the first one counts. Returns the number of rows added.
    """
    staged = _staged_files(output)
    if not staged:
        return 0
    fs, _ = storage.filesystem(output)
    table = pa.concat_tables([conform(_open(path, fs).read(), CAPTION, path) for path in staged])
    added = 0
    for digest in pc.unique(table.column("model_digest")).to_pylist():
        known = captioned_tiles(output, digest)
        rows = _new(table.filter(pc.equal(table.column("model_digest"), digest)), known)
        for (date, version), part in _partitions(rows):
            folder = storage.join(output, PUBLISHED, f"acquired={date}", f"model={version}")
            storage.write_parquet(part, storage.join(folder, f"{_content_name(part)}.parquet"))
            added += len(part)
    for path in staged:  # and no other: a run beside this one may have staged more meanwhile
        storage.delete(storage.join(output, STAGING, path.rpartition("/")[2]))
    return added


def supersede(output: str, pair_ids: set[str], digest: str) -> None:
    """Take out this model's rows `<pair_id>/pair` of pairs that could not be opened once and can be now."""
    stale = {f"{pair}/pair" for pair in pair_ids} & captioned_tiles(output, digest)
    if not stale:
        return
    gone = pa.array(sorted(stale), pa.string())
    fs, _ = storage.filesystem(output)
    for path in published_files(output):
        table = conform(_open(path, fs).read(), CAPTION, path)
        old = pc.and_(pc.is_in(table.column("tile_id"), gone), pc.equal(table.column("model_digest"), digest))
        if not pc.any(old).as_py():
            continue
        uri = storage.join(output, PUBLISHED, path.rpartition(f"/{PUBLISHED}/")[2])
        if pc.all(old).as_py():
            storage.delete(uri)
        else:
            storage.write_parquet(table.filter(pc.invert(old)), uri)


def read_captions(output: str) -> pa.Table:
    """The whole published table, schema CAPTION."""
    fs, _ = storage.filesystem(output)
    parts = [conform(_open(path, fs).read(), CAPTION, path) for path in published_files(output)]
    return pa.concat_tables(parts) if parts else CAPTION.empty_table()


def _staged_files(output: str) -> list[str]:
    return storage.list_files(storage.join(output, STAGING), ".parquet")


def _open(path: str, fs: pafs.FileSystem) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, filesystem=fs)
    except (OSError, pa.ArrowInvalid) as error:
        raise StorageError(
            f"{path}: cannot be read as Parquet ({error}). Remove it or choose another --output."
        ) from error


def _new(rows: pa.Table, known: set[str]) -> pa.Table:
    """The first row of each tile that is not in `known`."""
    seen, kept = set(known), []
    for place, tile in enumerate(rows.column("tile_id").to_pylist()):
        if tile not in seen:
            seen.add(tile)
            kept.append(place)
    return rows.take(pa.array(kept, pa.int64()))


def _partitions(rows: pa.Table) -> Iterator[tuple[tuple[str, str], pa.Table]]:
    """Rows by acquisition date of the newer scene and model version, each sorted by tile."""
    dates = pc.fill_null(pc.strftime(rows.column("after_time"), format="%Y-%m-%d"), UNDATED)
    places = defaultdict(list)
    for place, key in enumerate(zip(dates.to_pylist(), rows.column("model_version").to_pylist(), strict=True)):
        places[key].append(place)
    for key in sorted(places):
        yield key, rows.take(places[key]).sort_by("tile_id")


def _content_name(part: pa.Table) -> str:
    """A name that depends on the keys of the rows alone."""
    whole = hashlib.sha256()
    for tile, digest in zip(part.column("tile_id").to_pylist(), part.column("model_digest").to_pylist(), strict=True):
        whole.update(f"{tile}\0{digest}\n".encode())
    return f"part-{whole.hexdigest()[:16]}"


def _require_schema(schema: pa.Schema, path: str) -> None:
    if schema.names != CAPTION.names or any(schema.field(f.name).type != f.type for f in CAPTION):
        differ = sorted(set(schema.names) ^ set(CAPTION.names)) or [
            f.name for f in CAPTION if schema.field(f.name).type != f.type
        ]
        raise SchemaError(
            f"{path}: not the captions table of this version (columns that differ: "
            f"{', '.join(differ) or 'none, but their order does'}). "
            "Choose another --output; nothing was changed."
        )
