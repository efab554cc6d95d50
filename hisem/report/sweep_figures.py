"""Figures of a sweep. Each raises `ValueError` where there is nothing to draw.

All are 9 inches wide, for a page or a README.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import cm, colors
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter

from hisem.report import style
from hisem.report.sweep import Trial, Value, best_first, label, parameter_names

WIDTH = 9.0
COLUMNS = 4
"""Panels side by side."""

MOST_CURVES = 6
LOG_SPAN = 4.0
"""Numbers whose largest is so many times their smallest are drawn on a logarithmic axis."""


def parallel_coordinates(trials: Sequence[Trial], metric: str) -> Figure:
    """One upright axis for each parameter that varies and one for the metric; a line a trial, coloured by the metric.

    The best trial's line is thick. Trials without the metric are left out, and counted.
    """
    drawn = _scored(trials, metric)
    names = [name for name in parameter_names(drawn) if _varies(drawn, name)]
    scales = [_Scale([trial.parameters.get(name) for trial in drawn]) for name in names]
    scales.append(_Scale([100 * trial.score(metric) for trial in drawn], log=False))
    heights = np.array([scale.places for scale in scales])  # axes trials
    scores = [100 * trial.score(metric) for trial in drawn]
    norm = colors.Normalize(min(scores), max(scores) if max(scores) > min(scores) else min(scores) + 1)
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    axes = figure.subplots()
    for place in reversed(range(len(drawn))):  # the best above the others
        axes.plot(
            range(len(scales)),
            heights[:, place],
            color=cm.viridis(norm(scores[place])),  # type: ignore[attr-defined]
            linewidth=3.5 if place == 0 else 1.5,
            alpha=1.0 if place == 0 else 0.75,
            marker="o",
            markersize=4,
        )
    for across, scale in enumerate(scales):
        axes.axvline(across, color="gray", linewidth=0.8, zorder=0)
        for height, text in scale.ticks:
            axes.text(across + 0.04, height, text, fontsize=8, va="center", bbox=_PLATE)
    axes.set_xticks(range(len(scales)), [name.replace("_", "\n") for name in names] + [f"{label(metric)}\nx 100"])
    axes.set_xlim(-0.15, len(scales) - 0.55)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_title(f"best: trial {drawn[0].name}, {label(metric)} {scores[0]:.2f}{_left_out(trials, drawn)}", size=10)
    bar = figure.colorbar(cm.ScalarMappable(norm, "viridis"), ax=axes, pad=0.01)
    bar.set_label(f"{label(metric)} x 100")
    return figure


def metric_by_parameter(trials: Sequence[Trial], metric: str) -> Figure:
    """The metric over each parameter that varies; trials that were stopped early have hollow marks."""
    drawn = _scored(trials, metric)
    names = [name for name in parameter_names(drawn) if _varies(drawn, name)]
    if not names:
        raise ValueError("no parameter varies between trials with the metric")
    rows = -(-len(names) // COLUMNS)
    figure = Figure(figsize=(WIDTH, 0.5 + 2.5 * rows), layout="constrained")
    panels = figure.subplots(rows, min(COLUMNS, len(names)), sharey=True, squeeze=False)
    for name, axes in zip(names, panels.flat, strict=False):
        _scatter(axes, name, drawn, metric)
    for axes in panels.flat[len(names) :]:
        axes.set_visible(False)
    for axes in panels[:, 0]:
        axes.set_ylabel(f"{label(metric)} x 100")
    marks = [
        Line2D([], [], linestyle="", marker="o", color=style.COLOURS[0], markerfacecolor=face, label=text)
        for face, text in ((style.COLOURS[0], "trained to the end"), ("none", "stopped early or cut off"))
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def threshold_curves(trials: Sequence[Trial], metric: str) -> Figure:
    """BLEU-4 and change F1 over the router's threshold of the best trials; a dot marks each calibrated threshold."""
    drawn = [trial for trial in _scored(trials, metric) if trial.curve is not None][:MOST_CURVES]
    if not drawn:
        raise ValueError("no trial has a threshold curve; its model has no router")
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    for axes, (name, title) in zip(
        figure.subplots(1, 2), (("bleu_4", "BLEU-4"), ("change_f1", "change F1")), strict=True
    ):
        for place, trial in enumerate(drawn):
            curve = trial.curve
            assert curve is not None
            colour, line = style.look(place)
            values = 100 * np.array(getattr(curve, name))
            width = 2.6 if place == 0 else 1.3
            text = f"trial {trial.name}" + (", the best" if place == 0 else "")
            # A threshold between two probabilities gives what the upper one gives.
            axes.plot(curve.thresholds, values, line, color=colour, linewidth=width, drawstyle="steps-pre", label=text)
            if trial.threshold is not None:
                axes.plot(trial.threshold, 100 * getattr(curve.at(trial.threshold), name), "o", color=colour)
        span = axes.get_ylim()
        style.dress(axes, "router's threshold (dots: calibrated)", f"{title} x 100")
        axes.set_ylim(span)  # the trials differ by little
        axes.set_xlim(-0.01, 1.01)
        axes.get_legend().remove()  # type: ignore[union-attr]
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def quality_by_speed(trials: Sequence[Trial], metric: str) -> Figure:
    """The metric over captions/s; trials that none beats in both are joined and named."""
    drawn = [trial for trial in _scored(trials, metric) if trial.captions_per_second]
    if not drawn:
        raise ValueError("no trial's speed is known")
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes = figure.subplots()
    for trial in drawn:
        face = style.COLOURS[0] if trial.status == "finished" else "none"
        axes.plot(_speed(trial), 100 * trial.score(metric), "o", color=style.COLOURS[0], markerfacecolor=face)
    front = pareto_front(drawn, metric)
    axes.plot(
        [_speed(trial) for trial in front],
        [100 * trial.score(metric) for trial in front],
        drawstyle="steps-pre",
        color=style.COLOURS[1],
        label="no trial is better in both",
    )
    for trial in front:
        axes.annotate(
            f"trial {trial.name}",
            (_speed(trial), 100 * trial.score(metric)),
            xytext=(5, 5),
            textcoords="offset points",
            fontsize=9,
        )
    axes.margins(x=0.12, y=0.1)
    axes.set_xlabel("captions/s (validation tiles captioned and scored)")
    axes.set_ylabel(f"{label(metric)} x 100")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower left", fontsize=9, frameon=False)
    return figure


def pareto_front(trials: Sequence[Trial], metric: str) -> list[Trial]:
    """Those that no other beats in the metric and in captions/s, the slowest first."""
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (-_speed(t), -t.score(metric))):
        if not front or trial.score(metric) > front[-1].score(metric):
            front.append(trial)
    return front[::-1]


_PLATE = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.5}
"""Behind text that lines cross."""


class _Scale:
    """An upright axis of height 1: where its values lie, and which are written beside it."""

    def __init__(self, values: Sequence[Value | None], log: bool | None = None) -> None:
        known = [value for value in values if value is not None]
        numbers = [float(value) for value in known if not isinstance(value, str)]
        if len(numbers) < len(known):  # names, evenly spaced
            order = sorted(set(map(str, known)))
            self._heights = {name: (n + 0.5) / len(order) for n, name in enumerate(order)}
            self.places = [self._heights.get(str(value), math.nan) for value in values]
            self.ticks = [(height, name) for name, height in self._heights.items()]
            return
        bend = math.log if (_log(numbers) if log is None else log) else float
        low, high = bend(min(numbers)), bend(max(numbers))

        def place(value: float) -> float:
            return (bend(value) - low) / (high - low) if high > low else 0.5

        self.places = [math.nan if value is None else place(float(value)) for value in values]
        distinct = sorted(set(numbers))
        if len(distinct) > 6:
            distinct = [distinct[0], distinct[len(distinct) // 2], distinct[-1]]
        self.ticks = [(place(value), f"{value:.3g}") for value in distinct]


def _scatter(axes: Axes, name: str, drawn: Sequence[Trial], metric: str) -> None:
    having = [trial for trial in drawn if name in trial.parameters]
    values = [trial.parameters[name] for trial in having]
    for trial, value in zip(having, values, strict=True):
        face = style.COLOURS[0] if trial.status == "finished" else "none"
        axes.plot([value], [100 * trial.score(metric)], "o", color=style.COLOURS[0], markerfacecolor=face)
    numbers = [float(value) for value in values if not isinstance(value, str)]
    if len(numbers) == len(values) and _log(numbers) and not all(isinstance(value, int) for value in values):
        axes.set_xscale("log")
        low, high = min(numbers), max(numbers)
        ticks = (low, math.sqrt(low * high), high)
        axes.set_xticks(ticks, [f"{tick:.1e}".replace("e-0", "e-") for tick in ticks])
        axes.xaxis.set_minor_formatter(NullFormatter())
    elif all(isinstance(value, int) for value in values):
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.margins(x=0.15)
    axes.set_xlabel(name.replace("_", " "))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _log(numbers: Sequence[float]) -> bool:
    return min(numbers) > 0 and max(numbers) / min(numbers) >= LOG_SPAN


def _varies(trials: Sequence[Trial], name: str) -> bool:
    return len({trial.parameters.get(name) for trial in trials}) > 1


def _scored(trials: Sequence[Trial], metric: str) -> list[Trial]:
    drawn = [trial for trial in best_first(trials, metric) if not math.isnan(trial.score(metric))]
    if not drawn:
        raise ValueError(f"no trial has {label(metric)}")
    return drawn


def _left_out(trials: Sequence[Trial], drawn: Sequence[Trial]) -> str:
    missing = len(trials) - len(drawn)
    return f" ({missing} without it left out)" if missing else ""


def _speed(trial: Trial) -> float:
    return trial.captions_per_second or 0.0
