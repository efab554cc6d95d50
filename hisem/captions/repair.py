"""Repair of a captions table that has a key twice, as a run of an earlier version left it that had been suspended."""

from __future__ import annotations

import hashlib
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from hisem import storage
from hisem.captions.lock import Lock
from hisem.captions.parquet import open_file, readable, require_valid
from hisem.captions.table import DAMAGED, PUBLISHED, UNDATED, newest, published_files, repeatedly, rewrite
from hisem.errors import ConflictError, StorageError

log = logging.getLogger(__name__)

Hashes = npt.NDArray[np.uint64]
CHECKED = "_checked.json"
KEY = ["tile_id", "model_digest"]
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
"""In place of a date that is not known, in tables of version 0.1; see `UNDATED`."""
BATCH_ROWS = 65_536
"""Rows whose keys are read at once: their numbers take some 40 bytes for each character meanwhile."""
FILES_AT_ONCE = 4
BASE = np.uint64(0x9E3779B97F4A7C15)
"""Odd number whose powers weigh the bytes of a key."""


def repair(lock: Lock) -> int:
    """Leave one row of each key in the table, the one captioned last. Return how many rows were removed.

    One number of each row is held in memory, and the keys of the doubled rows; only files that hold those are
    rewritten, one at a time. A table whose files are those of `mark_checked` is not read.
    """
    _rename_undated(lock)
    there = lock.read(CHECKED)
    if there is not None and there.content == _listing(lock.folder):
        return 0
    removed: list[int] = []
    repeatedly(partial(_repair, lock, removed))
    mark_checked(lock)
    return sum(removed)


def _rename_undated(lock: Lock) -> None:
    """Move files of version 0.1 whose rows have no date to where this one keeps them.

    Each is written under its new name before the old one is removed: of a run that is killed in between, the rows that
    are there twice are removed by `repair`.
    """
    for path in published_files(lock.folder):
        old = storage.join(PUBLISHED, path.rpartition(f"/{PUBLISHED}/")[2])
        content = lock.read(old) if f"/acquired={HIVE_NULL}/" in path else None
        if content is not None:
            lock.update(old.replace(f"acquired={HIVE_NULL}", f"acquired={UNDATED}"), content.content)
            lock.remove(old, content.version, b"")
            if storage.exists(storage.join(lock.folder, old)):  # an object store, where `remove` leaves an empty object
                storage.delete(storage.join(lock.folder, old))


def mark_checked(lock: Lock) -> None:
    """Remember the files of the table, which has no key twice: as large as it may be, a run then need not read it."""
    if published_files(lock.folder):
        lock.update(CHECKED, _listing(lock.folder))


def _listing(output: str) -> bytes:
    """Return a digest of the names, sizes and times of the table's files."""
    fs, root = storage.filesystem(storage.join(output, PUBLISHED))
    whole = hashlib.sha256()
    try:
        infos = fs.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True))
    except OSError as error:
        raise StorageError(f"{root}: cannot be listed ({error}).") from error
    for info in sorted(infos, key=lambda info: info.path):
        if info.is_file:
            whole.update(f"{info.path[len(root) :]} {info.size} {info.mtime_ns}\n".encode())
    return json.dumps({"files": whole.hexdigest()}).encode()


def _repair(lock: Lock, removed: list[int]) -> None:
    fs, _ = storage.filesystem(lock.folder)
    files = published_files(lock.folder)
    with ThreadPoolExecutor(FILES_AT_ONCE) as threads:
        hashes = list(threads.map(partial(_hashes, fs), files))
    doubled = _doubled(hashes)
    if not len(doubled):
        return
    held = [
        (path, rows) for path, own in zip(files, hashes, strict=True) if len(rows := np.isin(own, doubled).nonzero()[0])
    ]
    keys = pa.concat_tables(
        _keys(fs, path, ["captioned_at"]).take(rows).append_column("place", _places(number, rows))
        for number, (path, rows) in enumerate(held)
    ).combine_chunks()
    kept = newest(keys).column("place")
    old = keys.filter(pc.invert(pc.is_in(keys.column("place"), kept.combine_chunks())))
    if not len(old):
        return  # keys that only share their number
    log.warning(
        "%s: %d row(s) of %d tile(s) were there more than once, tile %s for one, as a run of an earlier version leaves "
        "them that was suspended while it published. The rows captioned last stay, the others are removed.",
        lock.folder,
        len(old) + len(old.group_by(KEY).aggregate([])),
        len(old.group_by(KEY).aggregate([])),
        old.column("tile_id")[0],
    )
    places = old.column("place").to_numpy()
    for number, (path, _) in enumerate(held):
        here = places >> 32 == number
        if here.any():
            rewrite(lock, path, partial(_at, places[here] & 0xFFFFFFFF, old.filter(pa.array(here))), None)
            removed.append(int(here.sum()))


def _at(places: npt.NDArray[np.int64], expected: pa.Table, rows: pa.Table) -> pa.Array:
    """Return which rows are at `places`. Raises `ConflictError` where those are not the `expected` ones any more."""
    columns = [*KEY, "captioned_at"]
    if places.max() >= len(rows) or not rows.take(places).select(columns).equals(expected.select(columns)):
        raise ConflictError("A file of the table was rewritten after its keys were read.")
    mask = np.zeros(len(rows), bool)
    mask[places] = True
    return pa.array(mask)


def _places(file: int, rows: npt.NDArray[np.int64]) -> pa.Array:
    return pa.array((file << 32) + rows)


def _keys(fs: pafs.FileSystem, path: str, more: list[str]) -> pa.Table:
    with readable(path, DAMAGED):
        return require_valid(open_file(path, fs).read(columns=[*KEY, *more]))


def _hashes(fs: pafs.FileSystem, path: str) -> Hashes:
    """Return a number for the key of each row of a file."""
    parts = [np.zeros(0, np.uint64)]
    with readable(path, DAMAGED):
        for batch in open_file(path, fs).iter_batches(BATCH_ROWS, columns=KEY):
            tiles, digests = require_valid(pa.table(batch)).columns
            digests = digests.combine_chunks().dictionary_encode()
            few = _hashed(pa.chunked_array([digests.dictionary]))  # as a file has few models
            parts.append(_hashed(tiles) * BASE + few[digests.indices.to_numpy()])
    return np.concatenate(parts)


def _hashed(column: pa.ChunkedArray) -> Hashes:
    """Return a number for each text: its bytes as the digits of a number to the base BASE, modulo 2^64."""
    texts = column.cast(pa.large_string()).combine_chunks()
    if not len(texts):
        return np.zeros(0, np.uint64)
    offsets = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
    data = np.frombuffer(texts.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]].astype(np.uint64) + np.uint64(1)
    starts, lengths = offsets[:-1] - offsets[0], np.diff(offsets)
    powers = np.cumprod(np.full(int(lengths.max(initial=0)) + 1, BASE))
    within = np.arange(len(data)) - np.repeat(starts, lengths)
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(data * powers[within])])
    return sums[offsets[1:] - offsets[0]] - sums[starts]


def _doubled(hashes: list[Hashes]) -> Hashes:
    """Return the numbers that are there more than once."""
    every = np.sort(np.concatenate([np.zeros(0, np.uint64), *hashes]))
    return np.unique(every[1:][every[1:] == every[:-1]])
