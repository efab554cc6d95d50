"""Captioning an archive on Ray: tiles are read, captioned and put aside as rows, never written as pixels."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
import torch

from hisem import tracking
from hisem.archive.catalogue import read_catalogue
from hisem.archive.grid import require_tiling
from hisem.archive.options import DEFAULTS, ReadOptions
from hisem.archive.tiles import Tile, read_tiles
from hisem.captions import table as captions
from hisem.distributed import session
from hisem.distributed.index import index_archive, tile_blocks
from hisem.distributed.shipping import Shipped, ship, unpack
from hisem.errors import ConfigError
from hisem.model.bundle import digest as bundle_digest
from hisem.model.hisem import HiSem
from hisem.schemas import CAPTION, FAILED, INDEX, OK, QUALITY_FIELDS, SKIPPED, conform
from hisem.training.batches import image_tensor

log = logging.getLogger(__name__)

PIXELS = [pa.field("before_pixels", pa.binary()), pa.field("after_pixels", pa.binary())]
"""Both dates of a tile in flight: raw uint8 RGB, tile_size * tile_size * 3 bytes; null where not ok."""

READ = pa.schema([*INDEX, *QUALITY_FIELDS, *PIXELS])
READ_ROWS = 16
"""Tiles with pixels that a reader holds at once."""
STAGE_ROWS = 512
"""Rows staged together: what a killed run loses at most, times the blocks in flight."""


@dataclass(frozen=True)
class CaptionOptions:
    """What to caption, with what, and where the table lies."""

    output: str
    model: Path
    """Local folder of the bundle."""
    model_name: str
    model_version: str
    tile_size: int = 256
    batch_size: int = 32
    """Tiles per forward pass."""
    captioners: int = 1
    """Captioning actors."""
    gpu: bool = False
    """One GPU per captioner."""
    beam: int = 1
    """Beam width; 1 is greedy."""
    precision: Literal["float32", "bf16"] = "float32"
    """Arithmetic: `bf16` is autocast, for a GPU."""
    compile: bool = False
    """Compile the model in each captioner: faster after a first batch that takes minutes."""
    reading: ReadOptions = DEFAULTS
    """How scenes are cut and read."""

    def __post_init__(self) -> None:
        for name in ("tile_size", "batch_size", "captioners", "beam"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: 1 or more.")
        require_tiling(self.tile_size, self.reading.overlap)


@dataclass(frozen=True)
class CaptionSummary:
    """What a captioning run did."""

    output: str
    pairs: int
    tiles: int
    """Tiles of the catalogue's pairs, failed pairs counted once."""
    already: int
    """Tiles this model had captioned before."""
    statuses: dict[str, int]
    """Rows added by this run."""
    errors: dict[str, int]
    changed: int
    captions: dict[str, int]
    """The most frequent captions of changed tiles."""
    seconds: float

    def rows(self) -> dict[str, object]:
        """What a person is told: what, how much."""
        return {
            "pairs": self.pairs,
            "tiles": self.tiles,
            "captioned before": self.already,
            **{f"rows {status}": count for status, count in self.statuses.items()},
            "changed": self.changed,
            **{f"failed: {reason}": count for reason, count in self.errors.items()},
            **{f"caption: {text}": count for text, count in self.captions.items()},
            "seconds": self.seconds,
        }


def caption_job(
    catalogue: str,
    model: str,
    output: str,
    *,
    tracking_uri: str | None,
    scratch: Path,
    **settings: Any,
) -> tuple[pa.Table, CaptionOptions]:
    """What `caption_archive` takes, from a catalogue file and a bundle's folder, URI or `models:/` reference.

    `scratch` holds a remote bundle while the job runs; `settings` are fields of `CaptionOptions`.
    """
    pairs = read_catalogue(catalogue)
    fixed = tracking.pin_model(model, tracking_uri)  # an alias may move while the job runs
    folder = tracking.resolve_model(fixed, tracking_uri, scratch)
    HiSem.from_pretrained(folder)  # a bundle that does not load is told here, not by an actor
    name, version = tracking.model_identity(fixed, tracking_uri, bundle_digest(folder))
    return pairs, CaptionOptions(output, folder, name, version, **settings)


def caption_archive(catalogue: pa.Table, options: CaptionOptions) -> CaptionSummary:
    """Caption every tile of the catalogue that this model has no row for, and publish the rows.

    Rows that an interrupted run staged are published first. A tile or pair that cannot be read becomes
    a failed row with the reason. Raises `SchemaError` for an output of another schema, and `StorageError` for
    one whose tiles were read otherwise, before Ray is started.
    """
    captions.captioned_tiles(options.output, "")
    captions.require_settings(options.output, options.reading.pixel_settings())
    with session.cluster():
        return _caption(catalogue, options)


def _caption(catalogue: pa.Table, options: CaptionOptions) -> CaptionSummary:
    began = time.perf_counter()
    require_captioners(options)
    digest = bundle_digest(options.model)
    if left := captions.publish(options.output):
        log.info("published %d row(s) that an interrupted run had finished", left)
    index, failed = index_archive(catalogue, options.tile_size, options.reading)
    todo, broken = remaining(index, failed, options.output, digest)
    counts: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    sentences: Counter[str] = Counter()

    def count(rows: pa.Table) -> None:
        counts.update(rows.column("status").to_pylist())
        errors.update(filter(None, rows.filter(pc.equal(rows.column("status"), FAILED)).column("error").to_pylist()))
        changed = rows.filter(pc.fill_null(rows.column("changed"), False))
        counts["changed"] += len(changed)
        sentences.update(changed.column("caption").to_pylist())

    run = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid4().hex[:8]}"
    if len(broken):
        rows = stamped(broken, options, digest)
        captions.stage(rows, options.output, f"{run}-pairs")
        count(rows)
    for number, rows in enumerate(_captioned(todo, options, digest)):
        captions.stage(rows, options.output, f"{run}-{number:06d}")
        count(rows)
        log.info("captioned %d of %d tiles", sum(counts[s] for s in (OK, SKIPPED, FAILED)), len(todo) + len(broken))
    captions.publish(options.output)
    captions.supersede(options.output, set(index.column("pair_id").to_pylist()), digest)
    return CaptionSummary(
        options.output,
        len(catalogue),
        len(index) + len(failed),
        len(index) + len(failed) - len(todo) - len(broken),
        {status: counts[status] for status in (OK, SKIPPED, FAILED)},
        dict(errors.most_common()),
        counts["changed"],
        dict(sentences.most_common(5)),
        time.perf_counter() - began,
    )


def remaining(index: pa.Table, failed: pa.Table, output: str, digest: str) -> tuple[pa.Table, pa.Table]:
    """The rows of the index, and of the pairs that cannot be opened, that a model has no row for in `output`."""
    known = pa.array(sorted(captions.captioned_tiles(output, digest)), pa.string())
    todo, broken = (rows.filter(pc.invert(pc.is_in(rows.column("tile_id"), known))) for rows in (index, failed))
    return todo, broken


def require_captioners(options: CaptionOptions) -> None:
    """Raise `ResourceError` where the captioners, and what feeds them, can never run together."""
    # On CPUs Ray lets each captioner read its own tiles; a captioner with a GPU is fed by readers beside it.
    session.require(
        options.captioners + int(options.gpu),
        options.captioners if options.gpu else 0,
        f"captioning with {options.captioners} captioner(s)",
        "Give fewer --captioners or a larger cluster.",
    )


def _captioned(index: pa.Table, options: CaptionOptions, digest: str) -> Iterator[pa.Table]:
    """Stream the rows of the index through readers and captioners; tables of schema CAPTION."""
    if not len(index):
        return
    size, reading = options.tile_size, options.reading
    shipped = ship(options.model)
    dataset = (
        tile_blocks(index, reading)
        .map_batches(
            lambda block: read_pixels(block.drop_columns(["block"]), size, reading),
            batch_format="pyarrow",
            batch_size=None,
        )
        .map_batches(
            Captioner,
            fn_constructor_args=(shipped, options, digest),
            batch_format="pyarrow",
            batch_size=options.batch_size,
            compute=ray.data.ActorPoolStrategy(size=options.captioners),
            num_cpus=1,
            num_gpus=1 if options.gpu else 0,
        )
    )
    yield from dataset.iter_batches(batch_size=STAGE_ROWS, batch_format="pyarrow")


def read_pixels(block: pa.Table, tile_size: int, options: ReadOptions = DEFAULTS) -> Iterator[pa.Table]:
    """The rows of an index block with status and pixels (schema READ), some at a time; failures are rows."""
    tiles = read_tiles(block, tile_size, options)
    while rows := [_row(tile) for tile in islice(tiles, READ_ROWS)]:
        yield pa.Table.from_pylist(rows, schema=READ)


def _row(tile: Tile) -> dict[str, object]:
    return {
        **tile.row,
        **tile.quality(),
        "before_pixels": None if tile.before is None else tile.before.tobytes(),
        "after_pixels": None if tile.after is None else tile.after.tobytes(),
    }


class Captioner:
    """An actor that holds the model and turns read tiles into rows of the captions table."""

    def __init__(self, shipped: Shipped, options: CaptionOptions, digest: str) -> None:
        self._options, self._digest = options, digest
        self._device = torch.device("cuda" if options.gpu else "cpu")
        torch.set_num_threads(max(1, int(min(os.cpu_count() or 1, session.cpus())) // options.captioners))
        self._model = unpack(shipped).to(self._device)
        if options.compile:
            self._model.compile()

    def __call__(self, tiles: pa.Table) -> pa.Table:
        """Schema READ to schema CAPTION, row by row in order."""
        readable = np.flatnonzero(pc.equal(tiles.column("status"), OK).to_numpy())
        rows: list[dict[str, object]] = [{} for _ in range(len(tiles))]
        if len(readable):
            some = tiles.take(readable)
            before, after = (
                image_tensor(images(some.column(name), self._options.tile_size)).to(self._device)
                for name in ("before_pixels", "after_pixels")
            )
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._options.precision == "bf16"):
                captions = self._model.caption(before, after, self._options.beam)
            for row, caption in zip(readable, captions, strict=True):
                rows[row] = {
                    "caption": caption.text,
                    "changed": caption.changed,
                    "change_probability": caption.change_probability,
                    "caption_logprob": caption.logprob,
                }
        found = {name: [row.get(name) for row in rows] for name in _FOUND}
        read = tiles.drop_columns([field.name for field in PIXELS])
        for name, values in found.items():
            read = read.append_column(CAPTION.field(name), [pa.array(values, CAPTION.field(name).type)])
        return stamped(read, self._options, self._digest)


_FOUND = ("caption", "changed", "change_probability", "caption_logprob")


def images(column: pa.ChunkedArray, size: int) -> np.ndarray:
    """Raw pixels to uint8 B size size 3."""
    return np.stack([np.frombuffer(raw.as_buffer(), np.uint8).reshape(size, size, 3) for raw in column])


def stamped(rows: pa.Table, options: CaptionOptions, digest: str) -> pa.Table:
    """`rows` with the model's identity and the time, conforming to CAPTION; columns still unknown are null."""
    stamps = {
        "model_name": options.model_name,
        "model_version": options.model_version,
        "model_digest": digest,
        "captioned_at": datetime.now(UTC),
    }
    for name, value in stamps.items():
        rows = rows.append_column(CAPTION.field(name), [pa.array([value] * len(rows), CAPTION.field(name).type)])
    return conform(rows, CAPTION, "captions", optional=CAPTION.names)
