from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from rich.console import Console

from hisem.report.scale import scale_of
from hisem.report.sweep import (
    NONE,
    Status,
    Trial,
    Value,
    best_first,
    label,
    number,
    short_names,
    trial_names,
    trials_table,
)
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
    name: str, bleu: float | None, status: Status = "finished", speed: float | None = 10.0, **parameters: Value
) -> Trial:
    return Trial(
        name,
        dict(parameters),
        status,
        "ConfigError: groups must divide experts\n  Traceback" if status == "failed" else "",
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
    """The marks of a panel."""
    return [(float(x), float(y)) for group in axes.collections for x, y in np.asarray(group.get_offsets())]


def dots(axes: Axes) -> list[tuple[float, float]]:
    lines = [line for line in axes.lines if line.get_marker() == "o"]
    return [(float(np.asarray(line.get_xdata())[0]), float(np.asarray(line.get_ydata())[0])) for line in lines]


def paths(axes: Axes, count: int) -> list[list[float]]:
    """Heights of the lines across so many upright axes, in the order in which they were drawn."""
    lines = [np.asarray(line.get_ydata(), float) for line in axes.lines if line.get_marker() == "o"]
    assert {len(line) for line in lines} == {count}
    return [np.round(line, 6).tolist() for line in lines]


def note(figure: Figure) -> str:
    return figure.get_supxlabel()


def rows(trials: list[Trial], metric: str, width: int = 120) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(trials_table(trials, metric))
    return [line.rstrip() for line in capture.get().splitlines() if line.strip()]


def test_the_best_come_first_and_those_without_the_metric_last() -> None:
    assert [one.name for one in best_first(TRIALS, "bleu_4")] == ["c", "d", "a", "b", "e"]
    assert [one.name for one in best_first(TRIALS, "cider_d")] == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(3e-4, "3e-4"), (1.234e-5, "1.23e-5"), (0.05, "0.05"), (0.0, "0"), (1234.0, "1234"), (2e5, "2e5"), (8, "8")],
)
def test_numbers_are_short(value: Value, text: str) -> None:
    assert number(value) == text


def test_names_are_as_short_as_tells_them_apart() -> None:
    assert short_names(["model.bdam.layers", "model.hasd.moe.layers", "training.rate", "layers"]) == {
        "model.bdam.layers": "bdam.layers",
        "model.hasd.moe.layers": "moe.layers",
        "training.rate": "rate",
        "layers": "layers",
    }
    assert short_names(["a.x", "b.a.x", "ba.x"]) == {"a.x": "a.x", "b.a.x": "b.a.x", "ba.x": "ba.x"}
    assert trial_names([trial("f00_00001", 0.1), trial("f00_00002", 0.1)]) == {
        "f00_00001": "00001",
        "f00_00002": "00002",
    }
    assert trial_names([trial("a_1", 0.1), trial("b_1", 0.1)]) == {"a_1": "a_1", "b_1": "b_1"}
    assert [label(name) for name in ("bleu_4", "s_m", "change_f1", "router_speed")] == [
        *("BLEU-4", "S*m", "change F1", "router speed")
    ]


def test_the_table_shows_each_trial_and_why_one_failed() -> None:
    shown = rows([replace(one, parameters=one.parameters | {"model.heads": 4}) for one in TRIALS], "change_accuracy")
    assert shown[0] == "trials by change accuracy"
    cells = [line.split() for line in shown if line.split()[0] in set("abcde")]
    # trial, status, rate, experts, change accuracy, BLEU-4, S*m, change F1, threshold, captions/s, epochs, seconds
    assert cells[0] == ["a", "finished", "1e-3", "4", NONE, "50.00", NONE, "50.00", "0.2", "10", "3", "12"]
    assert cells[1] == ["b", "failed", "0.03", "5", *[NONE] * 6, "0", "12"]
    assert cells[2] == ["c", "finished", "0.01", "16", NONE, "70.00", NONE, "50.00", "0.2", "5", "3", "12"]
    assert cells[3][:4] == ["d", "stopped", "1e-4", "8"]
    assert cells[4][5] == NONE
    assert shown[-3:] == [
        "metrics x 100, of each trial's best epoch",
        "the same in all: heads 4",
        "b failed: ConfigError: groups must divide experts",
    ]
    assert [line.split()[0] for line in rows(TRIALS, "bleu_4") if line.split()[0] in set("abcde")][:3] == [
        "c",
        "d",
        "a",
    ]


def test_a_table_of_many_parameters_cuts_no_number_at_120_columns() -> None:
    names = ["experts", "groups", "groups_kept", "top_k", "lambda", "shared_experts", "balance_weight", "learning_rate"]
    parameters: dict[str, Value] = {name: 1.234e-4 * n for n, name in enumerate(names, 1)}
    one = replace(trial("f00_00001", 0.5), parameters=parameters, error="x" * 200)
    shown = rows([one, trial("f00_00002", None, "unfinished")], "bleu_4")
    assert max(map(len, shown)) <= 120
    values = [number(value) for value in parameters.values()]
    assert next(line.split() for line in shown if line.startswith("00001")) == [
        *("00001", "finished", *values, "50.00", NONE, "50.00", "0.2", "10", "3", "12")
    ]
    assert sum(line.count("x") for line in shown[-2:]) == 200


def test_brackets_in_the_table_are_text_and_none_may_vary() -> None:
    shown = rows([replace(trial("[red]", 0.5, rate=1.0), error="[/] broken")], "bleu_4")
    assert any(line.startswith("[red]") for line in shown)
    assert shown[-2:] == ["the same in all: rate 1", "[red] failed: [/] broken"]
    assert rows([], "bleu_4")[0] == "trials by BLEU-4"


def test_scales_are_logarithmic_from_one_decade_on() -> None:
    rates = scale_of([1e-4, 1e-2, 1e-3, None, 2e-4, 2e-3, 2.5e-3])
    assert rates.log
    assert rates.ticks == {1e-4: "1e-4", 3e-4: "3e-4", 1e-3: "1e-3", 3e-3: "3e-3", 1e-2: "0.01"}
    assert rates.places([1e-4, 1e-3, 1e-2]) == pytest.approx([0, 0.5, 1])
    assert math.isnan(rates.values[3])
    assert not scale_of([1.0, 9.99]).log
    assert scale_of([1, 10]).log
    assert not scale_of([0, 10]).log
    whole = scale_of([3, 4, 5, 6, 7, 8, 9, 11])
    assert all(tick == round(tick) for tick in whole.ticks)
    assert set(whole.ticks.values()) == {"4", "6", "8", "10"}
    names = scale_of(["swin", "resnet", None, "vit"])
    assert (names.places(names.values)[:2], names.ticks) == ([0.5, 0.0], {0.0: "resnet", 1.0: "swin", 2.0: "vit"})


def test_ticks_keep_their_distance() -> None:
    scale = scale_of([1, 2, 50, 51, 100])
    assert [text for _, _, text in scale_of([1.0, 2.0, 5.0, 5.1, 9.0]).labels(0.05)] == ["1", "2", "5", "9"]
    assert scale.log
    assert [text for _, _, text in scale.labels(0.05)] == ["1", "2", "50", "100"]


def test_parallel_coordinates_draw_each_value_at_its_place() -> None:
    figure = parallel_coordinates(TRIALS, "bleu_4")
    axes, bar = figure.axes
    # worst to best; rate on a logarithmic axis, experts (4 to 16) and BLEU-4 (50 to 70) on even ones
    assert paths(axes, 3) == [[0.5, 0.0, 0.0], [0.0, pytest.approx(1 / 3, abs=1e-6), 0.5], [1.0, 1.0, 1.0]]
    widths = [line.get_linewidth() for line in axes.lines if line.get_marker() == "o"]
    assert widths[2] > widths[0] == widths[1]
    assert len({line.get_color() for line in axes.lines if line.get_marker() == "o"}) == 3
    assert [text.get_text() for text in axes.get_xticklabels()] == ["rate", "experts", "BLEU-4\nx 100"]
    assert [text.get_text() for text in axes.texts] == ["1e-4", "1e-3", "0.01", "4", "8", "16", "50", "60", "70"]
    assert "trial c, BLEU-4 70.00" in axes.get_title()
    assert note(figure) == "2 of 5 trials left out: without BLEU-4"
    assert bar.get_ylabel() == "BLEU-4 x 100"
    assert note(parallel_coordinates(TRIALS[2:4], "bleu_4")) == ""


def test_parallel_coordinates_of_names_and_of_parameters_that_some_lack() -> None:
    trials = [
        trial("a", 0.5, backbone="vit_small_patch16"),
        trial("b", 0.6, backbone="resnet"),
        trial("c", 0.7, backbone="swin", k=1),
    ]
    axes = parallel_coordinates(trials, "bleu_4").axes[0]
    assert paths(axes, 3) == [[1.0, -0.12, 0.0], [0.0, -0.12, 0.5], [0.5, 0.5, 1.0]]
    assert [text.get_text() for text in axes.texts][:5] == ["resnet", "swin", "vit_small_\npatch16", "1", NONE]


def test_metric_by_parameter_has_a_panel_for_each_that_varies() -> None:
    same = [replace(one, parameters=one.parameters | {"heads": 4}) for one in TRIALS]
    figure = metric_by_parameter(same, "bleu_4")
    rate, experts = figure.axes
    assert [axes.get_xlabel() for axes in figure.axes] == ["rate", "experts"]
    assert sorted(points(rate)) == [(1e-4, 60.0), (1e-3, 50.0), (1e-2, 70.0)]
    assert sorted(points(experts)) == [(4, 50.0), (8, 60.0), (16, 70.0)]
    assert (rate.get_xscale(), experts.get_xscale()) == ("log", "linear")
    assert [text.get_text() for text in experts.get_xticklabels()] == ["4", "8", "16"]
    assert rate.get_ylim() == experts.get_ylim()
    assert (rate.get_ylabel(), experts.get_ylabel()) == ("BLEU-4 x 100", "")
    finished, stopped = rate.collections
    assert len(np.asarray(finished.get_facecolor())) == 1
    assert len(np.asarray(stopped.get_facecolor())) == 0  # hollow
    assert np.asarray(stopped.get_offsets()).tolist() == [[1e-4, 60.0]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["finished", "stopped early"]
    assert note(figure) == "2 of 5 trials left out: without BLEU-4"


def test_panels_go_on_in_further_rows_and_one_is_enough() -> None:
    trials = [replace(trial(f"{n}", n / 10), parameters={f"p{place}": n for place in range(6)}) for n in range(1, 4)]
    assert [axes.get_visible() for axes in metric_by_parameter(trials, "bleu_4").axes] == [True] * 6 + [False] * 2
    (axes,) = metric_by_parameter([trial("a", 0.5, net="vit"), trial("b", 0.6, net="swin")], "bleu_4").axes
    assert sorted(points(axes)) == [(0.0, 60.0), (1.0, 50.0)]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["swin", "vit"]


def test_threshold_curves_mark_the_calibrated_threshold() -> None:
    figure = threshold_curves(TRIALS, "bleu_4")
    bleu, f1 = figure.axes
    named = {str(line.get_label()): line for line in bleu.lines if not str(line.get_label()).startswith("_")}
    assert list(named) == ["trial c, the best", "trial d", "trial a"]
    assert np.asarray(named["trial d"].get_xdata()).tolist() == list(CURVE.thresholds)
    assert np.asarray(named["trial d"].get_ydata()).tolist() == [100 * value for value in CURVE.bleu_4]
    assert {line.get_drawstyle() for line in named.values()} == {"steps-pre"}
    widths = [line.get_linewidth() for line in named.values()]
    assert widths[0] > widths[1] == widths[2]
    assert dots(bleu) == [(0.2, 40.0)] * 3
    assert dots(f1) == [(0.2, 60.0)] * 3
    assert (bleu.get_ylabel(), f1.get_ylabel()) == ("BLEU-4 x 100", "change F1 x 100")
    assert note(figure) == "2 of 5 trials left out: without BLEU-4 or curve"


def test_threshold_curves_are_those_of_the_best() -> None:
    figure = threshold_curves([*TRIALS, replace(trial("f", 0.9), curve=None)], "bleu_4", most=2)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["trial c, the best", "trial d"]
    assert note(figure) == "the best 2 of 3 trials by BLEU-4; 3 of 6 trials left out: without BLEU-4 or curve"
    with pytest.raises(ValueError, match="no trial has a threshold curve"):
        threshold_curves([replace(TRIALS[0], curve=None)], "bleu_4")


def test_the_front_has_those_that_none_beats() -> None:
    source = random.Random(1)
    trials = [trial(str(n), source.randint(0, 9) / 10, speed=float(source.randint(1, 9))) for n in range(40)]

    def beaten(one: Trial) -> bool:
        mine = (one.metrics["bleu_4"], one.captions_per_second or 0.0)
        rest = ((t.metrics["bleu_4"], t.captions_per_second or 0.0) for t in trials)
        return any(other != mine and other[0] >= mine[0] and other[1] >= mine[1] for other in rest)

    front = pareto_front(trials, "bleu_4")
    assert sorted(one.name for one in front) == sorted(one.name for one in trials if not beaten(one))
    assert len({one.captions_per_second for one in front}) < len(front)  # equal ones are in the sample
    speeds = [one.captions_per_second or 0.0 for one in front]
    assert speeds == sorted(speeds)


def test_quality_by_speed_names_the_front() -> None:
    slow = trial("f00_slow", 0.55, speed=4.0)
    figure = quality_by_speed([*TRIALS, slow, trial("g", 0.9, speed=None)], "bleu_4")
    (axes,) = figure.axes
    assert sorted(points(axes)) == [(4.0, pytest.approx(55.0)), (5.0, 70.0), (8.0, 60.0), (10.0, 50.0)]
    (line,) = axes.lines
    assert np.asarray(line.get_xydata()).tolist() == [[5.0, 70.0], [8.0, 60.0], [10.0, 50.0]]
    assert line.get_drawstyle() == "steps-pre"
    assert [text.get_text() for text in axes.texts] == ["c", "d", "a"]
    assert "captions/s" in axes.get_xlabel()
    assert note(figure) == "3 of 7 trials left out: without BLEU-4 or speed"


def test_names_in_a_crowd_do_not_overlap() -> None:
    crowd = [trial(f"f00_{n:05d}", 0.5 - n / 1e4, speed=100 + n / 10) for n in range(5)]
    figure = quality_by_speed([*crowd, trial("f00_far", 0.1, speed=1.0)], "bleu_4")
    (axes,) = figure.axes
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 5
    assert not any(box.overlaps(other) for n, box in enumerate(boxes) for other in boxes[:n])
    assert all(axes.get_window_extent().contains(*corner) for box in boxes for corner in (box.min, box.max))


@pytest.mark.parametrize("draw", [parallel_coordinates, metric_by_parameter, threshold_curves, quality_by_speed])
def test_nothing_is_drawn_of_nothing(draw) -> None:  # type: ignore[no-untyped-def]
    for trials in ([], [trial("b", None, "failed", rate=1.0), trial("c", math.nan), trial("d", math.inf)]):
        with pytest.raises(ValueError, match="nothing to draw: no trial has BLEU-4"):
            draw(trials, "bleu_4")


def test_one_trial_alone_is_drawn() -> None:
    alone = [trial("a", 0.5, rate=1e-3)]
    axes, bar = parallel_coordinates(alone, "bleu_4").axes
    assert paths(axes, 1) == [[0.5]]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["BLEU-4\nx 100"]
    assert bar.get_ylim()[1] == 50.0
    assert points(quality_by_speed(alone, "bleu_4").axes[0]) == [(10.0, 50.0)]
    assert dots(threshold_curves(alone, "bleu_4").axes[0]) == [(0.2, 40.0)]
    with pytest.raises(ValueError, match="no parameter varies"):
        metric_by_parameter(alone, "bleu_4")


@pytest.mark.parametrize("draw", [parallel_coordinates, metric_by_parameter, threshold_curves, quality_by_speed])
def test_no_print_is_smaller_than_nine_points(draw) -> None:  # type: ignore[no-untyped-def]
    figure = draw([*TRIALS, trial("f", 0.4, rate=1e-3, net="resnet50_of_some_kind")], "bleu_4")
    assert figure.get_size_inches()[0] == 9
    figure.draw_without_rendering()
    assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 9
