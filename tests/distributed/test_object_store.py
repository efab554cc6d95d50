"""Archives that are read from and written to an object store by Ray's workers, against the same on disk."""

from __future__ import annotations

import pyarrow as pa

from hisem import storage
from hisem.archive.catalogue import read_catalogue
from hisem.archive.synthetic import SyntheticConfig, generate
from hisem.captions import staging
from hisem.captions.table import read_captions
from hisem.distributed.archive import read_shard_columns, shard_archive
from hisem.distributed.captioner import CaptionOptions
from hisem.distributed.nightly import caption_archive
from hisem.schemas import CAPTION, SHARD

TILE = 32
PLACES = ("before", "after", "captioned_at")
"""Columns that differ by where an archive lies, and when it is done."""


def comparable(table: pa.Table, names: list[str]) -> pa.Table:
    return table.select([name for name in names if name not in PLACES]).sort_by("tile_id").combine_chunks()


def files_in(output: str, folder: str) -> list[str]:
    return storage.list_files(storage.join(output, folder))


def test_shards_and_captions_in_a_bucket_equal_those_on_disk(bucket, bundle, tmp_path, ray_cluster):
    tables: dict[str, list[pa.Table]] = {"shards": [], "captions": []}
    for root in (str(tmp_path), bucket):
        archive, shards = storage.join(root, "archive"), storage.join(root, "shards")
        generate(SyntheticConfig(scenes=3, tile_size=TILE, scene_tiles=3, val_share=0.34, test_share=0.34), archive)
        catalogue = storage.join(archive, "catalogue.parquet")
        summary = shard_archive(catalogue, shards, TILE, storage.join(archive, "references.parquet"))
        assert summary.statuses == {"ok": 27, "skipped": 0, "failed": 0}
        assert shard_archive(catalogue, shards, TILE, storage.join(archive, "references.parquet")) == summary
        tables["shards"].append(comparable(read_shard_columns(shards, SHARD.names), SHARD.names))
        options = CaptionOptions(storage.join(root, "table"), bundle, "hisem", "1", TILE)
        night = caption_archive(read_catalogue(catalogue), options).night
        assert (night.already, sum(night.statuses.values())) == (0, 27)
        assert caption_archive(read_catalogue(catalogue), options).night.already == 27
        tables["captions"].append(comparable(read_captions(options.output), CAPTION.names))
        assert staging.open_job(options.output) is None
        # In a bucket nothing is deleted on a condition: the closed job and the released lock stay.
        left = {path.rpartition("/")[2] for name in ("_staging", "_locks") for path in files_in(options.output, name)}
        assert left == (set() if root != bucket else {"job.json", "writer.json"})
    for local, remote in tables.values():
        assert len(local) == 27
        assert local.equals(remote)
