"""The demo: the whole way on a synthetic archive, and what commands work on when none is named."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from hisem import storage, tracking
from hisem.archive.catalogue import read_catalogue
from hisem.archive.synthetic import SyntheticConfig, generate, named_kinds
from hisem.captions.options import Captioning
from hisem.distributed.archive import shard_archive
from hisem.distributed.captioner import CaptionOptions
from hisem.distributed.conclusion import Outcome
from hisem.distributed.evaluator import Evaluation, draw_explanations, draw_samples, evaluate
from hisem.distributed.holding import held
from hisem.distributed.nightly import caption_archive
from hisem.distributed.trainer import TrainOptions, TrainSummary, train
from hisem.report.archive_sheet import write_archive_sheet
from hisem.training.evaluation import TileResult
from hisem.training.presets import preset
from hisem.writable import require_writable

log = logging.getLogger(__name__)

ARCHIVE = SyntheticConfig(scenes=80)
RUN = "demo"


@dataclass(frozen=True)
class DemoSummary:
    """What the demo came to. `kinds` is the share of changed tiles whose kind of change was named right."""

    evaluation: Evaluation
    kinds: float
    captions: Outcome
    training: TrainSummary
    seconds: dict[str, float]
    tracking: str
    picture: str


def demo_archive(root: str) -> str:
    """The folder of the synthetic archive under `root`, rendered if absent."""
    folder = storage.join(root, "archive")
    if storage.exists(storage.join(folder, "catalogue.parquet")):
        generate(ARCHIVE, folder)  # compares the two archives
        return folder
    log.info("rendering the synthetic archive (%d scene pairs) in %s", ARCHIVE.scenes, folder)
    told = [time.monotonic()]

    def tell(done: int, total: int) -> None:
        if time.monotonic() - told[0] > 5 or done == total:
            told[0] = time.monotonic()
            log.info("scenes: %d of %d", done, total)

    with held(folder, "rendering the demo archive"):
        if not generate(ARCHIVE, folder, progress=tell).existing:
            write_archive_sheet(folder, ARCHIVE.tile_size)
    return folder


def demo_shards(root: str) -> str:
    """The folder of the demo archive's shards under `root`, made if absent."""
    archive = demo_archive(root)
    folder = storage.join(root, "shards")
    references = storage.join(archive, "references.parquet")
    shard_archive(storage.join(archive, "catalogue.parquet"), folder, ARCHIVE.tile_size, references)
    return folder


def demo_model(root: str, uri: str) -> str:
    """The bundle of the demo's run under `root`, trained if absent."""
    return _train(root, demo_shards(root), uri).bundle


def run_demo(root: str) -> DemoSummary:
    """Generate, tile, train, evaluate and caption under `root`; what is there already is not done again.

    Raises `BusyError` where another process runs the demo there.
    """
    with held(root, "the demo"):
        return _run_stages(root)


def _run_stages(root: str) -> DemoSummary:
    seconds: dict[str, float] = {}
    require_writable(root)
    uri = tracking.sqlite_uri(root)
    with _stage("generate", seconds):
        archive = demo_archive(root)
    with _stage("tile", seconds):
        shards = demo_shards(root)
    with _stage("train", seconds):
        training = _train(root, shards, uri)
    with _stage("evaluate", seconds):
        evaluation = evaluate(shards, Path(training.bundle))
        kinds = kinds_named(evaluation.results, storage.join(archive, "references.parquet"))
    with _stage("caption", seconds):
        catalogue = read_catalogue(storage.join(archive, "catalogue.parquet"))
        held_out = catalogue.filter(pa.array([split == "test" for split in catalogue.column("split").to_pylist()]))
        captions = caption_archive(held_out, _caption_options(root, training.bundle))
    picture, explained = storage.join(root, "captions.png"), storage.join(root, "explained.png")
    with _stage("figures", seconds):
        draw_samples(shards, evaluation.results, "test", picture)
        draw_explanations(shards, evaluation.results, Path(training.bundle), "test", explained)
    _log_scores(uri, training, evaluation, kinds, (picture, explained))
    return DemoSummary(evaluation, kinds, captions, training, seconds, uri, picture)


def kinds_named(results: list[TileResult], references: str) -> float:
    """Share of changed tiles whose caption names a kind of change, and only kinds that are true."""
    truth = {
        f"{row['pair_id']}/{row['row_off']}-{row['col_off']}-{ARCHIVE.tile_size}": set(row["kinds"])
        for row in storage.read_parquet(references, ["pair_id", "row_off", "col_off", "kinds"]).to_pylist()
    }
    right = [
        bool(named := named_kinds(result.caption)) and named <= truth[result.tile_id]
        for result in results
        if result.changed
    ]
    return sum(right) / len(right)


def _train(root: str, shards: str, uri: str) -> TrainSummary:
    options = TrainOptions(shards, storage.join(root, "runs"), RUN, uri, register=tracking.DEMO)
    return train(preset("demo"), options)


def _caption_options(root: str, bundle: str) -> CaptionOptions:
    return CaptionOptions(
        storage.join(root, "table"),
        Path(bundle),
        "hisem",
        "demo",
        ARCHIVE.tile_size,
        captioning=Captioning(batch_size=64),
    )


def _log_scores(
    uri: str, training: TrainSummary, evaluation: Evaluation, kinds: float, pictures: tuple[str, ...]
) -> None:
    """Add the held-out scores and the pictures to the training's MLflow run."""
    run = tracking.Run(uri, training.run_id)
    scores = evaluation.all_tiles.captions.values() | {"change_accuracy": evaluation.all_tiles.change.accuracy}
    run.metrics({f"test_{name}": value for name, value in scores.items()} | {"test_kinds_named": kinds}, step=0)
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder, "scores.json")
        table.write_text(json.dumps(scores | {"kinds_named": kinds}, indent=1), encoding="utf-8")
        run.file(table, "figures")
    for picture in pictures:
        run.file(Path(picture), "figures")


@contextmanager
def _stage(name: str, seconds: dict[str, float]) -> Iterator[None]:
    log.info("--- %s", name)
    began = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - began
