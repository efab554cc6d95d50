"""The captions table: which rows it has, and how finished ones get in.

Published files lie in `OUT/captions/acquired=YYYY-MM-DD/model=V/`; readers look there alone. A file is never changed
but to replace or take out rows, and then as a whole under its own name, so that no reader sees a row twice.

Every change is a conditional write through the lock. A new file is named after the run that makes the rows and numbered
in its partition: a run that takes another one over publishes the same rows first, and so takes the names that the other
one could still write.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from hisem import storage
from hisem.captions.geoparquet import arranged, encoded
from hisem.captions.lock import ATTEMPTS, Lock, held
from hisem.captions.parquet import open_file, readable, require_valid
from hisem.errors import ConflictError, SchemaError
from hisem.schemas import CAPTION, conform

log = logging.getLogger(__name__)

Places = npt.NDArray[np.int64]
"""Numbers of rows in a table."""

PUBLISHED = "captions"
UNDATED = "0000-00-00"
"""In place of a date that is not known. It sorts before all dates, and no reader takes it for one. Hive has a name for
nulls, but pandas cannot read a column with it beside dates, nor one that is null everywhere."""

FILE_ROWS = 262_144
"""Rows of a published file at most."""
FILES_AT_ONCE = 16
"""Files whose keys are read at the same time: in a bucket each of them waits for some requests."""

DAMAGED = "Put a whole copy in its place, or remove it: its tiles are then captioned again."
"""What to do with a published file that cannot be read."""

KNOWN = ["tile_id", "pair_id", "before_time", "after_time", "status", "error", "captioned_at"]
NOTHING = pa.schema([CAPTION.field(name) for name in KNOWN]).empty_table()


def published_files(output: str) -> list[str]:
    """Paths of the published files, on the output's file system."""
    return storage.list_files(storage.join(output, PUBLISHED), ".parquet")


def known_rows(output: str, digest: str, pairs: Collection[str] | None = None) -> pa.Table:
    """The columns KNOWN of this model's rows, of `pairs` or of all.

    Of files without any of the pairs only the column of pair ids is read. Raises `SchemaError` naming a file of
    another schema and the columns that differ, before any use is made of the others.
    """
    wanted = None if pairs is None else pa.array(sorted(pairs), pa.string())
    return pa.concat_tables([NOTHING, *_known(output, digest, wanted).values()])


def _known(output: str, digest: str, pairs: pa.Array | None) -> dict[str, pa.Table]:
    """As `known_rows`, by file."""
    fs, _ = storage.filesystem(output)
    files = published_files(output)
    with ThreadPoolExecutor(FILES_AT_ONCE) as threads:
        parts = list(threads.map(partial(_known_in, fs, digest, pairs), files))
    return dict(zip(files, parts, strict=True))


def _known_in(fs: pafs.FileSystem, digest: str, pairs: pa.Array | None, path: str) -> pa.Table:
    with readable(path, DAMAGED):
        file = open_file(path, fs, read_dictionary=["pair_id", "model_digest"])
    _require_schema(file.schema_arrow, path)
    with readable(path, DAMAGED):
        if pairs is not None:
            there = require_valid(file.read(columns=["pair_id"])).column("pair_id")
            if not any(pc.any(pc.is_in(chunk.dictionary, pairs)).as_py() for chunk in there.chunks):
                return NOTHING
        rows = require_valid(file.read(columns=[*KNOWN, "model_digest"]))
        wanted = pc.equal(rows.column("model_digest"), digest)
        if pairs is not None:
            wanted = pc.and_(wanted, pc.is_in(rows.column("pair_id"), pairs))
        return rows.select(KNOWN).filter(wanted).cast(NOTHING.schema)


def require_table(output: str) -> None:
    """Raise `SchemaError` or `StorageError` where what is published is no captions table of this version."""
    known_rows(output, "", ())


def newest(rows: pa.Table) -> pa.Table:
    """One row for each key, the one captioned last; of equal ones the first. Their order stays."""
    keys = _numbered(rows.select(["tile_id", "model_digest"]))
    count = keys.max(initial=-1) + 1
    if count == len(rows):
        return rows  # and not a copy, as they may be many
    times = rows.column("captioned_at").cast(pa.int64()).to_numpy()
    last = np.empty(count, np.int64)
    order = np.lexsort((-np.arange(len(rows)), times))
    last[keys[order]] = order  # of those with one number the last counts
    return rows.take(np.sort(last))


def _numbered(columns: pa.Table) -> npt.NDArray[np.int64]:
    """A number for each row, the same for rows that are the same, from 0 without a gap."""
    numbers = np.zeros(len(columns), np.int64)
    for column in columns.columns:
        coded = column.combine_chunks().dictionary_encode()
        numbers = numbers * len(coded.dictionary) + coded.indices.to_numpy(zero_copy_only=False)
    return np.unique(numbers, return_inverse=True)[1]


def publish(rows: pa.Table, output: str, run: str | None = None, lock: Lock | None = None) -> None:
    """Put rows (schema CAPTION, of one model, each key once) into the table.

    A row whose key is published replaces that one where it was captioned later, in the same file, and is left out
    where it was not: a publication that was interrupted can be repeated. New rows become files named after `run`
    (default: after their keys), one for each acquisition date and model version up to FILE_ROWS.
    """
    rows = conform(rows, CAPTION, "captions")
    if not len(rows):
        return
    with held(output, "publishing of captions", lock) as lock:
        digests = pc.unique(rows.column("model_digest")).to_pylist()
        for digest in digests:
            mine = rows if len(digests) == 1 else rows.filter(pc.equal(rows.column("model_digest"), digest))
            repeatedly(partial(_publish, mine, lock, digest, run or _content_name(rows)))


def repeatedly(act: Callable[[], None]) -> None:
    """Plan and write, again where a file changed in between: a run that was taken over may have one write left."""
    for attempt in range(ATTEMPTS):
        try:
            return act()
        except ConflictError:
            if attempt == ATTEMPTS - 1:
                raise
    return None


def _publish(rows: pa.Table, lock: Lock, digest: str, run: str) -> None:
    names = published_files(lock.folder)
    fresh = _replace(rows, lock, digest)
    for (date, version), places in _partitions(rows, fresh):
        part = arranged(rows.take(places))
        folder = storage.join(PUBLISHED, f"acquired={date}", f"model={version}")
        numbered = re.compile(rf"/{re.escape(folder)}/part-{re.escape(run)}-(\d+)\.parquet")
        number = max((int(found[1]) + 1 for name in names if (found := numbered.search(name))), default=0)
        for start in range(0, len(part), FILE_ROWS):
            some = part.slice(start, FILE_ROWS)
            lock.write(storage.join(folder, f"part-{run}-{number:03d}.parquet"), encoded(some), None)
            number += 1


def _replace(rows: pa.Table, lock: Lock, digest: str) -> Places:
    """Put the rows that were captioned later than known ones in their places; the places of those to be added.

    A known row whose acquisition date has changed since goes from its old file, and the new one is to be added. The
    file is the old one where the same model has another version now.
    """
    files = _known(lock.folder, digest, pc.unique(rows.column("pair_id")))
    known = pa.concat_tables([NOTHING, *files.values()])
    file = np.repeat(np.arange(len(files)), [len(part) for part in files.values()])
    place = pc.fill_null(pc.index_in(known.column("tile_id"), rows.column("tile_id").combine_chunks()), -1).to_numpy()
    there = np.flatnonzero(place >= 0)
    place, file, known = place[there], file[there], known.take(there)
    later = pc.greater(rows.column("captioned_at").take(place), known.column("captioned_at")).to_numpy()
    home = pa.array([path.split("/")[-3].removeprefix("acquired=") for path in files], pa.string())
    moves = later & pc.not_equal(_dates(rows).take(place), home.take(file)).to_numpy()
    for number, path in enumerate(files):
        here = later & (file == number)
        if here.any():
            gone = known.column("tile_id").filter(here)
            rewrite(lock, path, partial(_of_tiles, gone, digest), rows.take(place[here & ~moves]))
    return np.setdiff1d(np.arange(len(rows)), place[~moves])


def supersede(output: str, pairs: Collection[str], digest: str, lock: Lock | None = None) -> None:
    """Take out this model's rows `<pair_id>/pair` of pairs that could not be opened once and can be now."""
    wanted = pa.array(sorted(pairs), pa.string())
    failed = pc.binary_join_element_wise(wanted, "pair", "/")

    def take_out(lock: Lock) -> None:
        for path, known in _known(output, digest, wanted).items():
            gone = known.column("tile_id").filter(pc.is_in(known.column("tile_id"), failed))
            if len(gone):
                rewrite(lock, path, partial(_of_tiles, gone, digest), None)

    if len(wanted):
        with held(output, "publishing of captions", lock) as lock:
            repeatedly(partial(take_out, lock))


def _of_tiles(tiles: pa.ChunkedArray, digest: str, rows: pa.Table) -> pa.ChunkedArray:
    """Return which rows are a model's rows of `tiles`."""
    return pc.and_(
        pc.is_in(rows.column("tile_id"), tiles.combine_chunks()),
        pc.equal(rows.column("model_digest"), digest),
    )


def rewrite(lock: Lock, path: str, old: Callable[[pa.Table], pa.ChunkedArray], instead: pa.Table | None) -> None:
    """Rewrite one published file without the rows that `old` selects, and with `instead`, under its own name.

    A file without rows left is removed, or left empty on object stores. Raises `ConflictError` where it was rewritten
    meanwhile.
    """
    name = storage.join(PUBLISHED, path.rpartition(f"/{PUBLISHED}/")[2])
    there = lock.read(name)
    if there is None:
        return
    with readable(path, DAMAGED):
        table = require_valid(open_file(pa.BufferReader(there.content), None).read())
    table = conform(table, CAPTION, path)
    left = table.filter(pc.invert(old(table)))
    left = arranged(left if instead is None else pa.concat_tables([left, instead]))
    if len(left):
        lock.write(name, encoded(left), there.version)
    elif len(table):
        lock.remove(name, there.version, encoded(left))


def read_captions(output: str) -> pa.Table:
    """The whole published table, schema CAPTION."""
    fs, _ = storage.filesystem(output)
    parts = [CAPTION.empty_table()]
    for path in published_files(output):
        with readable(path, DAMAGED):
            table = require_valid(open_file(path, fs).read())
        parts.append(conform(table, CAPTION, path))
    return pa.concat_tables(parts)


def _dates(rows: pa.Table) -> pa.ChunkedArray:
    """Acquisition date of the newer scene of each row."""
    return pc.fill_null(pc.strftime(rows.column("after_time"), format="%Y-%m-%d"), UNDATED)


def _partitions(rows: pa.Table, some: Places) -> Iterator[tuple[tuple[str, str], Places]]:
    """The partitions of some of the rows, in order, and which rows lie in each."""
    homes = pa.table({"date": _dates(rows), "version": rows.column("model_version")}).take(some)
    numbers = _numbered(homes)
    order = np.argsort(numbers, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1) if len(order) else []
    named = {tuple(homes.slice(group[0], 1).to_pylist()[0].values()): some[group] for group in groups}
    for date, version in sorted(named):
        yield (date, version), named[date, version]


def _content_name(rows: pa.Table) -> str:
    """Return a name that depends on the keys of the rows alone."""
    whole = hashlib.sha256()
    for column in rows.select(["tile_id", "model_digest"]).sort_by("tile_id").columns:
        for buffer in column.combine_chunks().buffers()[1:]:
            whole.update(buffer)
    return whole.hexdigest()[:16]


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
