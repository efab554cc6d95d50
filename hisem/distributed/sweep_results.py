"""What a sweep came to: its trials by what their runs left, calibrated bundles, tables, figures and `best.yaml`.

SWEEP/hisem_sweep.json           what was asked for
SWEEP/trials/TRIAL/              the training run of a trial, its bundle with the calibrated threshold
SWEEP/trials.parquet             one row a trial
SWEEP/reports.parquet            one row an epoch of a trial
SWEEP/figures/*.png
SWEEP/best.yaml                  settings for `train.py --config`
SWEEP/tune.zip, SWEEP/tune/      Ray Tune's own state, by which a sweep continues (see `tune_state.py`)
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml
from matplotlib.figure import Figure

from hisem import storage, tracking
from hisem.config import merge
from hisem.distributed.run_file import REMEDY, RunFile
from hisem.distributed.trial import TRIALS, TrialOrders
from hisem.errors import StorageError, TrainingError
from hisem.model import bundle
from hisem.model.hisem import HiSem
from hisem.report import style, sweep_figures
from hisem.report.sweep import Status, Trial, Value, best_first, train_command
from hisem.text.threshold import ThresholdCurve
from hisem.training.checkpoints import BUNDLE, VALIDATION, Checkpoints
from hisem.training.evaluation import read_results, router_curve

log = logging.getLogger(__name__)

TRIALS_TABLE, REPORTS_TABLE, BEST = "trials.parquet", "reports.parquet", "best.yaml"
FIGURES: dict[str, Callable[[Sequence[Trial], str], Figure]] = {
    "parallel": sweep_figures.parallel_coordinates,
    "parameters": sweep_figures.metric_by_parameter,
    "thresholds": sweep_figures.threshold_curves,
    "speed": sweep_figures.quality_by_speed,
}


@dataclass(frozen=True)
class Ended:
    """How Ray Tune left a trial."""

    name: str
    parameters: dict[str, Value]
    """What was drawn for it."""
    failed: bool
    error: str
    cut: bool
    """The sweep's time was over when it ended."""


def collect(ended: Sequence[Ended], orders: TrialOrders) -> list[Trial]:
    """Each trial with what its run left; calibrates the bundle of each on the way."""
    return [_trial(one, orders) for one in ended]


def _trial(ended: Ended, orders: TrialOrders) -> Trial:
    folder = orders.run(ended.name).folder
    checkpoints = Checkpoints(folder, keep=1, patience=60 * orders.execution.storage_minutes, tell=log.warning)
    history = checkpoints.history()
    run_file = RunFile.read(folder)
    status: Status = "stopped"
    if ended.failed:
        status = "failed"
    elif run_file is not None and run_file.finished:
        status = "finished"
    elif ended.cut:
        status = "unfinished"
    trial = Trial(
        name=ended.name,
        parameters=ended.parameters,
        status=status,
        error=ended.error,
        epochs=len(history),
        metrics={},
        threshold=None,
        captions_per_second=None,
        seconds=sum(report["train_seconds"] + report["val_seconds"] for report in history),
    )
    best = checkpoints.best()
    if best is None:
        return trial
    report = history[best.epoch - 1]
    with tempfile.TemporaryDirectory() as scratch:
        local = checkpoints.fetch(best, Path(scratch))
        results = read_results(local / VALIDATION)
        curve = router_curve(results)
        threshold = _calibrate(local / BUNDLE, curve, storage.join(folder, BUNDLE), checkpoints)
    return replace(
        trial,
        metrics={name.removeprefix("val_"): value for name, value in report.items() if name.startswith("val_")},
        threshold=threshold,
        captions_per_second=len(results) / min(report["val_seconds"] for report in history),
        curve=curve,
    )


def _calibrate(folder: Path, curve: ThresholdCurve | None, uri: str, checkpoints: Checkpoints) -> float | None:
    """Copy a checkpoint's bundle to `uri`, with the router's threshold of the highest BLEU-4, which is returned."""
    if curve is None:
        checkpoints.patiently(lambda: storage.upload(folder, uri))
        return None
    threshold = curve.best().threshold
    metrics = json.loads((folder / bundle.METRICS).read_text(encoding="utf-8"))
    model = HiSem.from_pretrained(folder)
    model.change_threshold = threshold
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch, metrics | {"calibrated": curve.best()._asdict()})
        checkpoints.patiently(lambda: storage.upload(Path(scratch), uri))
    return threshold


def publish(trials: Sequence[Trial], orders: TrialOrders, metric: str, run: tracking.Run) -> None:
    """Write tables, figures and `best.yaml` into the sweep's folder and log them in its MLflow run.

    Raises `TrainingError` where no trial has anything to show.
    """
    folder = orders.folder
    storage.write_parquet(
        pa.Table.from_pylist([_row(trial, orders) for trial in trials]), storage.join(folder, TRIALS_TABLE)
    )
    for trial in trials:
        if trial.status == "failed":
            tracking.fail_child(run.uri, trial.name, run.run_id, trial.error)
    reports = [row for trial in trials for row in _reports(trial, orders)]
    if reports:
        storage.write_parquet(pa.Table.from_pylist(reports), storage.join(folder, REPORTS_TABLE))
    best = next(iter(best_first(trials, metric)))
    if metric not in best.metrics:
        errors = "; ".join(sorted({trial.error for trial in trials if trial.error}))
        raise TrainingError(f"{folder}: no trial came to a validation ({errors or 'the time was over before'}).")
    storage.write_bytes(storage.join(folder, BEST), _best_yaml(best, orders, metric).encode())
    run.metrics({f"best_{name}": value for name, value in best.metrics.items()}, 0)
    run.tags({"best_trial": best.name, "trials": str(len(trials))})
    with tempfile.TemporaryDirectory() as scratch:
        for name, draw in FIGURES.items():
            try:
                figure = draw(trials, metric)
            except ValueError as error:  # one trial has no curve to show, or nothing was varied
                log.info("no figure %s: %s", name, error)
                continue
            storage.write_bytes(storage.join(folder, "figures", f"{name}.png"), style.png(figure))
            run.figure(figure, f"figures/{name}.png")
        for name in (TRIALS_TABLE, REPORTS_TABLE, BEST):
            local = Path(scratch) / name
            local.write_bytes(storage.read_bytes(storage.join(folder, name)))
            run.file(local, "sweep")


def read_trials(folder: str) -> list[Trial]:
    """The trials of a sweep that is done."""
    path = storage.join(folder, TRIALS_TABLE)
    rows = storage.read_parquet(path).to_pylist()
    names = {field.name for field in fields(Trial)}
    try:
        return [_unpacked({name: value for name, value in row.items() if name in names}) for row in rows]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StorageError(f"{path}: damaged ({type(error).__name__}: {error}). {REMEDY}") from error


def close_children(uri: str, folder: str, status: str, only: str | None = None) -> None:
    """End the MLflow runs of trials (of the trial `only`) that are still open: their process may have been killed."""
    there = storage.join(folder, TRIALS)
    for name in [only] if only else storage.list_folders(there):
        run_file = RunFile.read(storage.join(there, name))
        if run_file is not None and run_file.run_id is not None:
            tracking.end_if_open(uri, run_file.run_id, status)


def _row(trial: Trial, orders: TrialOrders) -> dict[str, Any]:
    folder = orders.run(trial.name).folder
    run_file = RunFile.read(folder)
    return {
        **asdict(trial),
        # Parquet has no struct without fields
        "metrics": trial.metrics or None,
        "parameters": trial.parameters or None,
        "bundle": storage.join(folder, BUNDLE) if trial.metrics else None,
        "run_id": run_file.run_id if run_file else None,
    }


def _unpacked(row: dict[str, Any]) -> Trial:
    curve = row["curve"]
    row["curve"] = curve and ThresholdCurve(**{name: tuple(values) for name, values in curve.items()})
    for name in ("metrics", "parameters"):  # rows of a struct have all its fields
        row[name] = {key: value for key, value in (row[name] or {}).items() if value is not None}
    return Trial(**row)


def _reports(trial: Trial, orders: TrialOrders) -> list[dict[str, Any]]:
    history = Checkpoints(orders.run(trial.name).folder, keep=1).history()
    return [{"trial": trial.name, **report, "epoch": int(report["epoch"])} for report in history]


def _best_yaml(trial: Trial, orders: TrialOrders, metric: str) -> str:
    """The experiment of a trial as a file of settings, with the calibrated threshold."""
    run_file = RunFile.read(orders.run(trial.name).folder)
    settings = run_file.experiment if run_file else {}
    if trial.threshold is not None:
        settings = merge(settings, {"model": {"hasd": {"threshold": trial.threshold}}})
    command = train_command("best.yaml", orders.data).replace("\n", "?")
    head = (
        f"# The best trial of the sweep {orders.folder}: {trial.name}, {metric} {trial.metrics[metric]:.4f} on the\n"
        f"# validation split. Train with it: {command}\n"
    )
    return head + yaml.safe_dump(settings, sort_keys=False)
