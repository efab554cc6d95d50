"""Archives on Ray: tiles of an index to shards."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data

from hisem import storage
from hisem.archive.catalogue import read_catalogue
from hisem.archive.grid import require_tiling
from hisem.archive.levir_cc import benchmark_name, read_levir_cc
from hisem.archive.options import DEFAULTS, ReadOptions
from hisem.archive.references import join_references, match_references, read_references
from hisem.archive.synthetic import is_synthetic_catalogue
from hisem.archive.tiles import read_tiles, shard_table
from hisem.distributed import session
from hisem.distributed.holding import held
from hisem.distributed.index import index_archive, tile_blocks
from hisem.distributed.shared_storage import rasters_of, require_shared
from hisem.errors import DatasetError, ReferencesError, StorageError
from hisem.schemas import FAILED, INDEX, OK, REFERENCES, SHARD, SKIPPED, conform
from hisem.writable import require_writable

log = logging.getLogger(__name__)

INDEX_FILE, MANIFEST = "_index/index.parquet", "_index/manifest.json"

REMAKE = "Delete the file and run tile.py again, which makes these shards again from the start."
"""Remedy for a damaged manifest."""

BENCHMARK = "benchmark"
"""The manifest's key for the benchmark that the shards are of; absent for any other archive."""

SYNTHETIC = "synthetic"
"""The manifest's key for shards of a synthetic archive, true; absent for any other."""


@dataclass(frozen=True)
class ShardSummary:
    """What came of an archive."""

    output: str
    pairs: int
    tiles: int
    statuses: dict[str, int]
    errors: dict[str, int]
    """Reasons of failed rows and how often."""
    described: int
    """Tiles with references."""
    splits: dict[str, int]

    def rows(self) -> dict[str, int]:
        """What a person is told: what, how much."""
        return {
            "pairs": self.pairs,
            "tiles": self.tiles,
            "with references": self.described,
            **{f"status {name}": count for name, count in self.statuses.items()},
            **{f"split {name}": count for name, count in self.splits.items()},
            **{f"failed: {reason}": count for reason, count in self.errors.items()},
        }


def shard_archive(
    catalogue: str,
    output: str,
    tile_size: int,
    references: str | None = None,
    options: ReadOptions = DEFAULTS,
) -> ShardSummary:
    """Shard the archive of a catalogue; pairs that cannot be opened become failed rows.

    Raises what `read_archive` does before Ray is started.
    """
    require_writable(output)
    pairs, known = read_archive(catalogue, tile_size, references, options)
    with session.cluster():
        require_reader("tiling")
        require_shared([output], rasters_of(pairs))
        index, failed = index_archive(pairs, tile_size, options)
        require_matches(known, index, tile_size, references or "")
        origin = {SYNTHETIC: True} if is_synthetic_catalogue(catalogue) else {}
        return write_shards(index, output, tile_size, known, failed, options, origin)


def read_archive(
    catalogue: str, tile_size: int, references: str | None, options: ReadOptions
) -> tuple[pa.Table, pa.Table | None]:
    """The catalogue, and the references if there are any, that fit each other and the options.

    Raises `CatalogueError`, `ReferencesError` or `ConfigError`.
    """
    require_tiling(tile_size, options.overlap)
    pairs = read_catalogue(catalogue)
    known = read_references(references) if references else None
    _require_known_pairs(pairs, known, references or "")
    return pairs, known


def _require_known_pairs(pairs: pa.Table, references: pa.Table | None, where: str) -> None:
    """Refuse references of which none belongs to the catalogue: the two are of different archives."""
    if references is None or not len(references):
        return
    known = pc.is_in(references.column("pair_id"), pairs.column("pair_id").combine_chunks())
    if not pc.any(known).as_py():
        found = ", ".join(pc.unique(references.column("pair_id")).to_pylist()[:3])
        raise ReferencesError(f"{where}: none of its pairs ({found}, ...) is in the catalogue.")
    if missing := len(references) - pc.sum(known).as_py():
        log.warning("%s: %d row(s) are of pairs that the catalogue does not have", where, missing)


def require_matches(references: pa.Table | None, index: pa.Table, tile_size: int, where: str) -> None:
    """Log how many references describe a tile. Raises `ReferencesError` where none of the opened pairs' does."""
    if references is None or not len(references) or not len(index):
        return
    matches = match_references(references, index)
    counts = f"{where}: {matches.matched} row(s) describe a tile of {tile_size} pixels"
    if not matches.unmatched:
        log.info("%s", counts)
        return
    counts += f", {matches.unmatched} do not ({matches.example}): no tile begins there"
    if not matches.matched:
        raise ReferencesError(
            f"{counts}. They were written for tiles of another size or overlap: give the --tile-size and --overlap "
            "that they were made with."
        )
    log.warning("%s; these are left out", counts)


def shard_levir_cc(folder: str, output: str) -> ShardSummary:
    """Import LEVIR-CC, or a benchmark in its layout, from its own folder.

    Raises `DatasetError` for images of several sizes.
    """
    require_writable(output)
    index, references = read_levir_cc(folder)
    sizes = sorted(set(index.column("height").to_pylist()) | set(index.column("width").to_pylist()))
    if len(sizes) != 1:
        raise DatasetError(f"{folder}: square images of one size are expected, found sides of {sizes} pixels.")
    with session.cluster():
        require_reader("tiling")
        require_shared([output], rasters_of(index))
        return write_shards(index, output, sizes[0], references, origin=_origin(benchmark_name(folder)))


def _origin(benchmark: str | None) -> dict[str, Any]:
    return {} if benchmark is None else {BENCHMARK: benchmark}


def require_reader(what: str) -> None:
    """Raise `ResourceError` where no task that reads could ever run."""
    session.require(1, 0, what, "Give the cluster a node with CPUs for tasks.")


def write_shards(
    index: pa.Table,
    output: str,
    tile_size: int,
    references: pa.Table | None = None,
    failed: pa.Table | None = None,
    options: ReadOptions = DEFAULTS,
    origin: dict[str, Any] | None = None,
) -> ShardSummary:
    """Read every tile of `index` and write shards to `output`, one file per block, named by its number.

    The index is written first and the manifest last: an output without manifest is one that was
    interrupted, and is done again from the start; it has the `origin` of the shards, which decides no pixel.
    Raises `StorageError` where `output` holds something else, and `BusyError` where another process writes there.
    """
    settings = {"tile_size": tile_size, "references": fingerprint(references), **options.changed()}
    origin = origin or {}
    path = storage.join(output, MANIFEST)
    done = storage.exists(path) and _already_done(index, output, settings)
    if done and origin.items() <= _manifest(output).items():  # version 0.1 wrote no origin
        log.info("%s already holds these shards; nothing to do", output)
        return summarise(output)
    with held(output, "tiling") as require:
        if not _already_done(index, output, settings):  # else another process has written them meanwhile
            _write_blocks(index, output, tile_size, references, failed, options)
        require()
        storage.write_bytes(path, json.dumps(settings | origin, indent=1).encode())
    return summarise(output)


def _write_blocks(
    index: pa.Table,
    output: str,
    tile_size: int,
    references: pa.Table | None,
    failed: pa.Table | None,
    options: ReadOptions,
) -> None:
    """Write the index, then the tiles of each block."""
    storage.write_parquet(index.select(INDEX.names), storage.join(output, INDEX_FILE))
    texts = ray.put(references)

    def shard(block: pa.Table) -> pa.Table:
        table = shard_table(read_tiles(block.drop_columns(["block"]), tile_size, options))
        if (known := ray.get(texts)) is not None:
            table = join_references(table, known)
        storage.write_parquet(table, storage.join(output, f"part-{block['block'][0].as_py():06d}.parquet"))
        return table.select(["tile_id", "status"])

    if len(index):
        done = 0
        written = tile_blocks(index, options).map_batches(shard, **session.BLOCKS)
        for batch in written.iter_batches(batch_size=None, batch_format="pyarrow"):
            done += len(batch)
            log.info("tiles: %d of %d", done, len(index))
    if failed is not None and len(failed):
        rows = conform(failed, SHARD, "failed pairs", optional=SHARD.names)
        storage.write_parquet(rows, storage.join(output, "part-failed.parquet"))
    if len(index) and (seen := len(read_shard_columns(output, ["tile_id"]))) != len(index) + len(failed or []):
        raise StorageError(
            f"{output}: {seen} of {len(index)} tiles are visible from here; all nodes must share --output. "
            "Choose a shared folder or an object store."
        )


def fingerprint(references: pa.Table | None) -> str | None:
    """sha256 over keys, sentences and labels."""
    if references is None:
        return None
    rows = references.select(REFERENCES.names).to_pylist()
    return hashlib.sha256(repr([tuple(row.values()) for row in rows]).encode()).hexdigest()


def _already_done(index: pa.Table, output: str, settings: dict[str, Any]) -> bool:
    """Whether `output` is finished with this very index; cleans what an interrupted run left."""
    parts = storage.list_files(output)
    if not storage.exists(storage.join(output, INDEX_FILE)):
        if parts:
            raise StorageError(f"{output}: not empty and no shards of ours ({parts[0]}). Choose another --output.")
        return False
    there = storage.read_parquet(storage.join(output, INDEX_FILE))
    same = there.schema.names == INDEX.names and there.equals(index.select(INDEX.names))
    if not same:
        kind = "columns" if there.schema.names != INDEX.names else "tiles"
        raise StorageError(f"{output}: holds shards with other {kind}. Choose another --output, or delete it first.")
    if known := _manifest(output):
        for name in (BENCHMARK, SYNTHETIC):  # which decide no pixel
            known.pop(name, None)
        if known != settings:
            raise StorageError(f"{output}: was made with {known}, not {settings}. Choose another --output.")
        return True
    log.info("%s: an interrupted run left %d file(s); starting over", output, len(parts))
    for part in parts:
        name = part.rsplit("/", 1)[-1]
        if re.fullmatch(r"part-(\d{6}|failed)\.parquet", name):
            storage.delete(storage.join(output, name))
    return False


def read_benchmark(folder: str) -> str | None:
    """The benchmark that the shards in a folder were imported from, None for any other archive."""
    return _manifest(folder).get(BENCHMARK)


def is_synthetic(folder: str) -> bool:
    """True if the shards in a folder were made of a synthetic archive."""
    return _manifest(folder).get(SYNTHETIC) is True


def _manifest(folder: str) -> dict[str, Any]:
    """The manifest of shards, empty where there is none yet. Raises `StorageError` for anything else in its place."""
    path = storage.join(folder, MANIFEST)
    if not storage.exists(path):
        return {}
    try:
        manifest = json.loads(storage.read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{path}: damaged, not valid JSON ({error}). {REMAKE}") from error
    tile_size = manifest.get("tile_size") if isinstance(manifest, dict) else None
    if type(tile_size) is not int or not isinstance(manifest.get(BENCHMARK, ""), str):
        raise StorageError(f"{path}: not a manifest of shards: a mapping with a whole tile_size is needed. {REMAKE}")
    return manifest


def summarise(output: str) -> ShardSummary:
    """Counts of the shards in a folder."""
    table = read_shard_columns(output, ["pair_id", "status", "error", "references", "split"])
    errors = table.filter(pc.equal(table.column("status"), FAILED)).column("error")
    return ShardSummary(
        output,
        len(pc.unique(table.column("pair_id"))),
        len(table),
        {status: _count(table.column("status"), status) for status in (OK, SKIPPED, FAILED)},
        _counts(errors),
        len(table) - table.column("references").null_count,
        _counts(table.column("split")),
    )


def read_shard_columns(folder: str, columns: list[str]) -> pa.Table:
    """Some columns of all shards in a folder, and `file`, the path that each row lies in.

    Raises `StorageError` or `SchemaError` for what is no folder of shards.
    """
    fs, _ = storage.filesystem(folder)
    paths = storage.list_files(folder, ".parquet")
    if not paths:
        raise StorageError(f"{folder}: no shards there (no .parquet file). Make them with pipelines/tile.py.")
    fields = pa.schema([SHARD.field(name) for name in columns])
    parts = []
    for path in paths:
        rows = conform(storage.read_parquet_file(path, fs, columns), fields, path)
        parts.append(rows.append_column("file", [pa.array([path] * len(rows), pa.string())]))
    return pa.concat_tables(parts)


def _count(column: pa.ChunkedArray, value: str) -> int:
    return int(pc.sum(pc.equal(column, value)).as_py() or 0)


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    counted = pc.value_counts(column.combine_chunks()).to_pylist()
    return {str(row["values"]): row["counts"] for row in sorted(counted, key=lambda row: -row["counts"])}
