from __future__ import annotations

import math
import random

import numpy as np
import pytest
from matplotlib.axes import Axes
from rich.console import Console

from hisem.report.sweep import Status, Trial, best_first, trials_table
from hisem.report.sweep_figures import (
    metric_by_parameter,
    parallel_coordinates,
    pareto_front,
    quality_by_speed,
    threshold_curves,
)
from hisem.text.threshold import ThresholdCurve

CURVE = ThresholdCurve((0.0, 0.2, 0.5, 0.9, 1.0), (0.3, 0.4, 0.35, 0.2, 0.1), (0.6, 0.6, 0.8, 0.5, 0.0))


def trial(
    name: str, bleu: float | None, status: Status = "finished", speed: float = 10.0, **parameters: float
) -> Trial:
    return Trial(
        name,
        dict(parameters),
        status,
        "ConfigError: groups must divide experts" if status == "failed" else "",
        epochs=0 if bleu is None else 3,
        metrics={} if bleu is None else {"bleu_4": bleu, "change_f1": 0.5},
        threshold=None if bleu is None else 0.2,
        captions_per_second=None if bleu is None else speed,
        seconds=12.4,
        curve=None if bleu is None else CURVE,
    )


TRIALS = [
    trial("a", 0.5, rate=1e-3, experts=4),
    trial("b", None, "failed", rate=3e-2, experts=5),
    trial("c", 0.7, rate=1e-2, experts=16, speed=5.0),
    trial("d", 0.6, "stopped", rate=1e-4, experts=8, speed=8.0),
    trial("e", math.nan, rate=1e-4, experts=8),
]


def points(axes: Axes) -> list[tuple[float, float]]:
    """The dots of a panel."""
    return [
        (float(np.asarray(line.get_xdata())[0]), float(np.asarray(line.get_ydata())[0]))
        for line in axes.lines
        if line.get_marker() == "o"
    ]


def test_the_best_come_first_and_those_without_the_metric_last() -> None:
    assert [one.name for one in best_first(TRIALS, "bleu_4")] == ["c", "d", "a", "b", "e"]


def test_the_table_shows_each_trial_and_why_one_failed() -> None:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(trials_table(TRIALS, "change_accuracy"))
    text = console.export_text()
    rows = [line.split() for line in text.splitlines() if line.strip()[:1] in set("abcde") and len(line.split()) > 9]
    # trial, rate, experts, change accuracy, three metrics, threshold, BLEU-4 there, captions/s, seconds, epochs
    assert rows[2] == ["c", "0.01", "16", "-", "70.00", "-", "50.00", "0.2", "40.00", "5", "12", "3"]
    assert rows[3] == ["d", "0.0001", "8", "-", "60.00", "-", "50.00", "0.2", "40.00", "8", "12", "3,", "stopped"]
    assert rows[1] == ["b", "0.03", "5", "-", "-", "-", "-", "-", "-", "-", "12", "0,", "failed"]
    assert "b failed: ConfigError: groups must divide experts" in text


def test_parallel_coordinates_draw_each_value_at_its_place() -> None:
    axes = parallel_coordinates(TRIALS, "bleu_4").axes[0]
    lines = [line for line in axes.lines if len(np.asarray(line.get_xdata())) == 3]
    heights = {tuple(np.round(np.asarray(line.get_ydata(), float), 6)) for line in lines}
    # rate and experts (4 to 16) on logarithmic axes, BLEU-4 from 50 to 70 on an even one
    assert heights == {(0.5, 0.0, 0.0), (1.0, 1.0, 1.0), (0.0, 0.5, 0.5)}
    assert max(lines, key=lambda line: line.get_linewidth()).get_ydata()[-1] == 1.0  # type: ignore[index]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["rate", "experts", "BLEU-4\nx 100"]
    assert "trial c, BLEU-4 70.00 (2 without it left out)" in axes.get_title()


def test_metric_by_parameter_has_a_panel_for_each_that_varies() -> None:
    same = [trial(one.name, one.metrics.get("bleu_4"), one.status, **one.parameters, heads=4) for one in TRIALS]  # type: ignore[arg-type]
    panels = [axes for axes in metric_by_parameter(same, "bleu_4").axes if axes.get_visible()]
    assert [axes.get_xlabel() for axes in panels] == ["rate", "experts"]
    assert sorted(points(panels[0])) == [(1e-4, 60.0), (1e-3, 50.0), (1e-2, pytest.approx(70.0))]
    assert [axes.get_xscale() for axes in panels] == ["log", "linear"]
    hollow = [line for line in panels[0].lines if line.get_markerfacecolor() == "none"]
    assert [float(np.asarray(line.get_xdata())[0]) for line in hollow] == [1e-4]


def test_threshold_curves_mark_the_calibrated_threshold() -> None:
    bleu, f1 = threshold_curves(TRIALS, "bleu_4").axes
    named = {str(line.get_label()): line for line in bleu.lines if not str(line.get_label()).startswith("_")}
    assert list(named) == ["trial c, the best", "trial d", "trial a"]
    assert np.asarray(named["trial d"].get_ydata()).tolist() == [100 * value for value in CURVE.bleu_4]
    assert points(bleu) == [(0.2, 40.0)] * 3
    assert points(f1) == [(0.2, 60.0)] * 3


def test_the_front_has_those_that_none_beats() -> None:
    source = random.Random(0)
    trials = [trial(str(n), source.randint(0, 9) / 10, speed=float(source.randint(1, 9))) for n in range(40)]

    def beaten(one: Trial) -> bool:
        mine = (one.metrics["bleu_4"], one.captions_per_second or 0.0)
        rest = ((t.metrics["bleu_4"], t.captions_per_second or 0.0) for t in trials)
        return any(other != mine and other[0] >= mine[0] and other[1] >= mine[1] for other in rest)

    def place(one: Trial) -> tuple[float, float]:
        return one.metrics["bleu_4"], one.captions_per_second or 0.0

    front = pareto_front(trials, "bleu_4")
    assert {place(one) for one in front} == {place(one) for one in trials if not beaten(one)}
    speeds = [one.captions_per_second or 0.0 for one in front]
    assert speeds == sorted(speeds)


def test_quality_by_speed_names_the_front() -> None:
    (axes,) = quality_by_speed(TRIALS, "bleu_4").axes
    assert sorted(points(axes)) == [(5.0, 70.0), (8.0, 60.0), (10.0, 50.0)]
    assert [text.get_text() for text in axes.texts] == ["trial c", "trial d", "trial a"]


@pytest.mark.parametrize("draw", [parallel_coordinates, metric_by_parameter, threshold_curves, quality_by_speed])
def test_nothing_is_drawn_of_nothing(draw) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="no trial has BLEU-4"):
        draw([trial("b", None, "failed", rate=1.0)], "bleu_4")


def test_one_trial_alone_is_drawn() -> None:
    alone = [trial("a", 0.5, rate=1e-3)]
    assert parallel_coordinates(alone, "bleu_4").axes[0].get_xticklabels()[-1].get_text() == "BLEU-4\nx 100"
    assert quality_by_speed(alone, "bleu_4").axes
    with pytest.raises(ValueError, match="no parameter varies"):
        metric_by_parameter(alone, "bleu_4")
