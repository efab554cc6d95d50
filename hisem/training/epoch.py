"""One pass over the training split on one worker.

Shapes: B pairs, H x W pixels.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hisem.errors import TrainingError
from hisem.model.hisem import HiSem, HiSemOutput
from hisem.training.batches import Batch
from hisem.training.objective import gathered, objective, rank, summed
from hisem.training.recipe import TrainingConfig


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
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> EpochSummary:
    """Train `model` (`hisem` itself or its DDP wrapper) on this worker's batches of one epoch.

    `on_step` hears the number of the step in this epoch and its global loss. Raises `TrainingError` on all
    workers, before the weights change, when any worker's loss is not finite.
    """
    model.train()
    device = next(hisem.parameters()).device
    generator = torch.Generator().manual_seed(hash((recipe.seed, epoch, rank())) & 0x7FFFFFFF)
    sums = torch.zeros(4, dtype=torch.float64)
    pairs = steps = 0
    clock = _Clock(batches)
    for batch in clock:
        batch = batch.to(device)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * recipe.rate(
                epoch * steps_per_epoch + steps, recipe.epochs * steps_per_epoch
            )
        labels = batch.changed if epoch < recipe.label_routing_epochs else None
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            output = model(
                hisem.preprocess(tinted(batch.before, recipe.tint, generator)),
                hisem.preprocess(tinted(batch.after, recipe.tint, generator)),
                batch.word_ids[:, :-1],
                labels,
            )
        routed = path_taken(output, labels, hisem)
        losses = objective(output, batch.word_ids, batch.changed, routed, recipe, epoch)
        shares = torch.stack([losses.caption, losses.router, losses.balance])
        caption, router, balance = summed(shares).tolist()
        loss = caption + recipe.router_weight * recipe.router_reported(epoch) * router
        if not math.isfinite(loss + balance):
            _stop(shares.tolist(), batch.tile_ids, epoch, steps)
        optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        if recipe.clip_norm:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        sums += torch.tensor([loss, caption, router, balance], dtype=torch.float64)
        steps += 1
        pairs += len(batch)
        on_step(steps, loss)
    if not steps:
        raise TrainingError(f"epoch {epoch}: no batch reached this worker; the training split has too few tiles.")
    total_pairs = int(summed(torch.tensor(float(pairs), device=device)))
    loss, caption, router, balance = (sums / steps).tolist()
    return EpochSummary(loss, caption, router, balance, total_pairs, steps, clock.seconds, clock.waiting)


def path_taken(output: HiSemOutput, labels: Tensor | None, hisem: HiSem) -> Tensor:
    """Which pairs went down the changed path, bool B: as the labels had it, else as the router did."""
    if output.change_logits is None:
        return torch.zeros(len(output.logits), dtype=torch.bool, device=output.logits.device)
    if labels is not None:
        return labels
    return output.change_logits.float().softmax(dim=-1)[:, 1] >= hisem.change_threshold


def _stop(shares: list[float], tile_ids: list[str], epoch: int, step: int) -> None:
    """Raise on every worker the same `TrainingError`, which names the tiles of those whose loss broke."""
    everyone = gathered((shares, tile_ids))
    broken = [part for part in everyone if not all(map(math.isfinite, part[0]))] or everyone
    values = "; ".join(str(values) for values, _ in broken)
    tiles = [tile for _, names in broken for tile in names]
    raise TrainingError(
        f"epoch {epoch}, step {step}: the loss is not finite (caption, router, balance = {values}). The weights were "
        f"not changed. Tiles: {', '.join(tiles[:8])}{', ...' if len(tiles) > 8 else ''}. Look at them, lower "
        "training.learning_rate or set training.clip_norm."
    )


def tinted(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Each image uint8 B 3 H W with a random gain of 1 +- `strength`, half common and half per channel."""
    if not strength:
        return images
    common = torch.empty(len(images), 1, 1, 1).uniform_(-strength, strength, generator=generator)
    single = torch.empty(len(images), 3, 1, 1).uniform_(-strength, strength, generator=generator)
    gain = (1 + (common + single) / 2).to(images.device)
    return (images * gain).clamp_(0, 255).to(torch.uint8)


class _Clock:
    """Iterates and measures how long it waited for the next batch."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches = batches
        self.waiting = 0.0
        self.seconds = 0.0

    def __iter__(self) -> Iterator[Batch]:
        start = asked = time.perf_counter()
        for batch in self._batches:
            self.waiting += time.perf_counter() - asked
            yield batch
            asked = time.perf_counter()
        self.waiting += time.perf_counter() - asked
        self.seconds = time.perf_counter() - start
