"""Training on Ray: checks, vocabulary, the MLflow run, Ray Train, and the best bundle at the end."""

from __future__ import annotations

import json
import logging
import re
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch

from hisem import storage, tracking
from hisem.config import flatten, to_dict
from hisem.distributed import session
from hisem.distributed.dataset import EvenTrainingExactValidation, Split, pixels, read_splits
from hisem.distributed.monitor import Event, listening
from hisem.distributed.worker import BUNDLE, train_worker
from hisem.errors import ConfigError, HisemError, StorageError, TrackingError, TrainingError
from hisem.model.hisem import HiSem
from hisem.report.curves import save, training_curves
from hisem.text.vocabulary import Vocabulary
from hisem.training.recipe import Experiment

log = logging.getLogger(__name__)

RUN_FILE = "hisem_run.json"
"""In the run's folder: the MLflow run to go on with, and the experiment it belongs to."""


@dataclass(frozen=True)
class TrainOptions:
    """Where a training run reads, writes and computes."""

    data: str
    """Folder of shards with a train and a val split."""
    storage: str
    """Folder or URI under which the run's folder lies; shared by all nodes of a cluster."""
    name: str
    """Name of the run: the same name goes on where it stopped."""
    tracking: str
    """MLflow tracking URI."""
    workers: int = 1
    """Training processes."""
    gpu: bool = False
    """One GPU per worker."""
    init: str | None = None
    """Model to start from: bundle folder, URI, or `models:/NAME/VERSION`."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError(f"workers is {self.workers}: 1 or more.")
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise ConfigError(f"name is {self.name!r}: letters, digits, '.', '_' and '-' only; it names a folder.")


@dataclass(frozen=True)
class TrainSummary:
    """What a training run came to."""

    bundle: str
    """The best model."""
    metrics: dict[str, float]
    """Validation metrics of the best epoch."""
    history: list[dict[str, float]]
    """One row an epoch, those of earlier calls included; empty where nothing was trained."""
    run_id: str
    seconds: float
    resumed: bool
    finished_before: bool
    """The run was complete already and nothing was trained."""


def train(experiment: Experiment, options: TrainOptions) -> TrainSummary:
    """Train, validate every epoch, and keep the best bundle under `storage/name/bundle`.

    Raises `HisemError` (one of its kinds) for whatever the user can mend.
    """
    began = time.perf_counter()
    recipe = experiment.training
    if recipe.batch_size % options.workers:
        raise ConfigError(
            f"training.batch_size={recipe.batch_size}: must be a multiple of the {options.workers} workers, "
            "as the global batch does not change with their number."
        )
    splits = read_splits(options.data, ("train", "val"))
    folder = storage.join(options.storage, options.name)
    known = _known_run(folder, experiment, splits)
    if known.get("finished") and storage.exists(storage.join(folder, BUNDLE)):
        log.info("run %s is finished: nothing to train (choose another --name to train anew)", options.name)
        return TrainSummary(
            storage.join(folder, BUNDLE), known["metrics"], [], known["run_id"], time.perf_counter() - began, True, True
        )
    vocabulary = Vocabulary.build(
        [sentence for sentences in splits["train"].references for sentence in sentences], recipe.vocabulary_min_count
    )
    with torch.device("meta"):
        HiSem(
            experiment.model, vocabulary, pretrained=False
        )  # sizes that do not fit together are told here, not by a worker
    run = tracking.start_run(options.tracking, options.name, known.get("run_id"))
    state = {"run_id": run.run_id, "experiment": to_dict(experiment), "data": splits["train"].fingerprint()}
    _remember(folder, state)
    run.params(flatten(to_dict(experiment)))
    run.params({"data": options.data, "workers": options.workers, "words": len(vocabulary)})
    run.params({f"{split.name}_tiles": len(split) for split in splits.values()})
    try:
        with session.cluster():
            history, best = _fit(experiment, options, splits, vocabulary, run)
        bundle = storage.join(folder, BUNDLE)
        metrics = _publish(best, bundle, run, history)
    except BaseException as error:
        with suppress(TrackingError):  # which would hide the error that matters
            run.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    run.end()
    _remember(folder, {**state, "finished": True, "metrics": metrics})
    return TrainSummary(bundle, metrics, history, run.run_id, time.perf_counter() - began, bool(known), False)


def _fit(
    experiment: Experiment, options: TrainOptions, splits: dict[str, Split], vocabulary: Vocabulary, run: tracking.Run
) -> tuple[list[dict[str, float]], ray.train.Checkpoint]:
    """Run Ray Train; the epochs' reports and the best checkpoint."""
    share = 1.0 if options.gpu else worker_cpus(options.workers)
    session.require(
        options.workers * share + int(options.gpu),  # one for reading, where workers take whole CPUs
        options.workers if options.gpu else 0,
        f"training with {options.workers} worker(s)",
        "Give fewer --workers or a larger cluster.",
    )
    history: list[dict[str, float]] = []

    def hear(event: Event) -> None:
        kind = event.pop("kind")
        if kind == "step":
            log.info(_step_line(event))
            return
        # On resuming, the last epoch is logged once more: the driver may have died before it was.
        epochs = event["epochs"] if kind == "history" else [event]
        history.extend(epochs)
        run.metrics({k: v for k, v in epochs[-1].items() if k != "epoch"}, int(epochs[-1]["epoch"]))
        if kind == "history":
            log.info("resuming after epoch %d", int(epochs[-1]["epoch"]) + 1)
        else:
            log.info(_epoch_line(event, experiment.training.metric))

    metric = f"val_{experiment.training.metric}"
    with listening(hear) as mailbox:
        trainer = ray.train.torch.TorchTrainer(
            train_worker,
            train_loop_config={
                "experiment": to_dict(experiment),
                "vocabulary": vocabulary.to_dict(),
                "train_rows": len(splits["train"]),
                "tile_size": splits["train"].tile_size,
                "mailbox": mailbox,
                "threads": max(1, int(2 * share)),
            },
            datasets={name: pixels(split) for name, split in splits.items()},
            dataset_config=EvenTrainingExactValidation(),
            scaling_config=ray.train.ScalingConfig(
                num_workers=options.workers,
                use_gpu=options.gpu,
                resources_per_worker={"CPU": share, "GPU": int(options.gpu)},
            ),
            run_config=ray.train.RunConfig(
                name=options.name,
                storage_path=options.storage,
                checkpoint_config=ray.train.CheckpointConfig(
                    num_to_keep=2, checkpoint_score_attribute=metric, checkpoint_score_order="max"
                ),
            ),
        )
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise _cause(error) from error
    best = max(result.best_checkpoints or [], key=lambda pair: pair[1][metric], default=None)
    if best is None:
        raise TrainingError(f"{options.name}: the run ended without a checkpoint.")
    return history, best[0]


def worker_cpus(workers: int) -> float:
    """CPUs that one worker on CPUs reserves: half of its part of the cluster, and of the largest node at most.

    The other half is for the tasks that read the data: reserving everything for the workers would leave them
    none, and hang.
    """
    largest = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
    return max(0.25, round(0.5 * min(session.cpus() / workers, largest), 2))


def _publish(
    best: ray.train.Checkpoint, bundle: str, run: tracking.Run, history: list[dict[str, float]]
) -> dict[str, float]:
    """Copy the best checkpoint's bundle to its final place and into MLflow; its metrics."""
    with best.as_directory() as checkpoint, tempfile.TemporaryDirectory() as scratch:
        source = Path(checkpoint) / BUNDLE
        HiSem.from_pretrained(source)  # what is published can be loaded
        storage.upload(source, bundle)
        run.folder(source, BUNDLE)
        if history:
            picture = Path(scratch) / "training.png"
            figure = training_curves(history)
            save(figure, str(picture))
            run.file(picture, "figures")
        metrics: dict[str, float] = json.loads((source / "metrics.json").read_text())
    return metrics


def _known_run(folder: str, experiment: Experiment, splits: dict[str, Split]) -> dict[str, Any]:
    """What an earlier run of this name left; refuses another experiment or other data under the same name."""
    path = storage.join(folder, RUN_FILE)
    if not storage.exists(path):
        return {}
    try:
        known: dict[str, Any] = json.loads(storage.read_bytes(path))
    except ValueError as error:
        raise StorageError(f"{path}: damaged ({error}). Choose another --name.") from error
    then, now = flatten(known["experiment"]), flatten(to_dict(experiment))
    if differ := [
        f"{k}: {then.get(k)} then, {now.get(k)} now" for k in sorted(then | now) if then.get(k) != now.get(k)
    ]:
        raise ConfigError(
            f"{folder}: a run of this name was started with other settings ({'; '.join(differ[:5])}). "
            "Choose another --name, or give the same settings to resume."
        )
    if known["data"] != splits["train"].fingerprint():
        raise ConfigError(f"{folder}: a run of this name was started on other training data. Choose another --name.")
    return known


def _remember(folder: str, state: dict[str, Any]) -> None:
    storage.write_bytes(storage.join(folder, RUN_FILE), json.dumps(state, indent=1).encode())


def _cause(error: BaseException) -> HisemError:
    """The expected error inside what Ray Train raises, or one that names what happened."""
    failures = getattr(error, "worker_failures", None) or {}
    for failure in failures.values():
        inner = getattr(failure, "cause", failure)
        if isinstance(inner, HisemError):
            return inner
    return TrainingError(f"training failed: {error}")


def _step_line(event: Event) -> str:
    left = (event["steps"] - event["step"]) + (event["epochs"] - 1 - event["epoch"]) * event["steps"]
    return (
        f"epoch {event['epoch'] + 1}/{event['epochs']}  step {event['step']}/{event['steps']}  "
        f"loss {event['loss']:.3f}  {event['pairs_per_second']:.0f} pairs/s  {left} steps left"
    )


def _epoch_line(event: Event, metric: str) -> str:
    waiting = 100 * event["train_waiting"] / max(event["train_seconds"], 1e-9)
    return (
        f"epoch {int(event['epoch']) + 1} done: loss {event['train_loss']:.3f}, validation {metric} "
        f"{event[f'val_{metric}']:.3f}, change accuracy {event['val_change_accuracy']:.3f} "
        f"({event['train_seconds']:.0f} s, {waiting:.0f} % waiting for data)"
    )
