"""The loss against a plain loop."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from hisem.model.hisem import HiSem, HiSemOutput
from hisem.text.vocabulary import END, NULL, START
from hisem.training.batches import Batch
from hisem.training.epoch import path_taken
from hisem.training.objective import Counts, moved_pairs, objective
from hisem.training.recipe import TrainingConfig

RECIPE = TrainingConfig()
LABELLED = 20
"""An epoch in which the labels choose the path."""


def log_softmax(logits: list[float], at: int) -> float:
    top = max(logits)
    return logits[at] - top - float(torch.tensor([x - top for x in logits], dtype=torch.float64).exp().sum().log())


def test_losses_are_means_over_words_and_pairs() -> None:
    torch.manual_seed(0)
    word_ids = torch.tensor([[START, 5, 6, END, NULL], [START, END, NULL, NULL, NULL], [START, 4, 5, 6, END]])
    changed = torch.tensor([True, False, True])
    output = HiSemOutput(3 * torch.randn(3, 4, 7), torch.randn(3, 2), torch.tensor(0.25))
    losses = objective(output, word_ids, changed, changed, Counts(8, 3, 2), RECIPE, LABELLED)

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
    losses = objective(output, torch.tensor([[START, END]] * 2), flags, flags, Counts(2, 2, 1), RECIPE, 3)
    losses.total.backward()
    assert logits.grad is not None
    assert torch.count_nonzero(logits.grad) == 0
    assert losses.router > 0


def test_without_a_router_there_is_the_caption_loss_alone() -> None:
    output = HiSemOutput(torch.randn(2, 1, 5), None, torch.tensor(0.0))
    nobody = torch.zeros(2, dtype=torch.bool)
    losses = objective(output, torch.tensor([[START, END]] * 2), ~nobody, nobody, Counts(2, 2, 1), RECIPE, LABELLED)
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


def test_pairs_on_the_changed_path_of_a_step_are_estimated_by_those_of_a_micro_batch() -> None:
    flags = torch.tensor([True, False, True, True])
    assert moved_pairs(flags, 4) == 3  # a step of one micro-batch: the count itself
    assert moved_pairs(flags, 12) == 9
    assert moved_pairs(torch.zeros(4, dtype=torch.bool), 12) == 1  # never 0, which is divided by
