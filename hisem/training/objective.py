"""What is minimised. Architecture page, section 6.

Shapes: B pairs, T caption positions, V words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from hisem.model.hisem import HiSemOutput
from hisem.text.vocabulary import NULL
from hisem.training.recipe import TrainingConfig


@dataclass(frozen=True)
class Counts:
    """What the losses of a step are divided by: counts over all its workers and micro-batches, 1 or more."""

    words: float
    """Words to predict."""
    pairs: float
    moved: float | Tensor
    """Pairs on the changed path."""


@dataclass(frozen=True)
class Losses:
    """A micro-batch's share of the step's losses. `total` is what `backward` takes; the others are detached and give,
    once summed over micro-batches and workers, means over the words and pairs of the step.
    """

    total: Tensor
    caption: Tensor
    router: Tensor
    balance: Tensor


def world_size() -> int:
    """Number of workers; 1 outside a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this worker; 0 outside a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def summed(values: Tensor) -> Tensor:
    """Element-wise sum of `values` over all workers, without gradient."""
    total = values.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(total)
    return total


def totals(values: Sequence[float], device: torch.device) -> list[float]:
    """Sums of `values` over all workers, which talk by tensors on `device`."""
    if not dist.is_initialized():
        return list(values)
    return summed(torch.tensor(values, device=device)).tolist()


def moved_pairs(routed: Tensor, pairs: float) -> Tensor:
    """Pairs on the changed path among the `pairs` of a step in which the router chooses.

    Only what it chose in this micro-batch is known (`routed`, B bool): the fraction over all workers stands for the
    whole step. In a step of one micro-batch it is the count itself.
    """
    moved, seen = summed(torch.stack([routed, torch.ones_like(routed)]).sum(dim=1))
    return (moved * pairs / seen).clamp(min=1)


def objective(
    output: HiSemOutput,
    word_ids: Tensor,
    changed: Tensor,
    routed: Tensor,
    counts: Counts,
    recipe: TrainingConfig,
    epoch: int,
) -> Losses:
    """Losses of one forward pass over a micro-batch of this worker.

    Every sum is divided by the count of the whole step, so that the same batch gives the same gradient on any number
    of workers and micro-batches; the factor of workers undoes the mean that DDP takes.
    `word_ids` B T as made by `Collate`; `output.logits` B T-1 V; `changed` B, the labels; `routed` B,
    the pairs that took the changed path, over which `output.balance_loss` is a mean.
    """
    targets = word_ids[:, 1:]
    caption = F.cross_entropy(
        output.logits.flatten(0, 1).float(), targets.flatten(), ignore_index=NULL, reduction="sum"
    )
    caption = caption / counts.words
    router = caption.new_zeros(())
    if output.change_logits is not None:
        router = F.cross_entropy(output.change_logits.float(), changed.long(), reduction="sum") / counts.pairs
    balance = output.balance_loss * routed.sum() / counts.moved
    total = caption + recipe.router_weight * recipe.router_gradient(epoch) * router + balance
    return Losses(total * world_size(), caption.detach(), router.detach(), balance.detach())
