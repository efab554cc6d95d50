"""What is minimised. Architecture page, section 6.

Shapes: B pairs, T caption positions, V words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from hisem.model.hisem import HiSemOutput
from hisem.text.vocabulary import NULL
from hisem.training.recipe import TrainingConfig

T = TypeVar("T")


@dataclass(frozen=True)
class Losses:
    """This worker's share of the global losses. `total` is what `backward` takes; the others are detached
    and give, once `summed` over the workers, means over the global words and pairs.
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


def gathered(value: T) -> list[T]:
    """The `value` of every worker, by rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def summed(values: Tensor) -> Tensor:
    """Element-wise sum of `values` over all workers, without gradient."""
    total = values.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(total)
    return total


def objective(
    output: HiSemOutput, word_ids: Tensor, changed: Tensor, routed: Tensor, recipe: TrainingConfig, epoch: int
) -> Losses:
    """Losses of one forward pass over this worker's part of the global batch.

    Every sum is divided by the count of the *global* batch, so that the same batch gives the same
    gradient on any number of workers; the factor of workers undoes the mean that DDP takes.
    `word_ids` B T as made by `Collate`; `output.logits` B T-1 V; `changed` B, the labels; `routed` B,
    the pairs that took the changed path, over which `output.balance_loss` is a mean.
    """
    targets = word_ids[:, 1:]
    mine = routed.sum()
    counts = torch.stack([(targets != NULL).sum(), torch.tensor(len(changed), device=changed.device), mine])
    words, pairs, moved = summed(counts.float()).clamp(min=1)
    caption = F.cross_entropy(
        output.logits.flatten(0, 1).float(), targets.flatten(), ignore_index=NULL, reduction="sum"
    )
    caption = caption / words
    router = caption.new_zeros(())
    if output.change_logits is not None:
        router = F.cross_entropy(output.change_logits.float(), changed.long(), reduction="sum") / pairs
    balance = output.balance_loss * mine / moved
    total = caption + recipe.router_weight * recipe.router_gradient(epoch) * router + balance
    return Losses(total * world_size(), caption.detach(), router.detach(), balance.detach())
