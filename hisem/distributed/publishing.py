"""What becomes of the best model of a run: its bundle, the run's figures, and its place in the registry."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from hisem import storage, tracking
from hisem.distributed.champion import crown, version_tags
from hisem.distributed.evaluator import draw_samples
from hisem.distributed.fit import Job
from hisem.distributed.worker import VALIDATION
from hisem.errors import TrainingError
from hisem.model import bundle
from hisem.model.hisem import HiSem
from hisem.report.curves import training_curves
from hisem.report.routing import expert_load_figure, threshold_figure
from hisem.training.checkpoints import BUNDLE
from hisem.training.evaluation import TileResult, read_results, router_curve

TILES = 12
"""Validation tiles that are drawn."""

FIGURES = "figures"


def publish(
    job: Job, data: str, register: str, run: tracking.Run, history: list[dict[str, float]]
) -> tuple[dict[str, float], str]:
    """Copy the best checkpoint's bundle to its final place and into MLflow, draw, and register under that name.

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
        job.checkpoints.patiently(lambda: storage.upload(folder, storage.join(job.checkpoints.run, BUNDLE)))
        run.folder(folder, BUNDLE)
        metrics: dict[str, float] = json.loads((folder / bundle.METRICS).read_text(encoding="utf-8"))
        _draw(run, model, data, history, read_results(checkpoint / VALIDATION))
        if not register:
            return metrics, ""
        digest = bundle.digest(folder)
    metric = job.experiment.training.metric
    score, split = metrics[f"val_{metric}"], job.splits["val"]
    version = tracking.register(run, digest, version_tags(score, metric, split), register)
    verdict = crown(run, version, score, metric, split, register)
    return metrics, f"models:/{register}/{version} is registered; the alias champion {verdict.reason}."


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
