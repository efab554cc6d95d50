"""The recipe of section 6: weights and rates over the run, and what it refuses."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest

from hisem.errors import ConfigError
from hisem.training.evaluation import TileResult, score
from hisem.training.recipe import Metric, TrainingConfig

PAPER = TrainingConfig()


def test_router_gets_no_gradient_in_epochs_0_to_3_but_is_reported() -> None:
    assert [PAPER.router_gradient(epoch) for epoch in range(4)] == [0, 0, 0, 0]
    assert [PAPER.router_reported(epoch) for epoch in range(4)] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("epoch", "factor"),
    [
        (4, 0.0011165607),  # 0.5 (1 - cos(pi / 47)) = sin^2 of 180 / 94 = 1.914894 degrees
        (5, 0.0044612559),
        (26, 0.4832925115),  # 23 of 47 steps: as far below the half ...
        (27, 0.5167074885),  # ... as 24 of 47 are above
        (48, 0.9955387441),
        (49, 0.9988834393),  # 46 of 47: the last epoch stays below 1
    ],
)
def test_router_weight_then_rises_as_a_cosine(epoch: int, factor: float) -> None:
    assert PAPER.router_gradient(epoch) == pytest.approx(factor, abs=1e-10)
    assert PAPER.router_reported(epoch) == PAPER.router_gradient(epoch)


def test_router_weight_with_other_lengths() -> None:
    never = TrainingConfig(epochs=3, router_frozen_epochs=5)
    assert [never.router_gradient(epoch) for epoch in range(3)] == [0, 0, 0]
    at_once = TrainingConfig(epochs=4, router_frozen_epochs=0)  # from -1 to 4 in five steps
    assert at_once.router_gradient(0) == pytest.approx(math.sin(math.radians(18)) ** 2)
    assert at_once.router_reported(0) == at_once.router_gradient(0)
    constant = TrainingConfig(router_ramp="constant")
    assert [constant.router_gradient(epoch) for epoch in (0, 3, 49)] == [1, 1, 1]
    assert [constant.router_reported(epoch) for epoch in (0, 3, 49)] == [1, 1, 1]


def test_learning_rate_of_the_paper_never_moves() -> None:
    assert {PAPER.rate(step, 1000) for step in (0, 1, 500, 999)} == {1.0}


def test_learning_rate_warms_up_then_falls_as_a_cosine() -> None:
    recipe = TrainingConfig(schedule="cosine", warmup_steps=4)
    assert [recipe.rate(step, 12) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    # Eight steps remain: 1, then cosine squared of 11.25 degrees a step.
    expected = [math.cos(math.radians(11.25 * step)) ** 2 for step in range(8)]
    assert [recipe.rate(step, 12) for step in range(4, 12)] == pytest.approx(expected)
    assert recipe.rate(8, 12) == pytest.approx(0.5)
    assert recipe.rate(12, 12) == pytest.approx(0)
    assert recipe.rate(20, 12) == pytest.approx(0)
    held = TrainingConfig(warmup_steps=2)
    assert [held.rate(step, 5) for step in range(5)] == [0.5, 1, 1, 1, 1]
    assert TrainingConfig(schedule="cosine", warmup_steps=9).rate(4, 5) == pytest.approx(5 / 9)


@pytest.mark.parametrize(
    ("wrong", "bound"),
    [
        ({"epochs": 0}, "from 1 to"),
        ({"batch_size": -4}, "from 1 to"),
        ({"vocabulary_min_count": 0}, "from 1 to"),
        ({"learning_rate": 0.0}, "above 0"),
        ({"learning_rate": math.nan}, "above 0"),
        ({"learning_rate": math.inf}, "from 0 to|above 0 to"),
        ({"weight_decay": -0.1}, "a value from 0 to"),
        ({"weight_decay": math.nan}, "a value from 0 to"),
        ({"clip_norm": math.nan}, "a value from 0 to"),
        ({"clip_norm": -1.0}, "a value from 0 to"),
        ({"router_weight": math.inf}, "from 0 to|above 0 to"),
        ({"router_weight": -0.8}, "a value from 0 to"),
        ({"router_frozen_epochs": -1}, "a value from 0 to"),
        ({"warmup_steps": -1}, "a value from 0 to"),
        ({"seed": -1}, "a value from 0 to"),
        ({"micro_batch": -1}, "a value from 0 to"),
        ({"patience": -1}, "a value from 0 to"),
        ({"tint": 1.0}, "from 0 to below 1"),
        ({"tint": math.nan}, "from 0 to below 1"),
    ],
)
def test_invalid_values_are_named_with_their_bounds(wrong: dict[str, Any], bound: str) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(ConfigError, match=rf"training\.{name} is {value}: .*{bound}"):
        TrainingConfig(**wrong)


@pytest.mark.parametrize("metric", ["meteor", "s_m"])
def test_a_metric_that_is_not_scored_cannot_choose(metric: Metric) -> None:
    assert TrainingConfig(metric=metric).metric == metric
    with pytest.raises(ConfigError, match=rf"training\.metric={metric}: .*set training\.meteor=True, or choose"):
        TrainingConfig(metric=metric, meteor=False)


def test_every_metric_that_may_choose_is_scored() -> None:
    results = [
        TileResult("t", caption, caption != "a b c d", 0.5, -1.0, ["a b c e"], changed=True)
        for caption in ("a b c d", "a b c e")
    ]
    assert set(get_args(Metric)) - {"meteor", "s_m"} == set(score(results))  # which leaves those two to Java


@pytest.mark.parametrize(
    ("scores", "patience", "ends"),
    [
        ([], 1, False),
        ([0.1, 0.2, 0.3], 1, False),
        ([0.1, 0.3, 0.2], 1, True),
        ([0.1, 0.3, 0.2], 2, False),
        ([0.1, 0.3, 0.3, 0.2], 2, True),  # as good is not better
        ([0.3, 0.1, 0.2, 0.25], 3, True),  # better than the last is not better than the best
        ([0.3, 0.1, 0.1, 0.4], 2, False),
        ([0.3, math.nan, None], 2, True),
        ([math.nan, 0.1, None], 2, False),
        ([math.nan, 0.0], 1, False),
        ([0.3] + 40 * [0.1], 0, False),
    ],
)
def test_a_run_without_a_better_metric_is_stale(scores: list[float | None], patience: int, ends: bool) -> None:
    recipe = TrainingConfig(metric="rouge_l", patience=patience)
    history = [
        {"epoch": float(epoch), "val_bleu_4": float(epoch)} | ({} if value is None else {"val_rouge_l": value})
        for epoch, value in enumerate(scores)
    ]
    assert recipe.stale(history) == ends
