"""What one Ray Train worker does: build or restore, then epochs of training and validation.

Shapes are those of `hisem.training`.
"""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import ray
import ray.exceptions
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import nn

from hisem import storage
from hisem.distributed import run_file
from hisem.distributed.metrics import TrainingMetrics
from hisem.distributed.session import expected
from hisem.distributed.shipping import Shipped, unpack
from hisem.distributed.supervisor import DrainError
from hisem.errors import HisemError, TrainingError
from hisem.model.hisem import HiSem
from hisem.model.warm_start import start_from
from hisem.text.meteor import Meteor
from hisem.text.metrics import CaptionScorer
from hisem.text.vocabulary import Vocabulary
from hisem.training.batches import Batch, Collate, local_batch_sizes, rebatch
from hisem.training.checkpoints import (
    BUNDLE,
    VALIDATION,
    Checkpoints,
    Progress,
    load_optimizer,
    read_progress,
    save_optimizer,
)
from hisem.training.epoch import EpochSums, StepReport, make_optimizer, train_epoch
from hisem.training.evaluation import TileResult, caption_batches, expert_load, results_table, router_curve, score
from hisem.training.exchange import gathered, of_first
from hisem.training.recipe import NEED_METEOR, Experiment

SHUFFLE_BYTES = 256 * 2**20
"""Pixels mixed by each worker's shuffle buffer."""

DRAIN_STEPS = 10
"""Steps after which the workers ask whether a node is to be taken away: a round through Ray for all of them."""

EVERY_SECONDS = 5.0
"""Least time between two progress lines."""


@dataclass(frozen=True)
class Orders:
    """What the driver gives each worker."""

    experiment: Experiment
    vocabulary: Vocabulary
    init: Shipped | None
    """The bundle that training starts from, instead of the backbone's weights alone."""
    run: str
    """Folder or URI of the run's checkpoints."""
    holder: str
    """Id of the driver, as the run's file has it."""
    train_rows: int
    tile_size: int
    threads: int
    keep: int
    """Best checkpoints to keep."""
    checkpoint_seconds: float
    """Time between two checkpoints inside an epoch."""
    patience: float
    """Seconds for which a storage that fails is tried again."""
    supervisor: Any
    """The actor of `hisem.distributed.supervisor`."""


def train_worker(config: dict[str, Any]) -> None:
    """The training loop that Ray Train runs on every worker; `config` holds `orders`.

    An error that starting anew would not mend ends the run: the supervisor hears of it.
    """
    orders: Orders = config["orders"]
    ray.get(orders.supervisor.begin.remote())
    try:
        Worker(orders).train()
    except (HisemError, ray.exceptions.RayError) as error:
        if (reason := expected(error)) is not None:
            ray.get(orders.supervisor.give_up.remote(reason))
        raise


class Worker:
    """One of the processes that train a model together."""

    def __init__(self, orders: Orders) -> None:
        self.orders = orders
        self.recipe = orders.experiment.training
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.metrics = TrainingMetrics(context.get_experiment_name(), first=self.rank == 0)
        torch.set_num_threads(orders.threads)
        if self.rank == 0 and self.recipe.metric in NEED_METEOR:
            with Meteor():  # told now, and not after the first epoch
                pass
        guard = partial(run_file.require_holder, orders.run, orders.holder)
        self.checkpoints = Checkpoints(orders.run, orders.keep, orders.patience, self._tell, guard)
        if not self.checkpoints.patiently(lambda: storage.exists(storage.join(orders.run, run_file.NAME))):
            raise TrainingError(
                f"{orders.run}: worker {self.rank} on {socket.gethostname()} does not see the run's folder. Give "
                "--storage that all nodes share: an object store or a network file system."
            )
        self.hisem, self.optimizer, self.progress = self._start()
        if self.recipe.compile:
            self.hisem.compile()
        self.model: nn.Module = ray.train.torch.prepare_model(
            self.hisem, move_to_device=False, parallel_strategy_kwargs={"find_unused_parameters": True}
        )
        self.sizes = local_batch_sizes(orders.train_rows // self.world, self.recipe.batch_size, self.rank, self.world)
        self.saved = time.monotonic()
        self.steps = 0
        """Since this process started."""

    def train(self) -> None:
        """Train from where the run stands to its end."""
        where = {"epoch": self.progress.epoch + 1, "step": self.progress.done.steps}
        self.put({"kind": "started", "workers": self.world, **where})
        with ExitStack() as stack:
            scorer = stack.enter_context(CaptionScorer(meteor=self.recipe.meteor)) if self.rank == 0 else None
            for epoch in range(self.progress.epoch, self.recipe.epochs):
                if self.recipe.stale(self.progress.history):
                    break
                self._epoch(epoch, scorer)

    def _start(self) -> tuple[HiSem, torch.optim.Optimizer, Progress]:
        """The model on its device, its optimizer, and how far the run is: as the latest checkpoint has them, if any."""
        torch.manual_seed(self.recipe.seed)
        experiment, vocabulary = self.orders.experiment, self.orders.vocabulary
        device = ray.train.torch.get_device()
        latest = self.checkpoints.latest()
        with tempfile.TemporaryDirectory() as scratch:
            if latest is not None:
                folder = self.checkpoints.fetch(latest, Path(scratch))
                hisem, progress = HiSem.from_pretrained(folder / BUNDLE), read_progress(folder)
                optimizer = make_optimizer(hisem.to(device), self.recipe)
                load_optimizer(optimizer, folder)
                return hisem, optimizer, progress
        if self.orders.init is not None:
            hisem = start_from(unpack(self.orders.init), experiment.model, vocabulary)
        else:
            hisem = HiSem(experiment.model, vocabulary)
        return hisem, make_optimizer(hisem.to(device), self.recipe), Progress()

    def _epoch(self, epoch: int, scorer: CaptionScorer | None) -> None:
        collate = Collate(
            self.hisem.vocabulary, self.orders.experiment.model.decoder.max_length, self.recipe.seed, epoch
        )
        summary = train_epoch(
            self.model,
            self.hisem,
            self._train_batches(collate),
            self.optimizer,
            self.recipe,
            epoch,
            len(self.sizes),
            done=self.progress.done,
            on_step=_Reporter(self, epoch),
            wants_checkpoint=self._wants_checkpoint,
            checkpoint=self._checkpoint_inside,
        )
        self._agree_on_buffers()
        began = time.perf_counter()
        results, metrics = self._validate(collate, scorer)
        report = {
            "epoch": epoch + 1,  # what people see counts from 1
            **{f"train_{name}": float(value) for name, value in asdict(summary).items()},
            **{f"val_{name}": value for name, value in metrics.items()},
            "val_seconds": time.perf_counter() - began,
        }
        self.progress = Progress(epoch + 1, history=[*self.progress.history, report])
        self._save(results)
        self.put({"kind": "epoch", **report})
        self._leave_if_drained()

    def _validate(self, collate: Collate, scorer: CaptionScorer | None) -> tuple[list[TileResult], dict[str, float]]:
        """What the model says of the validation tiles of all workers, by tile, and what it scores: on all workers."""
        batches = (collate(columns) for columns in ray.train.get_dataset_shard("val").iter_batches(batch_size=64))
        parts = gathered([asdict(result) for result in caption_batches(self.hisem, batches)])
        results = sorted((TileResult(**row) for part in parts for row in part), key=lambda result: result.tile_id)
        # Scored by one: METEOR is a process of its own, and workers may share a machine.
        metrics: dict[str, float] = of_first(
            score(results, scorer) | routing_metrics(results) if scorer is not None else {}
        )
        if self.recipe.metric not in metrics:
            raise TrainingError(
                f"training.metric={self.recipe.metric} cannot be scored: METEOR and S*m need a Java runtime on the "
                "workers' nodes, changed_bleu_4 changed tiles in split val, router_accuracy a router. Choose another."
            )
        return results, metrics

    def _train_batches(self, collate: Collate) -> Iterator[Batch]:
        """This worker's batches of an epoch: the same ones in the same order whenever it is run anew."""
        size = max(self.sizes)
        pixels = 2 * 3 * self.orders.tile_size**2
        columns = ray.train.get_dataset_shard("train").iter_batches(
            batch_size=size,
            prefetch_batches=4,
            local_shuffle_buffer_size=max(2 * size, SHUFFLE_BYTES // pixels),
            local_shuffle_seed=collate.seed + collate.epoch,
        )
        return (collate(part) for part in islice(rebatch(columns, self.sizes), self.progress.done.steps, None))

    def _agree_on_buffers(self) -> None:
        """Give every worker rank 0's batch-norm statistics; DDP would do so only at the next step."""
        if dist.is_initialized():
            for buffer in self.hisem.buffers():
                dist.broadcast(buffer, 0)

    def _save(self, results: list[TileResult] | None) -> None:
        """Write a checkpoint of `self.progress`, with the validation behind it at the end of an epoch."""
        if self.rank == 0:
            report = self.progress.history[-1] if results else {}

            def fill(folder: Path) -> None:
                scores = {name: value for name, value in report.items() if name.startswith(("val_", "epoch"))}
                self.hisem.save_pretrained(folder / BUNDLE, scores)
                save_optimizer(self.optimizer, folder)
                if results:
                    pq.write_table(results_table(results), folder / VALIDATION)

            self.checkpoints.save(fill, self.progress, report.get(f"val_{self.recipe.metric}"))
            self.put({"kind": "checkpoint"})
        self.saved = time.monotonic()
        if dist.is_initialized():
            dist.barrier()

    def _wants_checkpoint(self) -> bool:
        """Whether this worker asks for a checkpoint inside the epoch; one that does suffices."""
        self.steps += 1
        # All workers must ask Ray Train at the same steps, as they wait for each other's answer.
        leaving = self.steps % DRAIN_STEPS == 0 and ray.train.get_preemption_info() is not None
        return leaving or (self.rank == 0 and time.monotonic() - self.saved > self.orders.checkpoint_seconds)

    def _checkpoint_inside(self, done: EpochSums) -> None:
        self.progress = replace(self.progress, done=done)
        self._save(None)
        self._leave_if_drained()

    def _leave_if_drained(self) -> None:
        """Raise on all workers when a node of any of them is about to go: what is done is in the checkpoint."""
        if ray.train.get_preemption_info() is not None:
            raise DrainError

    def put(self, event: dict[str, Any]) -> None:
        """Tell the driver, once for all workers."""
        if self.rank == 0:
            ray.get(self.orders.supervisor.put.remote(event))

    def _tell(self, message: str) -> None:
        self.put({"kind": "storage", "message": message})


def routing_metrics(results: Sequence[TileResult]) -> dict[str, float]:
    """How the model routes the tiles; empty without a router.

    `expert_E`: which share of the choices in changed tiles fell on each expert. `best_threshold`, and BLEU-4 and change
    F1 there: the router's threshold with the highest BLEU-4.
    """
    load, curve = expert_load(results), router_curve(results)
    if load is None or curve is None:
        return {}
    best = {f"best_{name}": float(value) for name, value in curve.best()._asdict().items()}
    return best | {f"expert_{number}": float(share) for number, share in enumerate(load / max(1, load.sum()))}


class _Reporter:
    """Tells the driver of steps: the first, the last, and between them one in a few seconds."""

    def __init__(self, worker: Worker, epoch: int) -> None:
        self._worker, self._epoch = worker, epoch
        self._done = worker.progress.done.steps
        self._waited = worker.progress.done.waiting
        self._counted = self._waited
        self._start = time.perf_counter()
        self._told = -EVERY_SECONDS

    def __call__(self, step: StepReport) -> None:
        """Called after each step."""
        steps, recipe, now = len(self._worker.sizes), self._worker.recipe, time.perf_counter()
        self._worker.metrics.step(self._worker.sizes[step.step - 1], step.waiting - self._counted)
        self._counted = step.waiting
        if now - self._told < EVERY_SECONDS and step.step < steps:
            return
        self._told = now
        seconds = (now - self._start) / (step.step - self._done)  # of a step
        self._worker.metrics.rate(recipe.batch_size / seconds)
        epochs_left = recipe.epochs - 1 - self._epoch
        validation = next((report["val_seconds"] for report in reversed(self._worker.progress.history)), 0.0)
        self._worker.put(
            {
                "kind": "step",
                "epoch": self._epoch + 1,
                "epochs": recipe.epochs,
                "step": step.step,
                "steps": steps,
                "global_step": self._epoch * steps + step.step,
                "loss": step.loss,
                "learning_rate": step.learning_rate,
                "pairs_per_second": recipe.batch_size / seconds,
                "waiting": (step.waiting - self._waited) / (now - self._start),
                "seconds_left": seconds * (steps - step.step + epochs_left * steps) + (epochs_left + 1) * validation,
            }
        )
