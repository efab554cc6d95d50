"""Unusual nights: found where something changed, and hardly ever where nothing did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from hisem.captions.drift import unusual
from hisem.captions.night import Night

START = datetime(2024, 5, 1, 1, 0, tzinfo=UTC)


def night(day: float, tiles: int = 1000, changed: int = 20, logprob: float | None = -4.0, **over: Any) -> Night:
    time = (START + timedelta(days=day)).isoformat()
    values: dict[str, Any] = {
        "run": f"run-{day}",
        "status": "finished",
        "catalogue": "c",
        "output": "o",
        "model_name": "hisem",
        "model_version": "1",
        "model_digest": "d",
        "started": time,
        "ended": time,
        "seconds": 1.0,
        "pairs": 1,
        "tiles": tiles,
        "already": 0,
        "statuses": {"ok": tiles, "skipped": 3, "failed": 2},
        "changed": changed,
        "share_changed": changed / tiles,
        "mean_logprob": logprob,
        "std_logprob": 1.0,
        "logprobs": tiles,
        "captions": {},
        "errors": (),
        "other_errors": 0,
        "tiles_per_second": 1.0,
    }
    return Night(**values | over)


def history(count: int = 10) -> list[Night]:
    """Nights that vary a little around 2 % and -4."""
    return [night(day, changed=20 + day % 3, logprob=-4 - 0.01 * (day % 3)) for day in range(count)]


def drawn(dice: np.random.Generator, day: int, tiles: int, share: float) -> Night:
    """A night of a model and a world that do not change: binomial, and a mean of `tiles` normal values."""
    return night(day, tiles, int(dice.binomial(tiles, share)), float(dice.normal(-4.0, 1 / np.sqrt(tiles))))


@pytest.mark.parametrize("share", [0.0005, 0.02, 0.3])
@pytest.mark.parametrize(("before", "tonight"), [(1000, 1000), (50, 50), (10_000, 50), (50, 10_000)])
@pytest.mark.parametrize("nights", [5, 20])
def test_false_alarms_are_rare(nights: int, before: int, tonight: int, share: float) -> None:
    """At most 2 % of 200 nights each; 1,000 of each show at most 0.5 %."""
    dice = np.random.default_rng(7)
    alarms = {"tiles are changed": 0, "log-probability": 0}
    for _ in range(200):
        told = unusual(drawn(dice, nights, tonight, share), [drawn(dice, day, before, share) for day in range(nights)])
        for kind in alarms:
            alarms[kind] += any(kind in sentence for sentence in told)
    assert max(alarms.values()) <= 4, alarms


def test_a_tripled_share_is_told_in_numbers() -> None:
    shares = [21, 18, 26, 20, 22, 21, 23]
    before = [night(day, changed=changed) for day, changed in enumerate(shares)]
    assert unusual(night(7, changed=63), before) == [
        "unusual: 6.30 % of the tiles are changed, above a median of 2.10 % (1.80 to 2.60 %) in the 7 nights before"
    ]


def test_a_tripled_share_and_a_dropped_probability_are_found_in_noise() -> None:
    dice = np.random.default_rng(3)
    for _ in range(50):
        before = [drawn(dice, day, 1000, 0.02) for day in range(20)]
        tripled = drawn(dice, 20, 1000, 0.06)
        assert [told.split(",")[1].split(" a ")[0] for told in unusual(tripled, before)] == [" above"]
        dropped = replace(drawn(dice, 20, 1000, 0.02), mean_logprob=-4.5)
        (told,) = unusual(dropped, before)
        assert told.startswith("unusual: the mean log-probability of a caption is -4.50, below a median of ")
        assert told.endswith("in the 20 nights before")


def test_both_directions_and_both_numbers() -> None:
    before = [night(day, changed=300 + day % 3) for day in range(10)]
    share, logprob = unusual(night(10, changed=100, logprob=-3.0), before)
    assert "10.0 % of the tiles are changed, below a median of 30.1 %" in share
    assert "is -3.00, above a median of -4.00 (-4.00 to -4.00)" in logprob


def test_nights_all_alike_do_not_make_noise_unusual() -> None:
    before = [night(day, changed=20) for day in range(20)]
    noise = (0.02 * 0.98 / 1000) ** 0.5
    assert unusual(night(20, changed=20 + int(2 * noise * 1000), logprob=-4 - 2 / 1000**0.5), before) == []
    assert len(unusual(night(20, changed=20 + int(5 * noise * 1000), logprob=-4 - 5 / 1000**0.5), before)) == 2
    assert unusual(night(20, changed=20), before) == []


def test_nothing_changed_so_far() -> None:
    before = [night(day, changed=0) for day in range(20)]
    assert unusual(night(20, changed=2), before) == []
    (told,) = unusual(night(20, changed=31), before)
    assert told.startswith("unusual: 3.10 % of the tiles are changed, above a median of 0.00 % (0.00 to 0.00 %)")


ODD: dict[str, Any] = {"changed": 500, "logprob": -9.0}


@pytest.mark.parametrize(
    ("tonight", "before"),
    [
        (night(10, **ODD), history(4)),
        (night(10, **ODD), []),
        (night(10, tiles=49, changed=40, logprob=-9.0), history()),
        (night(10, **ODD), [night(day, tiles=49) for day in range(10)]),
        (night(10, **ODD), [replace(one, model_digest="other") for one in history()]),
        (night(38, **ODD), history()),
        (night(-1, **ODD), history()),
        (night(10, share_changed=None, mean_logprob=None), history()),
        (night(10, **ODD), [replace(one, share_changed=None, mean_logprob=None) for one in history()]),
    ],
)
def test_too_little_to_compare_with_says_nothing(tonight: Night, before: list[Night]) -> None:
    assert len(unusual(night(10, **ODD), history())) == 2
    assert unusual(tonight, before) == []


@pytest.mark.parametrize("changes", [{}, {"share_changed": 0.9}])
def test_a_run_is_not_its_own_past(changes: dict[str, Any]) -> None:
    tonight = night(10, **ODD)
    tries = [replace(night(9 + hour / 24, **ODD), run=tonight.run, **changes) for hour in range(20)]
    assert unusual(tonight, [*history(4), tonight, *tries]) == []
    assert unusual(tonight, [*history(), *tries]) == unusual(tonight, history())


def test_nights_beyond_four_weeks_do_not_count() -> None:
    old = [night(day, changed=500) for day in range(-30, -18)]
    assert unusual(night(10), [*old, *history(6)]) == []
    assert "in the 6 nights before" in unusual(night(10, **ODD), [*old, *history(6)])[0]


@pytest.mark.parametrize("order", [reversed, sorted])
def test_the_order_of_nights_does_not_matter(order: Callable[..., Any]) -> None:
    numbers = list(order(range(10)))
    assert unusual(night(10, **ODD), [history()[number] for number in numbers]) == unusual(night(10, **ODD), history())
