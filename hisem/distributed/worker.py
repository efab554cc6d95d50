"""What one Ray Train worker does: build or restore, then epochs of training and validation.

Shapes are those of `hisem.training`.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from hisem.config import from_dict
from hisem.model.hisem import HiSem
from hisem.text.vocabulary import Vocabulary
from hisem.training.batches import Batch, Collate
from hisem.training.epoch import EpochSummary, StepReport, make_optimizer, train_epoch
from hisem.training.evaluation import TileResult, caption_batches, score
from hisem.training.recipe import Experiment

BUNDLE, STATE = "bundle", "state.pt"
SHUFFLE_BYTES = 256 * 2**20
"""Pixels mixed by each worker's shuffle buffer."""

EVERY_SECONDS = 5.0
"""Least time between two progress lines."""


def train_worker(config: dict[str, Any]) -> None:
    """The training loop that Ray Train runs on every worker.

    `config`: `experiment` and `vocabulary` as plain data, `train_rows`, `tile_size`, `mailbox`, `threads`.
    """
    torch.set_num_threads(config["threads"])
    experiment = from_dict(Experiment, config["experiment"], "experiment")
    recipe = experiment.training
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    _seed(recipe.seed)
    fresh = ray.train.get_checkpoint() is None  # else the checkpoint brings the backbone's weights
    hisem = HiSem(experiment.model, Vocabulary.from_dict(config["vocabulary"]), pretrained=fresh)
    device = ray.train.torch.get_device()
    hisem.to(device)
    if recipe.compile:
        hisem.compile()
    optimizer = make_optimizer(hisem, recipe)
    history = _restore(hisem, optimizer)
    model = ray.train.torch.prepare_model(
        hisem, move_to_device=False, parallel_strategy_kwargs={"find_unused_parameters": True}
    )
    local_batch = recipe.batch_size // world
    steps = -(-(config["train_rows"] // world) // local_batch)
    if history and rank == 0:
        ray.get(config["mailbox"].put.remote({"kind": "history", "epochs": history}))
    for epoch in range(len(history), recipe.epochs):
        _seed(recipe.seed + 1_000_003 * (epoch + 1) + rank)
        collate = Collate(hisem.vocabulary, experiment.model.decoder.max_length, recipe.seed, epoch)
        progress = _Progress(config["mailbox"] if rank == 0 else None, epoch, recipe.epochs, steps, recipe.batch_size)
        summary = train_epoch(
            model,
            hisem,
            _train_batches(collate, local_batch, config["tile_size"]),
            optimizer,
            recipe,
            epoch,
            steps,
            on_step=progress,
        )
        _agree_on_buffers(hisem)
        began = time.perf_counter()
        metrics = validate(hisem, _val_batches(collate))
        history.append(_report(epoch, summary, metrics, time.perf_counter() - began))
        _checkpoint(hisem, optimizer, history, rank)
        if rank == 0:
            ray.get(config["mailbox"].put.remote({"kind": "epoch", **history[-1]}))


def validate(hisem: HiSem, batches: Iterator[Batch]) -> dict[str, float]:
    """Metrics over the validation tiles of all workers; the same on every worker."""
    mine = caption_batches(hisem, batches)
    everyone: list[list[TileResult] | None] = [mine]
    if dist.is_initialized():
        everyone = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, mine)
    results = [result for part in everyone if part for result in part]
    return score(sorted(results, key=lambda result: result.tile_id))


def _train_batches(collate: Collate, size: int, tile_size: int) -> Iterator[Batch]:
    shard = ray.train.get_dataset_shard("train")
    rows = shard.iter_batches(
        batch_size=size,
        prefetch_batches=4,
        local_shuffle_buffer_size=max(2 * size, SHUFFLE_BYTES // (2 * 3 * tile_size**2)),
        local_shuffle_seed=collate.seed + collate.epoch,
    )
    return (collate(columns) for columns in rows)


def _val_batches(collate: Collate) -> Iterator[Batch]:
    return (collate(columns) for columns in ray.train.get_dataset_shard("val").iter_batches(batch_size=64))


def _agree_on_buffers(hisem: HiSem) -> None:
    """Give every worker rank 0's batch-norm statistics; DDP would do so only at the next step."""
    if dist.is_initialized():
        for buffer in hisem.buffers():
            dist.broadcast(buffer, 0)


def _report(epoch: int, summary: EpochSummary, metrics: dict[str, float], seconds: float) -> dict[str, float]:
    trained = {f"train_{name}": float(value) for name, value in asdict(summary).items()}
    validated = {f"val_{name}": float(value) for name, value in metrics.items()}
    return {"epoch": epoch, **trained, **validated, "val_seconds": seconds}


def _checkpoint(hisem: HiSem, optimizer: torch.optim.Optimizer, history: list[dict[str, float]], rank: int) -> None:
    """Report the last epoch of `history` with a checkpoint: the bundle, and what resuming needs beside it."""
    report = history[-1]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if rank == 0:
            scores = {name: value for name, value in report.items() if name.startswith(("val_", "epoch"))}
            hisem.save_pretrained(Path(folder) / BUNDLE, scores)
            state = {"optimizer": optimizer.state_dict(), "history": history}
            torch.save(state, Path(folder) / STATE)
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report(report, checkpoint=checkpoint)


def _restore(hisem: HiSem, optimizer: torch.optim.Optimizer) -> list[dict[str, float]]:
    """Load the run's latest checkpoint, if any, and return the reports of the epochs behind it."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return []
    with checkpoint.as_directory() as folder:
        saved = HiSem.from_pretrained(Path(folder) / BUNDLE)
        hisem.load_state_dict(saved.state_dict())
        state = torch.load(Path(folder) / STATE, weights_only=True)
    optimizer.load_state_dict(state["optimizer"])
    history: list[dict[str, float]] = state["history"]
    return history


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class _Progress:
    """Tells the driver about steps, at most once in a few seconds."""

    def __init__(self, mailbox: Any, epoch: int, epochs: int, steps: int, batch_size: int) -> None:
        self._mailbox = mailbox
        self._epoch, self._epochs, self._steps, self._batch_size = epoch, epochs, steps, batch_size
        self._start = self._told = time.perf_counter()

    def __call__(self, report: StepReport) -> None:
        now = time.perf_counter()
        if self._mailbox is None or (now - self._told < EVERY_SECONDS and report.step < self._steps):
            return
        self._told = now
        rate = report.step * self._batch_size / (now - self._start)
        self._mailbox.put.remote(
            {
                "kind": "step",
                "epoch": self._epoch,
                "epochs": self._epochs,
                "step": report.step,
                "steps": self._steps,
                "loss": report.loss,
                "pairs_per_second": rate,
            }
        )
