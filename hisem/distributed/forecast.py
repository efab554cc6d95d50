"""What a run would do, and how long it may take by a timed sample of its tiles; nothing is written."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import ray

from hisem import storage
from hisem.archive.options import DEFAULTS, ReadOptions
from hisem.archive.tiles import read_tiles, shard_table
from hisem.captions import table as captions
from hisem.captions.settings import refuse_other_settings
from hisem.distributed import budget, session
from hisem.distributed.archive import read_archive, require_matches, require_reader
from hisem.distributed.captioner import Captioner, CaptionOptions, read_pixels, with_captioners
from hisem.distributed.index import cut, index_archive, join_ranges, measure_pairs, pairs_of
from hisem.distributed.shipping import Shipped, ship
from hisem.distributed.work import find_work
from hisem.errors import StorageError
from hisem.model.bundle import digest as bundle_digest
from hisem.schemas import OK

BLOCKS = 4
"""Blocks of tiles, spread evenly over the archive, that are sampled."""
TILES = 32
"""Neighbouring tiles that are read of each."""


@dataclass(frozen=True)
class Sample:
    """Seconds that some tiles took: `measuring` the scenes of `pairs` pairs, `reading` and encoding, `captioning`."""

    tiles: int = 0
    captioned: int = 0
    """Those of `tiles` that are ok; the others are skipped or have failed, and take no captioning."""
    pairs: int = 0
    measuring: float = 0.0
    reading: float = 0.0
    captioning: float = 0.0

    @property
    def share(self) -> float:
        """Fraction of the tiles that are ok, in [0, 1]."""
        return self.captioned / max(self.tiles, 1)

    def __add__(self, other: Sample) -> Sample:
        return Sample(*(mine + yours for mine, yours in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True)
class Forecast:
    """What a run would do."""

    pairs: int
    tiles: int
    """Tiles that would be read."""
    usable: int
    """Those of them that would not be skipped, by the share of the sample."""
    already: int
    """Tiles that this model has captioned before."""
    failed: dict[str, int]
    """Reasons why pairs cannot be opened, and how often."""
    raster_bytes: int
    """Of the files of all the pairs' rasters and masks."""
    unsized: int
    """Files whose size is not known: missing ones, and servers without listing."""
    pixel_bytes: int
    """Of both dates of the tiles, as 8-bit red, green and blue."""
    hours: float
    assumption: str
    """What the hours suppose, in a sentence."""

    def rows(self) -> dict[str, object]:
        """What a person is told: what, how much."""
        return {
            "pairs": self.pairs,
            "pairs that cannot be opened": sum(self.failed.values()),
            **{f"failed: {reason}": count for reason, count in self.failed.items()},
            "tiles captioned before": self.already,
            "tiles to read": self.tiles,
            "tiles not skipped (estimate)": self.usable,
            "GB of rasters": self.raster_bytes / 1e9,
            "rasters of unknown size": self.unsized,
            "GB of pixels to read": self.pixel_bytes / 1e9,
            "hours": self.hours,
        }


def forecast_shards(
    catalogue: str, tile_size: int, references: str | None = None, options: ReadOptions = DEFAULTS
) -> Forecast:
    """What `shard_archive` would do. Raises what that raises for its input."""
    pairs, known = read_archive(catalogue, tile_size, references, options)
    with session.cluster():
        require_reader("tiling")
        began = time.perf_counter()
        index, failed = index_archive(pairs, tile_size, options)
        indexing = time.perf_counter() - began
        require_matches(known, index, tile_size, references or "")
        task = ray.remote(num_cpus=1)(_read)
        sample = _total(ray.get([task.remote(rows, tile_size, options) for rows in _spread(index, TILES)]))
        cpus = int(budget.most()["CPU"])
        hours = _hours(index, sample, indexing, cpus, sample.reading / max(sample.tiles, 1) / cpus)
        told = (
            f"{sample.tiles} tiles were read, {_per_tile(sample.reading, sample.tiles)} of one CPU, and the "
            f"{sample.captioned} of them that are not skipped were encoded"
        )
        reasons = failed.column("error").to_pylist()
        return _forecast(pairs, index, 0, reasons, tile_size, hours, _assumption(told, cpus), sample)


def forecast_captions(catalogue: pa.Table, options: CaptionOptions) -> Forecast:
    """What `caption_archive` would do, but for rows that an interrupted run has staged. Raises what that raises."""
    captions.require_table(options.output)
    refuse_other_settings(options.output, options.reading.pixel_settings())
    digest = bundle_digest(options.model)
    with session.cluster():
        options = with_captioners(options)
        asked = options.captioning
        captioners = asked.captioners or 1
        began = time.perf_counter()
        work = find_work(catalogue, options, digest, None)
        indexing = time.perf_counter() - began
        task = ray.remote(num_cpus=asked.cpus, num_gpus=1 if asked.gpu else 0)(_caption)
        parts = [list(part) for part in np.array_split(np.arange(BLOCKS), min(captioners, BLOCKS))]
        blocks = list(_spread(work.todo, asked.batch))
        shipped = ship(options.model)
        shares = [[blocks[number] for number in part if number < len(blocks)] for part in parts]
        sample = _total(ray.get([task.remote(share, shipped, options, digest) for share in shares if share]))
        cpus = int(budget.most()["CPU"])
        tiles = max(sample.tiles, 1)
        reading = sample.reading / tiles
        captioning = sample.share * sample.captioning / max(sample.captioned, 1)  # of any tile, skipped ones included
        if asked.gpu:  # readers beside the captioners feed them
            slowest = max(reading / max(cpus - captioners * asked.cpus, 1), captioning / captioners)
        else:
            slowest = (reading + captioning) / captioners
        hours = _hours(work.todo, sample, indexing, cpus, slowest)
        told = (
            f"{sample.tiles} tiles took {_per_tile(sample.reading, sample.tiles)} to read, and the {sample.captioned} "
            f"of them that are not skipped {_per_tile(sample.captioning, sample.captioned)} to caption, by "
            f"{captioners} captioner(s)"
        )
        failed = [error for rows in (work.broken, work.unopened) for error in rows.column("error").to_pylist()]
        assumption = _assumption(told, cpus)
        return _forecast(catalogue, work.todo, work.already, failed, options.tile_size, hours, assumption, sample)


def _spread(index: pa.Table, tiles: int) -> list[pa.Table]:
    """The first tiles of some blocks, evenly over the index."""
    if not len(index):
        return []
    blocks = cut(index)
    places = np.unique(np.linspace(0, len(blocks) - 1, BLOCKS).astype(int))
    return [blocks[place].drop_columns(["block"]).slice(0, tiles) for place in places]


def _measured(rows: pa.Table, options: ReadOptions) -> tuple[pa.Table, Sample]:
    """`rows` with the columns that a run has measured before it reads, and what that took."""
    if options.scaling != "percentiles":
        return rows, Sample()
    began = time.perf_counter()
    pairs = pairs_of(rows)
    rows = join_ranges(rows, measure_pairs(pairs, options))
    return rows, Sample(pairs=len(pairs), measuring=time.perf_counter() - began)


def _read(rows: pa.Table, tile_size: int, options: ReadOptions) -> Sample:
    """Read tiles and encode them as a shard."""
    rows, measured = _measured(rows, options)
    began = time.perf_counter()
    shard = shard_table(read_tiles(rows, tile_size, options))
    pq.write_table(shard, pa.BufferOutputStream(), compression="zstd")
    return measured + Sample(tiles=len(rows), captioned=_ok(shard), reading=time.perf_counter() - began)


def _ok(rows: pa.Table) -> int:
    """How many tiles are neither skipped nor failed."""
    return int(pc.sum(pc.equal(rows.column("status"), OK)).as_py() or 0)


def _caption(blocks: Sequence[pa.Table], shipped: Shipped, options: CaptionOptions, digest: str) -> Sample:
    """Read and caption tiles as one captioner does; its first batch with pixels, which warms it up, does not count."""
    captioner = Captioner(shipped, options, digest)
    samples = []
    is_warm = False
    for block in blocks:
        rows, measured = _measured(block, options.reading)
        began = time.perf_counter()
        pixels = pa.concat_tables(read_pixels(rows, options.tile_size, options.reading))
        read = time.perf_counter()
        captioned = _ok(pixels)
        if captioned and not is_warm:
            captioner(pixels)
            is_warm = True
        again = time.perf_counter()
        captioner(pixels)
        captioning = time.perf_counter() - again
        samples.append(
            measured + Sample(tiles=len(rows), captioned=captioned, reading=read - began, captioning=captioning)
        )
    return _total(samples)


def _total(samples: Sequence[Sample]) -> Sample:
    return sum(samples, start=Sample())


def _hours(index: pa.Table, sample: Sample, indexing: float, cpus: int, per_tile: float) -> float:
    """Hours of indexing once more, measuring all pairs of `index`, and its tiles at `per_tile` seconds."""
    measuring = sample.measuring / max(sample.pairs, 1) * len(pc.unique(index.column("pair_id"))) / cpus
    return (indexing + measuring + len(index) * per_tile) / 3600


def _per_tile(seconds: float, tiles: int) -> str:
    return f"{1000 * seconds / max(tiles, 1):.1f} ms each"


def _assumption(told: str, cpus: int) -> str:
    grown = ", all that its autoscaler may start included" if cpus > session.cpus() else ""
    return (
        f"Hours are an estimate: {told}. It supposes that the other tiles take as long, that the cluster has {cpus} "
        f"CPU(s){grown} and none of them is at other work, and that storage keeps up; starting nodes and writing "
        "are not in it."
    )


def _forecast(
    pairs: pa.Table,
    todo: pa.Table,
    already: int,
    failed: list[str],
    tile_size: int,
    hours: float,
    assumption: str,
    sample: Sample,
) -> Forecast:
    size, unsized = _raster_bytes(pairs)
    return Forecast(
        pairs=len(pairs),
        tiles=len(todo),
        usable=round(sample.share * len(todo)),
        already=already,
        failed=dict(Counter(failed).most_common()),
        raster_bytes=size,
        unsized=unsized,
        pixel_bytes=2 * 3 * tile_size**2 * len(todo),
        hours=hours,
        assumption=assumption,
    )


def _raster_bytes(pairs: pa.Table) -> tuple[int, int]:
    """Size of all files that a catalogue names, each once, and the number of those whose size nobody tells."""
    columns = (pairs.column(name).to_pylist() for name in ("before", "after", "before_mask", "after_mask"))
    servers: dict[str, set[str]] = defaultdict(set)
    for uri in {uri for column in columns for uris in column for uri in uris or ()}:
        servers["/".join(uri.split("/")[:3]) if storage.is_remote(uri) else ""].add(uri)
    sizes: list[int | None] = []
    for uris in servers.values():
        sizes += _sizes(sorted(uris))
    return sum(size for size in sizes if size), sum(size is None for size in sizes)


def _sizes(uris: list[str]) -> list[int | None]:
    """Sizes of files on one server."""
    try:
        fs, _ = storage.filesystem(uris[0])
        paths = [uri.partition("://")[2] if storage.is_remote(uri) else storage.absolute(uri) for uri in uris]
        return [info.size if info.type == pafs.FileType.File else None for info in fs.get_file_info(paths)]
    except (StorageError, OSError):
        return [None] * len(uris)
