"""The loss: against a plain loop, and the same gradient on one worker and on two.

Run as a script, this file is one of the two workers.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from hisem.config import from_dict, to_dict
from hisem.errors import TrainingError
from hisem.model.hisem import HiSem, HiSemConfig, HiSemOutput
from hisem.text.vocabulary import END, NULL, START, Vocabulary
from hisem.training.batches import Batch
from hisem.training.epoch import make_optimizer, path_taken, train_epoch
from hisem.training.objective import objective, summed
from hisem.training.recipe import TrainingConfig

RECIPE = TrainingConfig()
LABELLED, ROUTED = 20, 45
"""An epoch in which the labels choose the path, and one in which the router does."""

SHARES = [slice(0, 5), slice(5, 8)]
"""The pairs of each worker: unequal in number, words and changes."""


def log_softmax(logits: list[float], at: int) -> float:
    top = max(logits)
    return logits[at] - top - float(torch.tensor([x - top for x in logits], dtype=torch.float64).exp().sum().log())


def test_losses_are_means_over_words_and_pairs() -> None:
    torch.manual_seed(0)
    word_ids = torch.tensor([[START, 5, 6, END, NULL], [START, END, NULL, NULL, NULL], [START, 4, 5, 6, END]])
    changed = torch.tensor([True, False, True])
    output = HiSemOutput(3 * torch.randn(3, 4, 7), torch.randn(3, 2), torch.tensor(0.25))
    losses = objective(output, word_ids, changed, changed, RECIPE, LABELLED)

    lost = []
    for pair, words in enumerate(word_ids.tolist()):
        for position, word in enumerate(words[1:]):
            if word != NULL:
                lost.append(-log_softmax(output.logits[pair, position].tolist(), word))
    assert len(lost) == 3 + 1 + 4
    assert losses.caption.item() == pytest.approx(sum(lost) / 8, rel=1e-6)

    assert output.change_logits is not None
    missed = [-log_softmax(row, int(flag)) for row, flag in zip(output.change_logits.tolist(), changed, strict=True)]
    assert losses.router.item() == pytest.approx(sum(missed) / 3, rel=1e-6)
    assert losses.balance.item() == pytest.approx(0.25)
    weight = 0.8 * RECIPE.router_gradient(LABELLED)
    assert losses.total.item() == pytest.approx(sum(lost) / 8 + weight * sum(missed) / 3 + 0.25, rel=1e-6)


def test_router_learns_nothing_while_frozen() -> None:
    logits = torch.randn(2, 2, requires_grad=True)
    output = HiSemOutput(torch.randn(2, 1, 5), logits, torch.tensor(0.0))
    flags = torch.tensor([True, False])
    losses = objective(output, torch.tensor([[START, END]] * 2), flags, flags, RECIPE, 3)
    losses.total.backward()
    assert logits.grad is not None
    assert torch.count_nonzero(logits.grad) == 0
    assert losses.router > 0


def test_without_a_router_there_is_the_caption_loss_alone() -> None:
    output = HiSemOutput(torch.randn(2, 1, 5), None, torch.tensor(0.0))
    nobody = torch.zeros(2, dtype=torch.bool)
    losses = objective(output, torch.tensor([[START, END]] * 2), ~nobody, nobody, RECIPE, LABELLED)
    assert losses.total == losses.caption
    assert losses.router == 0
    assert losses.balance == 0


def test_path_taken_is_the_models_own(tiny: Callable[..., HiSem], batch: Callable[..., Batch]) -> None:
    model, pairs = tiny().eval(), batch(8)
    before, after = model.preprocess(pairs.before), model.preprocess(pairs.after)
    with torch.no_grad():
        tokens = model.backbone(torch.cat([before, after]))
        logits = model.change(tokens[:8], tokens[8:]).logits
        model.change_threshold = logits.softmax(1)[:, 1].median().item()
        taken = model.change(tokens[:8], tokens[8:]).changed
        output = model(before, after, pairs.word_ids[:, :-1])
    assert 0 < taken.sum() < 8
    assert torch.equal(path_taken(output, None, model), taken)
    assert torch.equal(path_taken(output, pairs.changed, model), pairs.changed)
    without = output._replace(change_logits=None)
    assert not path_taken(without, pairs.changed, model).any()


@pytest.fixture(scope="module")
def whole(tiny: Callable[..., HiSem], batch: Callable[..., Batch]) -> tuple[HiSem, Batch]:
    """The model of the comparison, and all its pairs; the router disagrees with the labels on some."""
    model = still(tiny(backbone={"trainable_blocks": 0}))
    pairs = batch(8, period=3)
    with torch.no_grad():
        logits = forward(model, model, pairs, ROUTED).change_logits
    assert logits is not None
    probabilities = logits.softmax(1)[:, 1]
    model.change_threshold = probabilities.sort().values[3:5].mean().item()  # halfway between two pairs
    routed = probabilities >= model.change_threshold
    by_router, by_label = ([int(flags[share].sum()) for share in SHARES] for flags in (routed, pairs.changed))
    assert (by_router, by_label) == ([3, 1], [3, 2])  # to weigh by the labels would be wrong
    return model, pairs


@pytest.fixture(scope="module")
def workers(whole: tuple[HiSem, Batch], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two workers with a share of the pairs each found."""
    model, pairs = whole
    folder = tmp_path_factory.mktemp("ddp")
    state = {
        "config": to_dict(model.config),
        "vocabulary": model.vocabulary.to_dict(),
        "weights": model.state_dict(),
        "threshold": model.change_threshold,
        "shares": [share_of(pairs, share).__dict__ for share in SHARES],
    }
    torch.save(state, folder / "state.pt")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(folder)], env=environment, stderr=subprocess.PIPE)
        for rank in range(len(SHARES))
    ]
    try:
        ends = [process.communicate(timeout=200)[1].decode() for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * len(SHARES), "\n".join(ends)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(len(SHARES))]


@pytest.mark.parametrize("epoch", [LABELLED, ROUTED])
def test_two_workers_have_the_gradient_of_the_whole_batch(
    whole: tuple[HiSem, Batch], workers: list[dict[str, Any]], epoch: int
) -> None:
    model, pairs = whole
    output = forward(model, model, pairs, epoch)
    assert output.change_logits is not None
    # Written out, without `objective`.
    words = nn.CrossEntropyLoss(ignore_index=NULL)(output.logits.transpose(1, 2), pairs.word_ids[:, 1:])
    router = nn.CrossEntropyLoss()(output.change_logits, pairs.changed.long())
    (words + 0.8 * RECIPE.router_gradient(epoch) * router + output.balance_loss).backward()
    expected = gradients(model)
    model.zero_grad()

    assert output.balance_loss > 0
    values = torch.stack([words, router, output.balance_loss]).detach()
    assert workers[0]["shares"][epoch] != workers[1]["shares"][epoch]
    for worker in workers:
        assert torch.allclose(worker["losses"][epoch], values, rtol=1e-5)
        assert set(worker["gradients"][epoch]) == set(expected)
        for name, gradient in expected.items():
            theirs = worker["gradients"][epoch][name]
            assert (theirs - gradient).norm() <= 1e-5 * gradient.norm() + 1e-9, name
    assert sum(gradient.count_nonzero().item() for gradient in expected.values()) > 1000


def test_a_loss_that_is_not_finite_stops_all_workers_with_the_culprits_tiles(workers: list[dict[str, Any]]) -> None:
    first, second = (worker["stopped"] for worker in workers)
    assert first["message"] == second["message"]
    assert "epoch 20, step 0" in first["message"]
    culprits, innocent = (set(workers[rank]["tiles"]) for rank in (1, 0))
    named = first["message"].partition("Tiles: ")[2]
    assert all(tile in named for tile in culprits)
    assert not any(tile in named for tile in innocent)
    assert first["unchanged"]


def still(model: HiSem) -> HiSem:
    """Training mode with the statistics of batch norm held, so that pairs do not see one another."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def share_of(pairs: Batch, share: slice) -> Batch:
    """Some of the pairs, padded to their own longest sentence, as a worker collates them."""
    word_ids = pairs.word_ids[share]
    width = int((word_ids != NULL).sum(1).max())
    return Batch(
        pairs.tile_ids[share],
        pairs.before[share],
        pairs.after[share],
        word_ids[:, :width],
        pairs.changed[share],
        pairs.references[share],
    )


def forward(model: nn.Module, hisem: HiSem, pairs: Batch, epoch: int) -> HiSemOutput:
    labels = pairs.changed if epoch < RECIPE.label_routing_epochs else None
    output: HiSemOutput = model(
        hisem.preprocess(pairs.before), hisem.preprocess(pairs.after), pairs.word_ids[:, :-1], labels
    )
    return output


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """All gradients; zero where a parameter had no part."""
    return {
        name.removeprefix("module."): torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def worker(rank: int, folder: Path) -> None:
    """One of two workers over its share: losses and gradients, then an epoch in which worker 1 breaks."""
    state = torch.load(folder / "state.pt", weights_only=True)
    hisem = HiSem(from_dict(HiSemConfig, state["config"], "test"), Vocabulary.from_dict(state["vocabulary"]))
    hisem.load_state_dict(state["weights"])
    hisem.change_threshold = state["threshold"]
    still(hisem)
    pairs = Batch(**state["shares"][rank])
    dist.init_process_group(
        "gloo", f"file://{folder}/rendezvous", timedelta(seconds=60), world_size=len(SHARES), rank=rank
    )
    model = nn.parallel.DistributedDataParallel(hisem, find_unused_parameters=True)
    found: dict[str, Any] = {"tiles": pairs.tile_ids, "losses": {}, "shares": {}, "gradients": {}}
    for epoch in (LABELLED, ROUTED):
        model.zero_grad()
        output = forward(model, hisem, pairs, epoch)
        routed = path_taken(output, pairs.changed if epoch == LABELLED else None, hisem)
        losses = objective(output, pairs.word_ids, pairs.changed, routed, RECIPE, epoch)
        losses.total.backward()
        own = torch.stack([losses.caption, losses.router, losses.balance])
        found["shares"][epoch], found["losses"][epoch] = own.tolist(), summed(own)
        found["gradients"][epoch] = gradients(model)
    if rank == 1:
        nn.init.constant_(hisem.decoder.output.bias, torch.nan)
    weights = {name: parameter.detach().clone() for name, parameter in hisem.named_parameters()}
    try:
        train_epoch(model, hisem, [pairs], make_optimizer(hisem, RECIPE), RECIPE, LABELLED, 1)
    except TrainingError as error:
        unchanged = all(parameter.equal(weights[name]) for name, parameter in hisem.named_parameters())
        found["stopped"] = {"message": str(error), "unchanged": unchanged}
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    worker(int(sys.argv[1]), Path(sys.argv[2]))
