"""Captions of labelled tiles, and their scores worked out by hand."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from hisem.errors import DatasetError
from hisem.model.hisem import HiSem
from hisem.text.metrics import CaptionScorer
from hisem.text.vocabulary import UNCHANGED_SENTENCE
from hisem.training.batches import Batch
from hisem.training.evaluation import TileResult, caption_batches, expert_load, router_curve, score


def result(caption: str, reference: str, predicted: bool, changed: bool) -> TileResult:
    return TileResult("t", caption, predicted, 0.5, -1.0, [reference], changed)


def test_scores_by_hand() -> None:
    metrics = score(
        [
            result(UNCHANGED_SENTENCE, UNCHANGED_SENTENCE, predicted=False, changed=False),
            result("a road is built here now", "a house is built here now", predicted=True, changed=True),
        ]
    )
    # Matching n-grams of the first tile, all of them, and of the second.
    precision = [(7 + 5) / (7 + 6), (6 + 3) / (6 + 5), (5 + 2) / (5 + 4), (4 + 1) / (4 + 3)]
    product = 1.0
    for n, part in enumerate(precision, 1):
        product *= part
        assert metrics[f"bleu_{n}"] == pytest.approx(product ** (1 / n), rel=1e-6)
    assert metrics["changed_bleu_4"] == pytest.approx((5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25, rel=1e-6)
    assert metrics["rouge_l"] == pytest.approx((1 + 5 / 6) / 2)
    assert {name for name in metrics if name.startswith("change_")} == {
        "change_accuracy",
        "change_precision",
        "change_recall",
        "change_f1",
    }
    assert metrics["change_accuracy"] == metrics["change_f1"] == 1
    assert "meteor" not in metrics
    assert all(type(value) is float for value in metrics.values())


def test_change_scores_come_from_the_decision_not_from_the_text() -> None:
    said = [(True, True), (True, True), (True, False), (False, True), (False, False), (False, False), (False, False)]
    metrics = score([result("a b c d", "a b c d", predicted, changed) for predicted, changed in said])
    assert metrics["change_accuracy"] == pytest.approx(5 / 7)
    assert metrics["change_precision"] == pytest.approx(2 / 3)
    assert metrics["change_recall"] == pytest.approx(2 / 3)
    assert metrics["change_f1"] == pytest.approx(2 / 3)


def test_router_accuracy_is_that_of_models_with_a_router() -> None:
    results = [result("a b c d", "a b c d", predicted, True) for predicted in (True, True, False)]
    assert score(results)["router_accuracy"] == pytest.approx(2 / 3)
    assert "router_accuracy" not in score([replace(each, change_probability=None) for each in results])


@pytest.mark.skipif(shutil.which("java") is None, reason="METEOR needs Java")
def test_one_scorer_serves_many_epochs() -> None:
    with CaptionScorer() as scorer:
        for said, least, most in (("a road is built", 0.9, 1.0), ("trees", 0.0, 0.1)):
            metrics = score([result(said, "a road is built", predicted=True, changed=True)] * 2, scorer)
            assert least <= metrics["meteor"] <= most
            parts = [metrics[name] for name in ("bleu_4", "meteor", "rouge_l", "cider_d")]
            assert metrics["s_m"] == pytest.approx(sum(parts) / 4)


def test_without_changed_tiles_there_is_no_score_of_them() -> None:
    metrics = score([result("a b c d", "a b c d", predicted=False, changed=False)] * 2)
    assert "changed_bleu_4" not in metrics
    assert metrics["bleu_4"] == pytest.approx(1)
    with pytest.raises(DatasetError, match="empty"):
        score([])


def test_every_tile_is_captioned_once_and_as_the_model_says(
    tiny: Callable[..., HiSem], batch: Callable[..., Batch]
) -> None:
    model = tiny(hasd={"dropout": 0.5}, decoder={"dropout": 0.5}).train()
    batches = [batch(5, seed=1), batch(3, seed=2)]
    results = caption_batches(model, batches)
    assert not model.training
    alone = []
    for pairs in batches:
        for number in range(len(pairs)):
            (said,) = model.caption(pairs.before[number : number + 1], pairs.after[number : number + 1])
            alone.append((pairs.tile_ids[number], pairs.references[number], bool(pairs.changed[number]), said))
    assert len(results) == 8
    for found, (tile, references, changed, said) in zip(results, alone, strict=True):
        assert (found.tile_id, found.references, found.changed) == (tile, references, changed)
        assert (found.caption, found.predicted) == (said.text, said.changed)
        assert found.change_probability == pytest.approx(said.change_probability, rel=1e-4)
        assert found.logprob == pytest.approx(said.logprob, rel=1e-4)


def test_beam_and_unknown_words_reach_the_model(tiny: Callable[..., HiSem], batch: Callable[..., Batch]) -> None:
    model, pairs = tiny(), batch(4)
    greedy, wide = caption_batches(model, [pairs]), caption_batches(model, [pairs], beam=4)
    assert sum(r.logprob for r in wide) > sum(r.logprob for r in greedy)
    with torch.no_grad():
        model.decoder.output.bias[1] = 50.0  # the unknown word, above all others
    assert not any("<UNK>" in r.caption for r in caption_batches(model, [pairs]))
    assert all("<UNK>" in r.caption for r in caption_batches(model, [pairs], keep_unknown=True))


def test_both_captions_are_those_of_either_threshold(tiny: Callable[..., HiSem], batch: Callable[..., Batch]) -> None:
    model, pairs = tiny(), batch(6)
    with torch.no_grad():
        model.decoder.output.weight *= 12  # so that the paths show in what is said
    results = caption_batches(model, [pairs])
    assert any(r.caption_if_changed != r.caption_if_unchanged for r in results)
    for threshold, name in ((0.0, "caption_if_changed"), (1.0, "caption_if_unchanged")):
        model.set_routing(threshold=threshold)
        assert [getattr(r, name) for r in results] == [c.text for c in model.caption(pairs.before, pairs.after)]


def test_curve_at_the_models_threshold_is_its_score(tiny: Callable[..., HiSem], batch: Callable[..., Batch]) -> None:
    model, pairs = tiny(), batch(8)
    probabilities = [r.change_probability or 0.0 for r in caption_batches(model, [pairs])]
    for threshold in (0.0, *probabilities, 1.0):
        model.set_routing(threshold=threshold)
        results = caption_batches(model, [pairs])
        curve = router_curve(results)
        assert curve is not None
        assert curve.at(threshold).bleu_4 == pytest.approx(score(results)["bleu_4"], rel=1e-9)
        assert curve.at(threshold).change_f1 == pytest.approx(score(results)["change_f1"], rel=1e-9)


def test_expert_load_counts_the_tokens_of_tiles_called_changed(
    tiny: Callable[..., HiSem], batch: Callable[..., Batch]
) -> None:
    model, pairs = tiny(), batch(6)
    before = caption_batches(model, [pairs])
    model.set_routing(threshold=sorted(r.change_probability or 0.0 for r in before)[2])
    expected = [0] * 4
    for caption in model.caption(pairs.before, pairs.after, explain=True):
        assert caption.explanation is not None
        if caption.explanation.experts is not None:
            for expert in caption.explanation.experts.flatten().tolist():
                expected[expert] += 1
    load = expert_load(caption_batches(model, [pairs]))
    assert load is not None
    assert load.tolist() == expected
    assert sum(expected) == 4 * 4 * 4 * 2  # tiles, tokens of the 4 x 4 grid, choices of a token
    model.set_routing(threshold=1.0)
    none = expert_load(caption_batches(model, [pairs]))
    assert none is not None
    assert none.tolist() == [0] * 4


def test_without_a_router_there_is_no_probability(tiny: Callable[..., HiSem], batch: Callable[..., Batch]) -> None:
    results = caption_batches(tiny(hasd={"router": False}), [batch(4)])
    assert [r.change_probability for r in results] == [None] * 4
    assert [r.predicted for r in results] == [r.caption != UNCHANGED_SENTENCE for r in results]
    assert {(r.caption_if_unchanged, r.caption_if_changed) for r in results} == {(None, None)}
    assert expert_load(results) is None
    assert router_curve(results) is None
