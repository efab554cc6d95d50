"""What becomes of the best model of a run: its bundle, the run's figures, and its place in the registry."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from hisem import storage, tracking
from hisem.distributed.fit import Job
from hisem.errors import TrainingError
from hisem.model.hisem import HiSem
from hisem.report.curves import training_curves
from hisem.training.checkpoints import BUNDLE


def publish(
    job: Job, data: str, register: str, run: tracking.Run, history: list[dict[str, float]]
) -> tuple[dict[str, float], str]:
    """Copy the best checkpoint's bundle to its final place and into MLflow; its metrics."""
    best = job.checkpoints.best()
    if best is None:
        raise TrainingError(f"{job.name}: the run ended without a checkpoint.")
    with tempfile.TemporaryDirectory() as scratch:
        bundle = job.checkpoints.fetch(best, Path(scratch)) / BUNDLE
        HiSem.from_pretrained(bundle)  # what is published can be loaded
        job.checkpoints.patiently(lambda: storage.upload(bundle, storage.join(job.checkpoints.run, BUNDLE)))
        run.folder(bundle, BUNDLE)
        run.figure(training_curves(history), "figures/losses.png")
        metrics: dict[str, float] = json.loads((bundle / "metrics.json").read_text())
    return metrics, ""
