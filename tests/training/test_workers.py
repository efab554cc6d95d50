"""The same gradient however a batch is spread over workers and micro-batches.

Run as a script, this file is one of the workers.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from hisem.config import from_dict, to_dict
from hisem.errors import TrainingError
from hisem.model.hisem import HiSem, HiSemConfig, HiSemOutput
from hisem.text.vocabulary import NULL, Vocabulary
from hisem.training.batches import Batch
from hisem.training.epoch import EpochSums, train_epoch
from hisem.training.recipe import TrainingConfig

RECIPE = TrainingConfig()
LABELLED, ROUTED = 20, 45
"""An epoch in which the labels choose the path, and one in which the router does."""

PARTS: dict[int, list[list[int]]] = {
    2: [[1, 2, 4, 0, 3], [5, 7, 6]],
    3: [[0, 3], [1, 2, 4], [5, 6, 7]],
}
"""The pairs of each worker, by the number of workers: unequal in number, words and changes. Every third pair is
unchanged; in micro-batches of 2 pairs the last ones of two workers have no changed pair.
"""

CASES = [(1, 0), (1, 2), (2, 0), (2, 2), (3, 0), (3, 1)]
"""Numbers of workers and sizes of micro-batches; 0 for whole parts."""

MICRO_BATCHES = {
    1: [[0, 1], [2, 3], [4, 5], [6, 7]],
    2: [[1, 5], [2, 4, 7], [0, 3, 6]],  # three of each, since 5 pairs are at least three micro-batches of 2
    3: [[0, 1, 5], [3, 2, 4, 6, 7]],  # two of each, since one worker has but two pairs
}
"""The pairs that all workers compute at the same time in those of the cases that have micro-batches."""


@pytest.fixture(scope="module")
def whole(tiny: Callable[..., HiSem], batch: Callable[..., Batch]) -> tuple[HiSem, Batch]:
    """The model of the comparison, and all its pairs; the router disagrees with the labels on some."""
    model = still(tiny(backbone={"trainable_blocks": 0}))
    pairs = batch(8, period=3)
    with torch.no_grad():
        logits = forward(model, pairs, ROUTED).change_logits
    assert logits is not None
    probabilities = logits.softmax(1)[:, 1]
    model.change_threshold = probabilities.sort().values[3:5].mean().item()  # halfway between two pairs
    routed = probabilities >= model.change_threshold
    by_router, by_label = ([int(flags[part].sum()) for part in PARTS[2]] for flags in (routed, pairs.changed))
    assert (by_router, by_label) == ([3, 1], [3, 2])  # to weigh by the labels would be wrong
    return model, pairs


@pytest.fixture(scope="module")
def workers(whole: tuple[HiSem, Batch], tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What each of three workers found, two of which also worked as two."""
    model, pairs = whole
    folder = tmp_path_factory.mktemp("ddp")
    state = {
        "config": to_dict(model.config),
        "vocabulary": model.vocabulary.to_dict(),
        "weights": model.state_dict(),
        "threshold": model.change_threshold,
        "pairs": pairs.__dict__,
    }
    torch.save(state, folder / "state.pt")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(folder)], env=environment, stderr=subprocess.PIPE)
        for rank in range(3)
    ]
    try:
        ends = [process.communicate(timeout=200)[1].decode() for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0, 0], "\n".join(ends)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(3)]


@pytest.mark.parametrize("epoch", [LABELLED, ROUTED])
@pytest.mark.parametrize(("world", "micro_batch"), CASES)
def test_a_spread_batch_has_the_gradient_of_the_whole(
    whole: tuple[HiSem, Batch], workers: list[dict[Any, Any]], world: int, micro_batch: int, epoch: int
) -> None:
    model, pairs = whole
    output = forward(model, pairs, epoch)
    assert output.change_logits is not None
    # Written out, without `objective`.
    words = nn.CrossEntropyLoss(ignore_index=NULL)(output.logits.transpose(1, 2), pairs.word_ids[:, 1:])
    router = nn.CrossEntropyLoss()(output.change_logits, pairs.changed.long())
    balance = output.balance_loss
    if epoch == ROUTED and micro_batch:  # each micro-batch counts by its pairs, over all workers
        together = MICRO_BATCHES[world]
        means = [forward(model, share_of(pairs, rows), epoch).balance_loss for rows in together]
        balance = sum((len(rows) / 8 * mean for rows, mean in zip(together, means, strict=True)), torch.zeros(()))
    model.zero_grad()
    (words + 0.8 * RECIPE.router_gradient(epoch) * router + balance).backward()
    expected = gradients(model)

    assert balance > 0
    if world == 1:
        found = [step(model, model, pairs, epoch, micro_batch)]
    else:
        found = [worker[world, micro_batch, epoch] for worker in workers[:world]]
    for mine in found:
        assert mine["losses"] == pytest.approx([words.item(), router.item(), balance.item()], rel=1e-5)
        assert mine["pairs"] == 8
        assert set(mine["gradients"]) == set(expected)
        for name, gradient in expected.items():
            theirs = mine["gradients"][name]
            assert (theirs - gradient).norm() <= 1e-5 * gradient.norm() + 1e-9, name
    assert sum(gradient.count_nonzero().item() for gradient in expected.values()) > 1000


def test_workers_add_up_their_gradients_once_a_step(workers: list[dict[Any, Any]]) -> None:
    for worker in workers[:2]:
        counts = [worker[2, micro_batch, LABELLED]["reductions"] for micro_batch in (0, 2)]
        assert counts[0] == counts[1] > 0


def test_a_loss_that_is_not_finite_stops_all_workers_with_the_culprits_tiles(workers: list[dict[Any, Any]]) -> None:
    messages = {worker["stopped"] for worker in workers[:2]}
    assert len(messages) == 1
    message = messages.pop()
    assert "epoch 21, step 1" in message
    # The second of worker 1's three micro-batches.
    assert message.partition("Tiles: ")[2].partition(". ")[0] == "pair_007/0_0"
    assert all(worker["unchanged"] for worker in workers[:2])


def test_a_wish_of_one_worker_is_a_checkpoint_on_all_after_that_step(workers: list[dict[Any, Any]]) -> None:
    assert [worker["checkpoints"] for worker in workers] == [[(2, 16)]] * 3


class Still(nn.BatchNorm2d):
    """Batch norm that keeps its statistics in training, so that pairs do not see one another."""

    def train(self, mode: bool = True) -> Still:
        return super().train(False)


def still(model: HiSem) -> HiSem:
    """The model in training mode, without batch statistics."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = Still
    model.train()
    return model


def share_of(pairs: Batch, rows: list[int]) -> Batch:
    """Some of the pairs, padded to their own longest sentence, as a worker collates them."""
    word_ids = pairs.word_ids[rows]
    width = int((word_ids != NULL).sum(1).max())
    return Batch(
        [pairs.tile_ids[row] for row in rows],
        pairs.before[rows],
        pairs.after[rows],
        word_ids[:, :width],
        pairs.changed[rows],
        [pairs.references[row] for row in rows],
    )


def forward(model: HiSem, pairs: Batch, epoch: int) -> HiSemOutput:
    labels = pairs.changed if epoch < RECIPE.label_routing_epochs else None
    output: HiSemOutput = model(
        model.preprocess(pairs.before), model.preprocess(pairs.after), pairs.word_ids[:, :-1], labels
    )
    return output


class Standing(torch.optim.SGD):
    """Does not move the weights, so that the gradients of a step remain, and those of steps can be compared."""

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        pass


def step(model: nn.Module, hisem: HiSem, pairs: Batch, epoch: int, micro_batch: int) -> dict[str, Any]:
    """One step of `train_epoch`: its losses, pairs and gradients."""
    recipe = replace(RECIPE, micro_batch=micro_batch)
    summary = train_epoch(model, hisem, [pairs], Standing(model.parameters()), recipe, epoch, 1)
    losses = [summary.caption_loss, summary.router_loss, summary.balance_loss]
    return {"losses": losses, "pairs": summary.pairs, "gradients": gradients(model)}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """All gradients; zero where a parameter had no part."""
    return {
        name.removeprefix("module."): torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def worker(rank: int, folder: Path) -> None:
    """One of three workers, and one of two: every case, a wish for a checkpoint, and a loss that breaks."""
    state = torch.load(folder / "state.pt", weights_only=True)
    hisem = HiSem(from_dict(HiSemConfig, state["config"], "test"), Vocabulary.from_dict(state["vocabulary"]))
    hisem.load_state_dict(state["weights"])
    hisem.change_threshold = state["threshold"]
    still(hisem)
    pairs = Batch(**state["pairs"])
    found: dict[Any, Any] = {}
    for world in (3, 2):
        if rank >= world:
            break
        with group(world, rank, folder):
            model = nn.parallel.DistributedDataParallel(hisem, find_unused_parameters=True)
            reductions: list[int] = []
            model.register_comm_hook(reductions, counted)
            mine = share_of(pairs, PARTS[world][rank])
            for workers, micro_batch in CASES:
                for epoch in (LABELLED, ROUTED) if workers == world else ():
                    reductions.clear()
                    found[world, micro_batch, epoch] = step(model, hisem, mine, epoch, micro_batch)
                    found[world, micro_batch, epoch]["reductions"] = len(reductions)
            if world == 3:
                found["checkpoints"] = checkpoints(model, hisem, mine, wishing=rank == 1)
            else:
                found |= breaking(model, hisem, mine, broken=rank == 1)
    torch.save(found, folder / f"{rank}.pt")


def counted(reductions, bucket):  # DDP compares annotations, which here are strings
    """Add up a bucket of gradients over the workers, as DDP does, and note it."""
    reductions.append(bucket.index())
    return allreduce_hook(dist.group.WORLD, bucket)  # type: ignore[arg-type]


@contextmanager
def group(world: int, rank: int, folder: Path) -> Iterator[None]:
    meeting = f"file://{folder}/meeting_{world}"
    dist.init_process_group("gloo", meeting, timedelta(seconds=120), world_size=world, rank=rank)
    try:
        yield
    finally:
        dist.destroy_process_group()


def checkpoints(model: nn.Module, hisem: HiSem, pairs: Batch, wishing: bool) -> list[tuple[int, int]]:
    """Steps and pairs at each checkpoint of three steps, in the second of which a `wishing` worker asks for one."""
    wishes = iter([False, wishing, False])
    written: list[tuple[int, int]] = []

    def checkpoint(done: EpochSums) -> None:
        written.append((done.steps, done.pairs))

    train_epoch(
        model,
        hisem,
        [pairs] * 3,
        Standing(model.parameters()),
        RECIPE,
        LABELLED,
        3,
        wants_checkpoint=lambda: next(wishes),
        checkpoint=checkpoint,
    )
    return written


def breaking(model: nn.Module, hisem: HiSem, pairs: Batch, broken: bool) -> dict[str, Any]:
    """How a step ends in which the second micro-batch of a `broken` worker has no finite loss."""
    weights = {name: parameter.detach().clone() for name, parameter in hisem.named_parameters()}
    factors = iter([1.0, torch.nan if broken else 1.0, 1.0])
    hisem.decoder.output.register_forward_hook(lambda module, inputs, output: output * next(factors))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    try:
        train_epoch(model, hisem, [pairs], optimizer, replace(RECIPE, micro_batch=2), LABELLED, 1)
    except TrainingError as error:
        unchanged = all(parameter.equal(weights[name]) for name, parameter in hisem.named_parameters())
        return {"stopped": str(error), "unchanged": unchanged}
    return {}


if __name__ == "__main__":
    worker(int(sys.argv[1]), Path(sys.argv[2]))
