"""What becomes of the best model of a run: its bundle, the run's figures, and its place in the registry."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hisem import storage, tracking
from hisem.distributed.champion import Rights, crown, version_tags
from hisem.distributed.dataset import Split
from hisem.distributed.evaluator import draw_samples
from hisem.distributed.fit import Job
from hisem.distributed.holding import Require
from hisem.distributed.run_file import RunFile
from hisem.errors import TrainingError
from hisem.model import bundle
from hisem.model.hisem import HiSem
from hisem.report.curves import training_curves
from hisem.report.routing import expert_load_figure, threshold_figure
from hisem.training.checkpoints import BUNDLE, VALIDATION
from hisem.training.evaluation import TileResult, read_results, router_curve


@dataclass(frozen=True)
class Registration:
    """How the best model of a run is registered."""

    name: str
    """The registered model; empty registers nothing."""
    synthetic: bool
    """The run was trained on synthetic data."""
    promote: bool
    """The alias `champion` may move although the champion was validated on other data."""
    require: Require
    """Raises where this driver has lost the run."""


TILES = 12
"""Validation tiles that are drawn."""

FIGURES = "figures"


def publish(
    job: Job, data: str, registration: Registration, run: tracking.Run, history: list[dict[str, float]]
) -> tuple[dict[str, float], str]:
    """Copy the best checkpoint's bundle to its final place and into MLflow, draw, and register it.

    Returns the best epoch's metrics, and in words what became of the model in the registry. What was done by an
    earlier call that was cut off is done again, or found done.
    """
    best = job.checkpoints.best()
    if best is None:
        raise TrainingError(f"{job.name}: the run ended without a checkpoint.")
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = job.checkpoints.fetch(best, Path(scratch))
        folder = checkpoint / BUNDLE
        model = HiSem.from_pretrained(folder)  # what is published can be loaded
        registration.require()
        job.checkpoints.patiently(lambda: storage.upload(folder, storage.join(job.checkpoints.run, BUNDLE)))
        run.folder(folder, BUNDLE)
        metrics: dict[str, float] = json.loads((folder / bundle.METRICS).read_text(encoding="utf-8"))
        _draw(run, model, data, history, read_results(checkpoint / VALIDATION))
        if not registration.name:
            return metrics, ""
        digest = bundle.digest(folder)
    metric = job.experiment.training.metric
    return metrics, _register(run, digest, metrics[f"val_{metric}"], metric, job.splits["val"], registration)


def promote(run_file: RunFile, uri: str, metric: str, split: Split, registration: Registration) -> RunFile:
    """Register the model of a finished run where it is not yet, and move the alias `champion` if it is better.

    Raises `TrackingError` where the store at `uri` lacks the run, and `TrainingError` for a run without that metric.
    """
    score = run_file.metrics.get(f"val_{metric}")
    if score is None or run_file.run_id is None or not registration.name:
        raise TrainingError(f"{run_file.folder}: nothing to promote; the run has no {metric}, or registers nothing.")
    run = tracking.Run(uri, run_file.run_id)
    with tempfile.TemporaryDirectory() as scratch:
        digest = bundle.digest(storage.download(storage.join(run_file.folder, BUNDLE), Path(scratch)))
    registered = _register(run, digest, score, metric, split, registration)
    registration.require()
    return run_file.done(run_file.metrics, registered)


def _register(
    run: tracking.Run, digest: str, score: float, metric: str, split: Split, registration: Registration
) -> str:
    """Register the run's bundle; what became of it and of the alias `champion`, as a sentence."""
    name = registration.name
    registration.require()
    version = tracking.register(run, digest, version_tags(score, metric, split), name)
    rights = Rights(registration.promote, registration.synthetic and name != tracking.DEMO, registration.require)
    verdict = crown(run, version, score, metric, split, name, rights)
    return f"models:/{name}/{version} is registered; the alias champion {verdict.reason}."


def _draw(
    run: tracking.Run,
    model: HiSem,
    data: str,
    history: Sequence[Mapping[str, float]],
    results: Sequence[TileResult],
) -> None:
    """Log the run's figures: losses, threshold curve, expert load, and tiles with their captions."""
    # What the best threshold would give is in the figure of thresholds.
    told = [{name: value for name, value in epoch.items() if "best_" not in name} for epoch in history]
    run.figure(training_curves(told), f"{FIGURES}/losses.png")
    if curve := router_curve(results):
        run.figure(threshold_figure(curve, model.change_threshold), f"{FIGURES}/threshold.png")
        experts = range(model.config.hasd.moe.experts)
        loads = [[epoch[f"val_expert_{number}"] for number in experts] for epoch in history]
        run.figure(expert_load_figure(loads), f"{FIGURES}/experts.png")
    with tempfile.TemporaryDirectory() as scratch:
        picture = Path(scratch) / "tiles.png"
        draw_samples(data, results, "val", str(picture), TILES)
        run.file(picture, FIGURES)
