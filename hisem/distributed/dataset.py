"""Shards as training data: what a folder holds, and pairs of decoded images for the workers."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from ray.train import DataConfig

from hisem import storage
from hisem.archive import png
from hisem.archive.grid import nominal_size
from hisem.distributed import session
from hisem.distributed.archive import read_shard_columns
from hisem.errors import DatasetError, RasterError
from hisem.schemas import OK, SHARD, conform
from hisem.text.vocabulary import means_unchanged, tokenize

log = logging.getLogger(__name__)

CACHE_SHARE = 0.4
"""A split whose decoded pixels fit in this share of the object store is decoded once, not once an epoch."""

SHOWN_IDS = 3
"""How many ids a message names."""

SHOWN = ["tile_id", "before_image", "after_image", "references", "changed"]
"""What of a shard is read for training."""

SHOWN_FIELDS = pa.schema([SHARD.field(name) for name in SHOWN])


@dataclass(frozen=True)
class Split:
    """The labelled tiles of one split of a folder of shards."""

    folder: str
    name: str
    tile_size: int
    rows: pa.Table
    """tile_id, pair_id, references, changed, file: everything but the pixels."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def references(self) -> list[list[str]]:
        """All sentences of each tile."""
        return self.rows.column("references").to_pylist()

    @property
    def changed(self) -> list[bool]:
        """The label of each tile."""
        return self.rows.column("changed").to_pylist()

    @property
    def pixel_bytes(self) -> int:
        """Size of both dates, decoded."""
        return len(self) * 2 * 3 * self.tile_size**2

    def fingerprint(self) -> str:
        """sha256 over ids and references: two splits with the same one are scored alike."""
        whole = hashlib.sha256()
        for row in sorted(self.rows.select(["tile_id", "references"]).to_pylist(), key=lambda row: row["tile_id"]):
            whole.update(repr((row["tile_id"], row["references"])).encode())
        return whole.hexdigest()


def read_splits(folder: str, names: tuple[str, ...]) -> dict[str, Split]:
    """The named splits of a folder of shards.

    Tiles that are not ok, have no references or are in no split do not count; how many they are is logged. Raises
    `DatasetError`, with ids, where no tile is left or a named split is empty, for tiles of several sizes, a tile that
    occurs twice, a pair in two splits, a sentence without words, and a tile whose `changed` is unknown.
    """
    columns = ["tile_id", "pair_id", "height", "width", "split", "status", "references", "changed"]
    table = read_shard_columns(folder, columns)
    _require_each_tile_once(table, folder)
    _require_one_split_per_pair(table, folder)
    labelled = _labelled(table, folder)
    size = _tile_size(labelled, folder)
    _require_sense(labelled, folder)
    splits = {}
    for name in names:
        rows = labelled.filter(pc.equal(labelled.column("split"), name))
        if not len(rows):
            counts = Counter(labelled.column("split").to_pylist())
            there = ", ".join(f"{split}: {count}" for split, count in sorted(counts.items()))
            raise DatasetError(
                f"{folder}: split {name} has no labelled tiles (labelled tiles by split: {there}). Splits are given by "
                "the catalogue's column split."
            )
        _log_single_class(rows, name, folder)
        splits[name] = Split(folder, name, size, rows.select(["tile_id", "pair_id", "references", "changed", "file"]))
    return splits


def shard_files(splits: Iterable[Split]) -> set[str]:
    """The files on disks that these splits lie in; those in buckets are left out."""
    here = (split for split in splits if not storage.is_remote(split.folder))
    return {file for split in here for file in split.rows.column("file").to_pylist()}


def pixels(split: Split, num_cpus: float = 1) -> ray.data.Dataset:
    """The split as a dataset of PAIR_COLUMNS, images decoded to uint8 H W 3; in memory where it fits.

    One task of `num_cpus` a shard file. Ray's own `read_parquet` makes one task of many small files and lists the
    folder anew.
    """
    fs, _ = storage.filesystem(split.folder)
    size = split.tile_size  # not the split, which would travel with every task
    tiles = ray.put(set(split.rows.column("tile_id").to_pylist()))

    def load(files: pa.Table) -> dict[str, np.ndarray]:
        ids = pa.array(sorted(ray.get(tiles)), pa.string())
        parts = []
        for path in files.column("file").to_pylist():
            rows = conform(storage.read_parquet_file(path, fs, SHOWN), SHOWN_FIELDS, path)
            parts.append(rows.filter(pc.is_in(rows.column("tile_id"), ids)))
        return decode(pa.concat_tables(parts), size, ", ".join(files.column("file").to_pylist()))

    files = sorted(set(split.rows.column("file").to_pylist()))
    dataset = ray.data.from_arrow([pa.table({"file": [file]}) for file in files])
    dataset.context.execution_options.preserve_order = True  # so that a run which goes on sees what it would have
    dataset = dataset.map_batches(load, num_cpus=num_cpus, **session.BLOCKS)
    store = ray.cluster_resources().get("object_store_memory", 0)
    return dataset.materialize() if split.pixel_bytes < CACHE_SHARE * store else dataset


def decode_image(content: bytes | None, what: str) -> np.ndarray:
    """The image, uint8 H W 3, in PNG bytes of a shard. Raises `DatasetError` naming `what` where there is none."""
    try:
        return png.decode(content or b"")
    except RasterError as error:
        raise DatasetError(f"{what} is damaged: {error}") from error


def decode(table: pa.Table, tile_size: int, where: str = "shards") -> dict[str, np.ndarray]:
    """Columns SHOWN, images as PNG, to PAIR_COLUMNS, images as arrays uint8 B H W 3.

    `where` names the files in messages. Raises `DatasetError` for an image that is damaged or not of `tile_size`
    pixels, even where its row has them.
    """
    images = {}
    for name in ("before", "after"):
        decoded = []
        contents = table.column(f"{name}_image").to_pylist()
        for tile, content in zip(table.column("tile_id").to_pylist(), contents, strict=True):
            image = decode_image(content, f"{where}: {tile}: its {name} image")
            decoded.append(image)
            if image.shape != (tile_size, tile_size, 3):
                raise DatasetError(
                    f"{where}: {tile}: its {name} image has {image.shape[0]} x {image.shape[1]} pixels, not "
                    f"{tile_size} x {tile_size} as other tiles; make the shards again with tile.py."
                )
        images[name] = np.stack(decoded)
    references = np.empty(len(table), dtype=object)
    references[:] = table.column("references").to_pylist()
    return {
        "tile_id": np.array(table.column("tile_id").to_pylist(), dtype=object),
        **images,
        "references": references,
        "changed": np.array(table.column("changed").to_pylist(), dtype=bool),
    }


class EvenTrainingExactValidation(DataConfig):
    """Splits `train` evenly over the workers, which leaves out fewer tiles than there are workers, and
    `val` without dropping or doubling any tile. For a given number of workers the order is always the same.
    """

    def configure(self, datasets, world_size, worker_handles, worker_node_ids, **kwargs):  # type: ignore[no-untyped-def]
        """One dictionary of iterators per worker, as Ray Train asks."""
        ray.data.DataContext.get_current().execution_options.preserve_order = True  # of Ray Train's own process
        even = {name: dataset for name, dataset in datasets.items() if name == "train"}
        shares = super().configure(even, world_size, worker_handles, worker_node_ids, **kwargs)
        if "val" in datasets:  # Ray asks for one dataset at a time
            for rank, part in enumerate(datasets["val"].streaming_split(world_size, equal=False)):
                shares[rank]["val"] = part
        return shares


def _require_each_tile_once(table: pa.Table, folder: str) -> None:
    files: dict[str, list[str]] = {}
    for tile, file in zip(table.column("tile_id").to_pylist(), table.column("file").to_pylist(), strict=True):
        files.setdefault(tile, []).append(file.rpartition("/")[2])
    twice = [f"{tile} in {' and '.join(found[:2])}" for tile, found in files.items() if len(found) > 1]
    if twice:
        raise DatasetError(
            f"{folder}: {len(twice)} tile(s) occur more than once: {_some(twice)}. Remove the shards that do not "
            "belong there, or make them anew in an empty folder."
        )


def _require_one_split_per_pair(table: pa.Table, folder: str) -> None:
    """Tiles of one scene pair on both sides would let a model be scored on what it has seen."""
    splits: dict[str, set[str]] = {}
    for pair, split in zip(table.column("pair_id").to_pylist(), table.column("split").to_pylist(), strict=True):
        splits.setdefault(pair, set()).add(split or "none")
    mixed = [f"{pair} in {' and '.join(sorted(found))}" for pair, found in splits.items() if len(found) > 1]
    if mixed:
        raise DatasetError(
            f"{folder}: {len(mixed)} pair(s) have tiles in more than one split: {_some(mixed)}. Give each pair one "
            "split in the catalogue and make the shards again with tile.py."
        )


def _labelled(table: pa.Table, folder: str) -> pa.Table:
    """The tiles that can be learned from or scored; says which are left out."""
    ok = pc.equal(table.column("status"), OK)
    described = pc.fill_null(pc.greater(pc.list_value_length(table.column("references")), 0), False)
    placed = pc.is_valid(table.column("split"))
    usable = pc.and_(pc.and_(ok, described), placed)
    reasons = {
        "failed or skipped": pc.invert(ok),
        "without references": pc.and_(ok, pc.invert(described)),
        "in no split": pc.and_(pc.and_(ok, described), pc.invert(placed)),
    }
    left_out = {reason: table.filter(mask).column("tile_id").to_pylist() for reason, mask in reasons.items()}
    told = "; ".join(f"{len(ids)} {reason} ({_some(ids)})" for reason, ids in left_out.items() if ids)
    labelled = table.filter(usable)
    if not len(labelled):
        raise DatasetError(
            f"{folder}: none of {len(table)} tile(s) is ok, has references and is in a split: {told}. "
            "References are given by --references of tile.py, splits by the catalogue's column split."
        )
    if told:
        log.info("%s: %d of %d tile(s) are left out: %s", folder, len(table) - len(labelled), len(table), told)
    return labelled


def _tile_size(labelled: pa.Table, folder: str) -> int:
    """The size of all tiles. Windows of scenes smaller than a tile are smaller than it, their pixels are not."""
    tiles: dict[int, list[str]] = {}
    for row in labelled.select(["tile_id", "height", "width"]).to_pylist():
        size = max(nominal_size(row["tile_id"]) or 0, row["height"], row["width"])
        tiles.setdefault(size, []).append(row["tile_id"])
    if len(tiles) > 1:
        found = "; ".join(f"{len(ids)} of {size} pixels ({_some(ids)})" for size, ids in sorted(tiles.items()))
        raise DatasetError(
            f"{folder}: tiles of several sizes: {found}. One size is needed: make the shards anew in an empty folder, "
            "with one --tile-size."
        )
    return next(iter(tiles))


def _require_sense(labelled: pa.Table, folder: str) -> None:
    """Refuse labels and sentences that teach nothing, or all say the opposite; log how many contradict each other."""
    rows = labelled.select(["tile_id", "references", "changed"]).to_pylist()
    if unknown := [row["tile_id"] for row in rows if row["changed"] is None]:
        raise DatasetError(
            f"{folder}: {len(unknown)} tile(s) have references but changed is null: {_some(unknown)}. "
            "Make the shards with tile.py, which fills it in."
        )
    said = {row["tile_id"]: [tokenize(sentence or "") for sentence in row["references"]] for row in rows}
    if wordless := [tile for tile, sentences in said.items() if not all(sentences)]:
        raise DatasetError(
            f"{folder}: {len(wordless)} tile(s) have a reference without words: {_some(wordless)}. "
            "Correct the references and make the shards again with tile.py."
        )
    odd = [row["tile_id"] for row in rows if row["changed"] and all(map(means_unchanged, said[row["tile_id"]]))]
    described = [
        row["tile_id"] for row in rows if not row["changed"] and not any(map(means_unchanged, said[row["tile_id"]]))
    ]
    contradictions = []
    if odd:
        contradictions.append(
            f"{len(odd)} tile(s) are labelled changed, though all references describe none: {_some(odd)}"
        )
    if described:
        contradictions.append(
            f"{len(described)} tile(s) are labelled unchanged, though all references describe a change: "
            f"{_some(described)}"
        )
    # Where no label is as described, and both occur, `changed` means the opposite.
    if odd and described and len(odd) + len(described) == len(rows):
        raise DatasetError(
            f"{folder}: the labels of all {len(rows)} tile(s) contradict their references: "
            f"{'; '.join(contradictions)}. Correct the column changed of the references and make the shards again "
            "with tile.py."
        )
    if contradictions:
        log.warning("%s: of %d tile(s), %s; the label is followed", folder, len(rows), "; ".join(contradictions))


def _log_single_class(rows: pa.Table, split: str, folder: str) -> None:
    """Log where all tiles of a split have one label, by which nothing is learned or measured of the other."""
    labels = set(rows.column("changed").to_pylist())
    if len(labels) == 1:
        log.warning(
            "%s: all %d tile(s) of split %s are labelled %s: whether a tile has changed can be neither learned nor "
            "measured on it",
            *(folder, len(rows), split, "changed" if labels == {True} else "unchanged"),
        )


def _some(names: Sequence[str]) -> str:
    """The first few of many."""
    return ", ".join(names[:SHOWN_IDS]) + (f" and {len(names) - SHOWN_IDS} more" if len(names) > SHOWN_IDS else "")
