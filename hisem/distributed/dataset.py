"""Shards as training data: what a folder holds, and pairs of decoded images for the workers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray.data
from ray.train import DataConfig

from hisem import storage
from hisem.archive import png
from hisem.distributed.archive import read_shard_columns
from hisem.errors import DatasetError
from hisem.schemas import OK

CACHE_SHARE = 0.4
"""A split whose decoded pixels fit in this share of the object store is decoded once, not once an epoch."""

SHOWN = ["tile_id", "before_image", "after_image", "references", "changed"]
"""What of a shard is read for training."""


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
    """The named splits of a folder of shards; tiles that are not ok or have no references do not count.

    Raises `DatasetError` for an empty split, tiles of several sizes, a pair in two splits.
    """
    columns = ["tile_id", "pair_id", "height", "width", "split", "status", "references", "changed"]
    table = read_shard_columns(folder, columns)
    usable = pc.and_(
        pc.equal(table.column("status"), OK), pc.greater(pc.list_value_length(table.column("references")), 0)
    )
    labelled = table.filter(pc.fill_null(usable, False))
    if not len(labelled):
        raise DatasetError(
            f"{folder}: none of {len(table)} tile(s) is ok and has references; give --references to tile.py."
        )
    _require_one_split_per_pair(labelled, folder)
    size = _tile_size(labelled, folder)
    splits = {}
    for name in names:
        rows = labelled.filter(pc.equal(labelled.column("split"), name))
        if not len(rows):
            there = ", ".join(
                f"{v['values']}: {v['counts']}" for v in pc.value_counts(labelled.column("split")).to_pylist()
            )
            raise DatasetError(f"{folder}: split {name} has no labelled tiles (labelled tiles by split: {there}).")
        splits[name] = Split(folder, name, size, rows.select(["tile_id", "pair_id", "references", "changed", "file"]))
    return splits


def pixels(split: Split, num_cpus: float = 1) -> ray.data.Dataset:
    """The split as a dataset of PAIR_COLUMNS, images decoded to uint8 H W 3; in memory where it fits.

    One task of `num_cpus` a shard file. Ray's own `read_parquet` makes one task of many small files and lists the
    folder anew.
    """
    fs, _ = storage.filesystem(split.folder)
    tiles = ray.put(set(split.rows.column("tile_id").to_pylist()))

    def load(files: pa.Table) -> dict[str, np.ndarray]:
        table = pq.read_table(files.column("file").to_pylist(), filesystem=fs, columns=SHOWN, partitioning=None)
        mine = pc.is_in(table.column("tile_id"), pa.array(sorted(ray.get(tiles)), pa.string()))
        return decode(table.filter(mine))

    files = sorted(set(split.rows.column("file").to_pylist()))
    dataset = ray.data.from_arrow([pa.table({"file": [file]}) for file in files])
    dataset = dataset.map_batches(load, batch_format="pyarrow", batch_size=None, num_cpus=num_cpus)
    store = ray.cluster_resources().get("object_store_memory", 0)
    return dataset.materialize() if split.pixel_bytes < CACHE_SHARE * store else dataset


def decode(table: pa.Table) -> dict[str, np.ndarray]:
    """Columns SHOWN, images as PNG, to PAIR_COLUMNS, images as arrays uint8 B H W 3."""
    images = {
        name: np.stack([png.decode(content) for content in table.column(f"{name}_image").to_pylist()])
        for name in ("before", "after")
    }
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
    `val` without dropping or doubling any tile.
    """

    def configure(self, datasets, world_size, worker_handles, worker_node_ids, **kwargs):  # type: ignore[no-untyped-def]
        """One dictionary of iterators per worker, as Ray Train asks."""
        even = {name: dataset for name, dataset in datasets.items() if name == "train"}
        shares = super().configure(even, world_size, worker_handles, worker_node_ids, **kwargs)
        if "val" in datasets:  # Ray asks for one dataset at a time
            for rank, part in enumerate(datasets["val"].streaming_split(world_size, equal=False)):
                shares[rank]["val"] = part
        return shares


def _require_one_split_per_pair(table: pa.Table, folder: str) -> None:
    pairs = table.select(["pair_id", "split"]).group_by("pair_id").aggregate([("split", "count_distinct")])
    mixed = pairs.filter(pc.greater(pairs.column("split_count_distinct"), 1)).column("pair_id").to_pylist()
    if mixed:
        raise DatasetError(f"{folder}: {len(mixed)} pair(s) are in two splits: {', '.join(sorted(mixed)[:5])}.")


def _tile_size(table: pa.Table, folder: str) -> int:
    sizes = pc.unique(pc.max_element_wise(table.column("height"), table.column("width"))).to_pylist()
    if len(sizes) > 1:
        raise DatasetError(f"{folder}: tiles of several sizes ({sorted(sizes)} pixels); one size is needed.")
    return int(sizes[0])
