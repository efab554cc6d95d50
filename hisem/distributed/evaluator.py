"""Scoring a model on a split of shards, captioned by actors that Ray Data feeds."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
import torch

from hisem import storage
from hisem.distributed import session
from hisem.distributed.archive import read_benchmark
from hisem.distributed.dataset import Split, decode_image, pixels, read_splits, shard_files
from hisem.distributed.shared_storage import require_shared
from hisem.distributed.shipping import Shipped, ship, unpack
from hisem.errors import ConfigError, DatasetError
from hisem.model.hisem import HiSem
from hisem.report.contact_sheet import TilePair, write_contact_sheet
from hisem.report.curves import save
from hisem.report.explanation import ExplainedTile
from hisem.report.explanation import draw_explanations as explanation_figure
from hisem.text.metrics import Protocol
from hisem.text.published_scores import PUBLISHED, PublishedTable
from hisem.text.scoring import Baselines, ScoreRow, score_table
from hisem.text.threshold import ThresholdCurve
from hisem.text.vocabulary import UNCHANGED_SENTENCE
from hisem.training.batches import Collate, image_tensor
from hisem.training.evaluation import TileResult, caption_batches, expert_load, results_table, router_curve

log = logging.getLogger(__name__)

MODEL = "HiSem"
BATCH = 64

SHARE = 0.5
"""CPUs that a captioner, and a task that reads, reserves. Less than one, so that both fit on a single CPU."""

SMALL = 500
"""Fewer tiles than this say little about a model."""

Benchmark = Literal["auto", "levir-cc", "whu-cdc", "none"]
"""Whose published scores to compare with: those that the shards name, those of one benchmark, or none."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of the model and the trivial captioners, and what the model said of each tile."""

    rows: list[ScoreRow]
    results: list[TileResult]
    threshold: float
    """The model's own, in [0, 1]."""
    curve: ThresholdCurve | None
    """BLEU-4 and change F1 over the router's threshold, by the protocol of `rows`; None without a router."""
    expert_load: list[int] | None
    """How often each expert was chosen (see `hisem.training.evaluation.expert_load`); None without a router."""
    published: PublishedTable | None
    """The published scores on the benchmark that the tiles are of."""
    remarks: list[str]
    """In sentences, with what care the scores are to be read."""
    seconds: float

    @property
    def all_tiles(self) -> ScoreRow:
        """The model's scores on all tiles."""
        return next(row for row in self.rows if row.captioner == MODEL and row.tiles == "all")

    @property
    def changed_tiles(self) -> ScoreRow | None:
        """The model's scores on the changed tiles alone, None where there are none."""
        return next((row for row in self.rows if row.captioner == MODEL and row.tiles == "changed"), None)

    def table(self) -> pa.Table:
        """One row a tile, the fields of `TileResult`."""
        return results_table(self.results)


def evaluate(
    folder: str,
    model: Path,
    split: str = "test",
    protocol: Protocol = "words",
    beam: int = 1,
    *,
    captioners: int = 1,
    gpu: bool = False,
    benchmark: Benchmark = "auto",
) -> Evaluation:
    """Score the bundle in `model` on a split of the shards in `folder`, with so many actors, on a GPU each or on CPUs.

    The trivial captioners know the references of the training split, where there is one with changed
    tiles; else only the one that says nothing changed takes part. Under protocol `ids` the model may
    emit UNK, which counts as the word it is in the published tables.

    Raises `ResourceError` where the cluster can never run the actors and what feeds them.
    """
    began = time.perf_counter()
    for name, value in (("beam", beam), ("captioners", captioners)):
        if value < 1:
            raise ConfigError(f"{name} is {value}: 1 or more.")
    bundle = HiSem.from_pretrained(model)  # one that does not load is told here, not by an actor
    labelled, train = _read(folder, split)
    baselines = _baselines(train, len(labelled))
    with session.cluster():
        require_shared(read=shard_files([labelled]))
        results = caption_split(labelled, model, protocol == "ids", beam, captioners, gpu)
    captions: dict[str, Sequence[str]] = {MODEL: [result.caption for result in results]}
    captions |= baselines
    rows = score_table(
        captions,
        [result.references for result in results],
        [result.changed for result in results],
        predicted={MODEL: [result.predicted for result in results]},
        protocol=protocol,
        vocabulary=bundle.vocabulary,
    )
    load = expert_load(results)
    published = _published(folder, benchmark)
    return Evaluation(
        rows,
        results,
        bundle.change_threshold,
        router_curve(results, bundle.vocabulary if protocol == "ids" else None),
        None if load is None else load.tolist(),
        published,
        _remarks(published, split, protocol, len(results)),
        time.perf_counter() - began,
    )


def draw_samples(folder: str, results: Sequence[TileResult], split: str, uri: str, count: int = 8) -> None:
    """A picture of `count` tiles with references and caption: changed ones first, a quarter unchanged."""
    wanted = _samples(results, count)
    images = _images(folder, split, {result.tile_id for result in wanted})
    pairs = [TilePair(*images[r.tile_id], r.references, r.tile_id, r.caption) for r in wanted]
    write_contact_sheet(pairs, uri)


def draw_explanations(
    folder: str, results: Sequence[TileResult], model: Path, split: str, uri: str, count: int = 6
) -> None:
    """A picture of what the bundle in `model` looked at in `count` tiles (see `hisem.report.explanation`)."""
    wanted = _samples(results, count)
    images = _images(folder, split, {result.tile_id for result in wanted})
    pairs = [images[result.tile_id] for result in wanted]
    hisem = HiSem.from_pretrained(model)
    before, after = (image_tensor([pair[date] for pair in pairs]) for date in (0, 1))
    tiles = [
        ExplainedTile(*pair, why.change_map, why.experts, result.caption, result.change_probability)
        for pair, result, caption in zip(pairs, wanted, hisem.caption(before, after, explain=True), strict=True)
        if (why := caption.explanation)  # always, as it was asked for
    ]
    save(explanation_figure(tiles, hisem.config.hasd.moe.experts), uri)


class SplitCaptioner:
    """An actor that captions labelled tiles; there are so many `captioners` of them."""

    def __init__(self, shipped: Shipped, keep_unknown: bool, beam: int, captioners: int, gpu: bool) -> None:
        spare = int(min(os.cpu_count() or 1, session.cpus())) - 1  # one for Ray Data and the driver
        torch.set_num_threads(max(1, spare // captioners))
        self._model = unpack(shipped).to("cuda" if gpu else "cpu")
        self._keep_unknown, self._beam = keep_unknown, beam
        self._collate = Collate(self._model.vocabulary, self._model.config.decoder.max_length, 0, 0)

    def __call__(self, columns: dict[str, np.ndarray]) -> pa.Table:
        """PAIR_COLUMNS to the fields of TileResult."""
        return results_table(caption_batches(self._model, [self._collate(columns)], self._beam, self._keep_unknown))


def caption_split(
    labelled: Split, model: Path, keep_unknown: bool = False, beam: int = 1, captioners: int = 1, gpu: bool = False
) -> list[TileResult]:
    """What the bundle in `model` says of every tile of a split, sorted by its id, on an open cluster.

    Raises `ResourceError` where the cluster can never run so many captioners and what feeds them.
    """
    session.require(
        SHARE * (captioners + 1),
        captioners if gpu else 0,
        f"scoring with {captioners} captioner(s)",
        "Give fewer --captioners or a larger cluster.",
    )
    shipped = ship(model)
    found = pixels(labelled, num_cpus=SHARE).map_batches(
        SplitCaptioner,
        fn_constructor_args=(shipped, keep_unknown, beam, captioners, gpu),
        batch_format="numpy",
        batch_size=BATCH,
        compute=ray.data.ActorPoolStrategy(size=captioners),
        num_cpus=SHARE,
        num_gpus=1 if gpu else 0,
    )
    results = [TileResult(**row) for batch in _tables(found) for row in batch.to_pylist()]
    return sorted(results, key=lambda result: result.tile_id)


def _tables(dataset: ray.data.Dataset) -> Iterator[pa.Table]:
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow")


def _read(folder: str, split: str) -> tuple[Split, Split | DatasetError]:
    """The split to score, and the training split or why there is none."""
    try:
        both = read_splits(folder, (split, "train"))
        return both[split], both["train"]
    except DatasetError as error:
        return read_splits(folder, (split,))[split], error


def _baselines(train: Split | DatasetError, count: int) -> dict[str, list[str]]:
    try:
        if isinstance(train, DatasetError):
            raise train
        return Baselines.from_training(train.references, train.changed).captions(count)
    except DatasetError as error:
        log.warning("The captioner of the most frequent change takes no part: %s", error)
        return {"always unchanged": [UNCHANGED_SENTENCE] * count}


def _published(folder: str, benchmark: Benchmark) -> PublishedTable | None:
    name = read_benchmark(folder) if benchmark == "auto" else benchmark.upper()
    return PUBLISHED.get(name or "")


def _remarks(published: PublishedTable | None, split: str, protocol: Protocol, tiles: int) -> list[str]:
    remarks = []
    if published and (differences := published.differences(split, protocol, tiles)):
        remarks.append(f"Not comparable with the published scores: {'; '.join(differences)}.")
    if tiles < SMALL:
        remarks.append(f"Only {tiles} tiles: at this size the scores say that everything runs, and no more.")
    return remarks


def _images(folder: str, split: str, tiles: set[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    fs, _ = storage.filesystem(folder)
    images = {}
    for path in storage.list_files(folder, ".parquet"):
        keep = (pc.field("split") == split) & pc.field("tile_id").isin(sorted(tiles))
        columns = ["tile_id", "before_image", "after_image"]
        for row in storage.read_parquet_file(path, fs, columns, filters=keep).to_pylist():
            tile = row["tile_id"]
            before, after = (
                decode_image(row[f"{name}_image"], f"{path}: {tile}: its {name} image") for name in ("before", "after")
            )
            images[tile] = before, after
    return images


def _samples(results: Sequence[TileResult], count: int) -> list[TileResult]:
    """`count` results, spread over the split: changed tiles first, then a quarter unchanged ones."""
    changed = [result for result in results if result.changed]
    still = [result for result in results if not result.changed]
    return _spread(changed, count - count // 4) + _spread(still, count // 4)


def _spread(results: list[TileResult], count: int) -> list[TileResult]:
    """Up to `count` of them, evenly spaced."""
    step = max(1, len(results) // max(1, count))
    return results[::step][:count]
