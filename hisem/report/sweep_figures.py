"""Figures of a sweep. Each raises `ValueError` where there is nothing to draw.

All are 9 inches wide, for a page or a README, and show metrics x 100. Trials without the metric are left out and
counted below.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.markers import TICKRIGHT
from matplotlib.transforms import Bbox

from hisem.report import style
from hisem.report.scale import Scale, scale_of
from hisem.report.sweep import NONE, Status, Trial, best_first, label, short_names, trial_names, varying

Point = tuple[float, float]

WIDTH = 9.0
SMALL = 9
"""Points of small print."""

COLUMNS = 4
"""Panels side by side."""

_COLOURS = "viridis_r"
"""Dark is better: yellow lines are lost on white."""

_BELOW = -0.12
"""Height, on an axis from 0 to 1, of trials that do not have the parameter."""

_MARKS: dict[Status, tuple[str, bool, str]] = {
    "finished": ("o", True, "finished"),
    "stopped": ("o", False, "stopped early"),
    "unfinished": ("^", False, "cut off"),
    "failed": ("s", False, "failed later"),
}
"""Mark, whether it is filled, and what the legend says."""

_NAME_PLACES: tuple[tuple[int, int, Literal["left", "right"]], ...] = (
    *((6, 5, "left"), (6, -5, "left"), (-6, 5, "right"), (-6, -5, "right")),
    *((6, height, "left") for height in (17, 29, -17, -29)),
    *((-6, height, "right") for height in (17, 29, -17, -29)),
)
"""Where a name may stand beside its mark, in points, the first choice first."""


def parallel_coordinates(trials: Sequence[Trial], metric: str) -> Figure:
    """One upright axis for each parameter that varies and one for the metric; a line a trial, coloured by the metric.

    The best trial's line is thick, and the title names it. Where nothing varies the metric's axis stands alone. Lines
    of trials that do not have a parameter pass below its axis.
    """
    drawn = _scored(trials, metric)
    names = varying(drawn)
    scores = [100 * trial.score(metric) for trial in drawn]
    scales = [
        *(scale_of([trial.parameters.get(name) for trial in drawn]) for name in names),
        scale_of(scores, log=False),
    ]
    heights = np.array([scale.places(scale.values) for scale in scales])  # axes trials
    norm = Normalize(min(scores) if min(scores) < scores[0] else scores[0] - 1, scores[0])
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    axes = figure.subplots()
    for place in reversed(range(len(drawn))):  # the best above the others
        axes.plot(
            range(len(scales)),
            np.nan_to_num(heights[:, place], nan=_BELOW),
            color=mpl.colormaps[_COLOURS](norm(scores[place])),
            linewidth=3.5 if place == 0 else 1.5,
            alpha=1.0 if place == 0 else 0.8,
            marker="o",
            markersize=4,
        )
    for across, scale in enumerate(scales):
        axes.plot([across, across], [0, 1], color="gray", linewidth=0.8, zorder=0)
        missing = [(math.nan, _BELOW, NONE)] if np.isnan(heights[across]).any() else []
        for _, height, text in scale.labels(0.06) + missing:
            axes.plot(across, height, marker=TICKRIGHT, color="gray", zorder=0)
            axes.annotate(_folded(text), (across, height), (7, 0), va="center", bbox=_PLATE, **_BESIDE)
    short = short_names(names)
    words = [short[name].replace(".", ".\n").replace("_", "\n") for name in names]
    axes.set_xticks(range(len(scales)), [*words, f"{label(metric)}\nx 100"])
    axes.set_xlim(-0.15, len(scales) - 0.5)
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    best = trial_names(trials)[drawn[0].name]
    axes.set_title(f"best (thick): trial {best}, {label(metric)} {scores[0]:.2f}", fontsize=10)
    figure.colorbar(ScalarMappable(norm, _COLOURS), ax=axes, pad=0.01, label=f"{label(metric)} x 100")
    _note(figure, _left_out(trials, drawn, label(metric)))
    return figure


def metric_by_parameter(trials: Sequence[Trial], metric: str) -> Figure:
    """A panel for each parameter that varies: the metric over it. Marks tell how a trial ended, hollow ones early.

    Raises `ValueError` also where nothing varies.
    """
    drawn = _scored(trials, metric)
    names = varying(drawn)
    if not names:
        raise ValueError(f"nothing to draw: no parameter varies between trials with {label(metric)}")
    short = short_names(names)
    rows = -(-len(names) // COLUMNS)
    figure = Figure(figsize=(WIDTH, 0.8 + 2.4 * rows), layout="constrained")
    panels = figure.subplots(rows, min(COLUMNS, len(names)), sharey=True, squeeze=False)
    scores = [100 * trial.score(metric) for trial in drawn]
    for name, axes in zip(names, panels.flat, strict=False):
        scale = scale_of([trial.parameters.get(name) for trial in drawn])
        _marks(axes, drawn, scale.values, scores)
        axes.set_xlabel(short[name].replace("_", " "))
        _cross_axis(axes, scale)
    for axes in panels.flat[len(names) :]:
        axes.set_visible(False)
    for axes in panels[:, 0]:
        axes.set_ylabel(f"{label(metric)} x 100")
    _legend(figure)
    _note(figure, _left_out(trials, drawn, label(metric)))
    return figure


def threshold_curves(trials: Sequence[Trial], metric: str, most: int = 8) -> Figure:
    """BLEU-4 and change F1 over the router's threshold of the `most` best trials that have a curve, the best thick.

    A dot marks each calibrated threshold.
    """
    having = [trial for trial in _scored(trials, metric) if trial.curve is not None]
    drawn = having[:most]
    if not drawn:
        raise ValueError("nothing to draw: no trial has a threshold curve; is the model one without router?")
    names = trial_names(trials)
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    panels = figure.subplots(1, 2, gridspec_kw={"wspace": 0.06})
    for axes, (name, title) in zip(panels, (("bleu_4", "BLEU-4"), ("change_f1", "change F1")), strict=True):
        for place, trial in enumerate(drawn):
            _curve(axes, trial, name, names[trial.name], place)
        axes.set_xlim(-0.02, 1.02)
        axes.set_xlabel("router's threshold (dots: calibrated)")
        axes.set_ylabel(f"{title} x 100")
        _dress(axes)
    _legend(figure)
    best = f"the best {len(drawn)} of {len(having)} trials by {label(metric)}" if len(drawn) < len(having) else ""
    _note(figure, best, _left_out(trials, having, f"{label(metric)} or curve"))
    return figure


def quality_by_speed(trials: Sequence[Trial], metric: str) -> Figure:
    """The metric over captions/s; trials that none beats in both are joined and named."""
    drawn = [trial for trial in _scored(trials, metric) if math.isfinite(_speed(trial))]
    if not drawn:
        raise ValueError("nothing to draw: no trial's speed is known")
    names = trial_names(trials)
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    axes = figure.subplots()
    points = [(_speed(trial), 100 * trial.score(metric)) for trial in drawn]
    _marks(axes, drawn, *zip(*points, strict=True))
    front = pareto_front(drawn, metric)
    corners = [(_speed(trial), 100 * trial.score(metric)) for trial in front]
    colour = style.COLOURS[1]
    text = "no trial is better in both"
    axes.plot(*zip(*corners, strict=True), drawstyle="steps-pre", color=colour, linewidth=1.4, zorder=1, label=text)
    axes.margins(x=0.1, y=0.14)
    axes.set_xlabel("captions/s (validation tiles captioned and scored)")
    axes.set_ylabel(f"{label(metric)} x 100")
    _dress(axes)
    _legend(figure)
    _note(figure, _left_out(trials, drawn, f"{label(metric)} or speed"))
    figure.draw_without_rendering()  # fixes how large the axes are
    _name_points(axes, [names[trial.name] for trial in front], corners, points)
    return figure


def pareto_front(trials: Sequence[Trial], metric: str) -> list[Trial]:
    """Those that no other beats in the metric and in captions/s, the slowest first; equal ones are all in it."""
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (-_speed(t), -t.score(metric))):
        last = (-math.inf, math.nan) if not front else (front[-1].score(metric), _speed(front[-1]))
        if trial.score(metric) > last[0] or (trial.score(metric), _speed(trial)) == last:
            front.append(trial)
    return front[::-1]


_BESIDE: dict[str, Any] = {"textcoords": "offset points", "fontsize": SMALL}

_PLATE = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.5}
"""Behind text that lines cross."""


def _cross_axis(axes: Axes, scale: Scale) -> None:
    """Scale and tick the axis across of a panel, and dress it."""
    if scale.log:
        axes.set_xscale("log")
        axes.minorticks_off()
    ticks = scale.labels(0.0) if scale.names else scale.labels(0.04, letter=0.04)
    axes.set_xticks([value for value, _, _ in ticks], [text for _, _, text in ticks], fontsize=SMALL)
    if scale.names and sum(map(len, scale.ticks.values())) > 20:
        for text in axes.get_xticklabels():
            text.set(rotation=30, ha="right", rotation_mode="anchor")
    axes.margins(x=0.15, y=0.1)
    _dress(axes)


def _dress(axes: Axes) -> None:
    """As `style.dress`, but metrics of trials differ by little, so that their axis need not start at 0."""
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _marks(axes: Axes, trials: Sequence[Trial], across: Sequence[float], upwards: Sequence[float]) -> None:
    for status, (mark, filled, text) in _MARKS.items():
        places = [place for place, trial in enumerate(trials) if trial.status == status]
        if places:
            xs, ys = np.array([across, upwards], float)[:, places]
            colour = style.COLOURS[0]
            face = colour if filled else "none"
            axes.scatter(xs, ys, s=36, marker=mark, facecolors=face, edgecolors=colour, label=text)


def _curve(axes: Axes, trial: Trial, name: str, text: str, place: int) -> None:
    """Curve number `place` of a trial, with a dot at its threshold."""
    curve = trial.curve
    assert curve is not None
    colour, line = style.look(place)
    axes.plot(
        curve.thresholds,
        100 * np.array(getattr(curve, name)),
        line,
        color=colour,
        linewidth=3.0 if place == 0 else 1.3,
        # A threshold between two probabilities gives what the upper one gives.
        drawstyle="steps-pre",
        label=f"trial {text}" + (", the best" if place == 0 else ""),
        zorder=3 if place == 0 else 2,
    )
    if trial.threshold is not None:
        height = 100 * getattr(curve.at(trial.threshold), name)
        axes.plot(trial.threshold, height, "o", color=colour, markersize=8, markeredgecolor="white", zorder=4)


def _legend(figure: Figure) -> None:
    """Above all panels, each entry of any of them once."""
    entries = {
        text: handle
        for axes in reversed(figure.axes)
        for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    place = "outside upper center"
    figure.legend(entries.values(), entries, loc=place, ncols=4, frameon=False, fontsize=SMALL)


def _note(figure: Figure, *texts: str) -> None:
    """Write what there is to say below the figure."""
    if any(texts):
        figure.supxlabel("; ".join(filter(None, texts)), fontsize=SMALL)


def _left_out(trials: Sequence[Trial], drawn: Sequence[Trial], lacking: str) -> str:
    missing = len(trials) - len(drawn)
    return f"{missing} of {len(trials)} trials left out: without {lacking}" if missing else ""


def _name_points(axes: Axes, names: Sequence[str], where: Sequence[Point], points: Sequence[Point]) -> None:
    """Write names beside points, where they cover neither another name nor a mark, if there is such a place."""
    inside = axes.get_window_extent()
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in axes.transData.transform(points)]
    for name, point in zip(names, where, strict=True):
        text = axes.annotate(name, point, (0, 0), va="center", **_BESIDE)
        for across, upwards, side in _NAME_PLACES:
            text.set_position((across, upwards))
            text.set_horizontalalignment(side)
            box = text.get_window_extent()
            if inside.contains(*box.min) and inside.contains(*box.max) and not box.count_overlaps(taken):
                break
        taken.append(box)


def _folded(text: str) -> str:
    """A long name on several lines, broken behind underscores where there are any."""
    return "\n".join(textwrap.wrap(text.replace("_", "_ "), 14)).replace("_ ", "_")


def _scored(trials: Sequence[Trial], metric: str) -> list[Trial]:
    """Those with the metric, best first; raises `ValueError` for none."""
    drawn = [trial for trial in best_first(trials, metric) if not math.isnan(trial.score(metric))]
    if not drawn:
        raise ValueError(f"nothing to draw: no trial has {label(metric)}")
    return drawn


def _speed(trial: Trial) -> float:
    return math.nan if trial.captions_per_second is None else trial.captions_per_second
