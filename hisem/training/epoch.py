"""One pass over the training split on one worker.

Shapes: B pairs, H x W pixels, K micro-batches.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hisem.errors import TrainingError
from hisem.model.hisem import HiSem, HiSemOutput
from hisem.text.vocabulary import NULL
from hisem.training.batches import Batch, micro_batches
from hisem.training.exchange import gathered
from hisem.training.objective import Counts, moved_pairs, objective, rank, summed, totals, world_size
from hisem.training.recipe import Precision, TrainingConfig


@dataclass(frozen=True)
class EpochSums:
    """The part of an epoch that is done: sums over its steps and all workers, as plain numbers for a checkpoint.

    Seconds are those of the worker that counts them.
    """

    steps: int = 0
    pairs: int = 0
    loss: float = 0.0
    caption_loss: float = 0.0
    router_loss: float = 0.0
    balance_loss: float = 0.0
    seconds: float = 0.0
    waiting: float = 0.0
    """Seconds spent waiting for data."""


@dataclass(frozen=True)
class EpochSummary:
    """Means over the steps of an epoch, over all workers; seconds are this worker's."""

    loss: float
    caption_loss: float
    router_loss: float
    balance_loss: float
    pairs: int
    steps: int
    seconds: float
    waiting: float
    """Seconds spent waiting for data."""


@dataclass(frozen=True)
class StepReport:
    """What there is to tell of a step."""

    step: int
    """Its number in the epoch, from 1."""
    loss: float
    """Over all workers."""
    learning_rate: float
    waiting: float
    """Seconds that this worker has waited for data in this epoch."""


def make_optimizer(model: nn.Module, recipe: TrainingConfig) -> torch.optim.Optimizer:
    """The optimizer over everything trainable."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
    return kind(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)


def train_epoch(
    model: nn.Module,
    hisem: HiSem,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    recipe: TrainingConfig,
    epoch: int,
    steps_per_epoch: int,
    *,
    done: EpochSums | None = None,
    on_step: Callable[[StepReport], None] = lambda report: None,
    wants_checkpoint: Callable[[], bool] = lambda: False,
    checkpoint: Callable[[EpochSums], None] = lambda done: None,
) -> EpochSummary:
    """Train `model` (`hisem` itself or its DDP wrapper) on this worker's batches of one epoch.

    An interrupted epoch goes on from `done`, with the batches that are left. Every step asks each worker by
    `wants_checkpoint`; where one does, all call `checkpoint` after the step, with what is done then. What is random in
    a step depends on seed, epoch, step and worker alone, so that a resumed epoch ends as an uninterrupted one.

    Raises `TrainingError` on all workers, before the weights change, when any worker's loss is not finite.
    """
    model.train()
    device = next(hisem.parameters()).device
    done = done or EpochSums()
    clock = _Clock(batches, done)
    for batch in clock:
        plan = _agree(batch, recipe.micro_batch, wants_checkpoint(), device)
        generator = _seed(recipe.seed, epoch, done.steps)
        rate = recipe.learning_rate * recipe.rate(epoch * steps_per_epoch + done.steps, recipe.epochs * steps_per_epoch)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        parts = batch.split(plan.micro_batches)
        shares = _accumulate(model, hisem, parts, plan.counts, recipe, epoch, generator)
        caption, router, balance = summed(shares.sum(dim=0)).tolist()
        loss = caption + recipe.router_weight * recipe.router_reported(epoch) * router
        if not math.isfinite(loss + balance):
            _stop(shares.tolist(), parts, epoch, done.steps)
        if recipe.clip_norm:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        done = EpochSums(
            done.steps + 1,
            done.pairs + int(plan.counts.pairs),
            done.loss + loss,
            done.caption_loss + caption,
            done.router_loss + router,
            done.balance_loss + balance,
            clock.seconds,
            clock.waiting,
        )
        on_step(StepReport(done.steps, loss, rate, done.waiting))
        if plan.checkpoint:
            checkpoint(done)
    if not done.steps:
        raise TrainingError(f"epoch {epoch + 1}: no batch reached this worker; the training split has too few tiles.")
    return EpochSummary(
        done.loss / done.steps,
        done.caption_loss / done.steps,
        done.router_loss / done.steps,
        done.balance_loss / done.steps,
        done.pairs,
        done.steps,
        clock.seconds,
        clock.waiting,
    )


@dataclass(frozen=True)
class _Plan:
    """What all workers know of a step before they compute it."""

    counts: Counts
    """`moved` is that of a step in which the labels choose the path."""
    micro_batches: int
    checkpoint: bool
    """Whether a checkpoint is written after it."""


def _agree(batch: Batch, micro_batch: int, wish: bool, device: torch.device) -> _Plan:
    """Tell all workers of this one's part of a step, and hear of theirs, at once."""
    words = int((batch.word_ids[:, 1:] != NULL).sum())
    sizes = [0] * world_size()
    sizes[rank()] = len(batch)
    words, changed, wishes, *sizes = map(int, totals([words, int(batch.changed.sum()), wish, *sizes], device))
    return _Plan(Counts(words, sum(sizes), max(1, changed)), micro_batches(sizes, micro_batch), wishes > 0)


def _accumulate(
    model: nn.Module,
    hisem: HiSem,
    parts: Sequence[Batch],
    counts: Counts,
    recipe: TrainingConfig,
    epoch: int,
    generator: torch.Generator,
) -> Tensor:
    """Add up the gradients of all micro-batches; K 3, the shares in caption, router and balance loss of each.

    The workers add theirs together in the last one's backward, and not before.
    """
    device = next(hisem.parameters()).device
    bf16 = in_bf16(recipe.precision, device)
    shares = []
    for number, part in enumerate(parts, 1):
        part = part.to(device)
        labels = part.changed if epoch < recipe.label_routing_epochs else None
        last = number == len(parts)
        with nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync():
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                output = model(
                    hisem.preprocess(tinted(part.before, recipe.tint, generator)),
                    hisem.preprocess(tinted(part.after, recipe.tint, generator)),
                    part.word_ids[:, :-1],
                    labels,
                )
            routed = path_taken(output, labels, hisem)
            if labels is None:
                counts = replace(counts, moved=moved_pairs(routed, counts.pairs))
            losses = objective(output, part.word_ids, part.changed, routed, counts, recipe, epoch)
            losses.total.backward()
        shares.append(torch.stack([losses.caption, losses.router, losses.balance]))
    return torch.stack(shares)


def in_bf16(precision: Precision, device: torch.device) -> bool:
    """Whether `precision` means bf16 on this worker's `device`."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bf16"


def path_taken(output: HiSemOutput, labels: Tensor | None, hisem: HiSem) -> Tensor:
    """Which pairs went down the changed path, bool B: as the labels had it, else as the router did."""
    if output.change_logits is None:
        return torch.zeros(len(output.logits), dtype=torch.bool, device=output.logits.device)
    if labels is not None:
        return labels
    return output.change_logits.float().softmax(dim=-1)[:, 1] >= hisem.change_threshold


def _stop(shares: Sequence[Sequence[float]], parts: Sequence[Batch], epoch: int, step: int) -> None:
    """Raise on every worker the same `TrainingError`, which names the tiles of the micro-batches whose loss broke."""
    mine = [(values, part.tile_ids) for values, part in zip(shares, parts, strict=True)]
    everyone = [part for worker in gathered(mine) for part in worker]
    broken = [part for part in everyone if not all(map(math.isfinite, part[0]))] or everyone
    values = "; ".join(str(values) for values, _ in broken)
    tiles = [tile for _, names in broken for tile in names]
    raise TrainingError(
        f"epoch {epoch + 1}, step {step + 1}: the loss is not finite (caption, router, balance = {values}). "
        f"The weights were not changed. Tiles: {', '.join(tiles[:8])}{', ...' if len(tiles) > 8 else ''}. Look at "
        "them, lower training.learning_rate or set training.clip_norm."
    )


def _seed(seed: int, epoch: int, step: int) -> torch.Generator:
    """Seed what is random in a step on this worker; the generator for its tint."""
    source = np.random.SeedSequence((seed, epoch, step, rank()))
    for_torch, for_numpy, for_python, for_tint = map(int, source.generate_state(4))
    torch.manual_seed(for_torch)
    np.random.seed(for_numpy)
    random.seed(for_python)
    return torch.Generator().manual_seed(for_tint)


def tinted(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Each image uint8 B 3 H W with a random gain of 1 +- `strength`, half common and half per channel."""
    if not strength:
        return images
    common = torch.empty(len(images), 1, 1, 1).uniform_(-strength, strength, generator=generator)
    single = torch.empty(len(images), 3, 1, 1).uniform_(-strength, strength, generator=generator)
    gain = (1 + (common + single) / 2).to(images.device)
    return (images * gain).clamp_(0, 255).to(torch.uint8)


class _Clock:
    """Iterates and measures how long it waited for the next batch, over what an epoch's done part took."""

    def __init__(self, batches: Iterable[Batch], done: EpochSums) -> None:
        self._batches = batches
        self._start = time.perf_counter() - done.seconds
        self.waiting = done.waiting

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start

    def __iter__(self) -> Iterator[Batch]:
        asked = time.perf_counter()
        for batch in self._batches:
            self.waiting += time.perf_counter() - asked
            yield batch
            asked = time.perf_counter()
        self.waiting += time.perf_counter() - asked
