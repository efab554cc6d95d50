"""How the model routes: scores over the image router's threshold, and how tokens spread over the experts.

Shapes: E experts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from hisem.report import style
from hisem.text.threshold import ThresholdCurve


def threshold_figure(curve: ThresholdCurve, threshold: float) -> Figure:
    """A figure 9 inches wide: BLEU-4 and change F1 (fractions) over the threshold, in [0, 1].

    Vertical lines mark the model's own `threshold` and the one with the highest BLEU-4.
    """
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots()
    for values, label, colour in (
        (curve.bleu_4, "BLEU-4", style.COLOURS[0]),
        (curve.change_f1, "change F1", style.COLOURS[1]),
    ):
        # A threshold between two probabilities gives what the upper one gives.
        axes.plot(curve.thresholds, values, color=colour, label=label, linewidth=1.6, drawstyle="steps-pre")
    for name, cut, line, colour in (
        ("the model's", curve.at(threshold), "-", style.COLOURS[6]),
        ("the best", curve.best(), "--", style.COLOURS[2]),
    ):
        label = f"{name} threshold {cut.threshold:.3g}: BLEU-4 {cut.bleu_4:.3f}, F1 {cut.change_f1:.3f}"
        axes.axvline(cut.threshold, color=colour, linestyle=line, linewidth=1.2, label=label)
    axes.set_xlim(-0.01, 1.01)
    style.dress(axes, "threshold: p(changed) from which on a pair is called changed", "score", columns=2)
    axes.set_ylim(top=1.02)
    return figure


def expert_load_figure(epochs: Sequence[Sequence[float]]) -> Figure:
    """A figure 9 inches wide: each expert's share of the tokens' choices, beside the share that is even.

    `epochs` has the counts or shares of E experts for each epoch, the newest last; bars show that one. With several
    epochs curves on the right show how the shares moved; an epoch in which no expert was chosen is a gap.

    Raises `ValueError` for no epochs.
    """
    if not epochs:
        raise ValueError("expert load: there is no epoch to draw")
    counts = np.array(epochs, float)  # epochs E
    total = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    panels = figure.subplots(1, 1 if len(epochs) == 1 else 2, squeeze=False)[0]
    experts = range(counts.shape[1])
    panels[0].bar(experts, np.nan_to_num(shares[-1]), color=[style.look(expert)[0] for expert in experts])
    panels[0].set_xticks(range(0, len(experts), -(-len(experts) // 16)))
    if not total[-1]:
        panels[0].text(0.5, 0.5, "no tile took the changed path", transform=panels[0].transAxes, ha="center")
    _finish(panels[0], len(experts), "expert")
    for axes in panels[1:]:
        numbers = range(1, len(epochs) + 1)
        for expert in experts:
            colour, line = style.look(expert)
            axes.plot(numbers, shares[:, expert], line, color=colour, label=f"{expert}", marker="o", markersize=3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _finish(axes, len(experts), "epoch (one line an expert)")
    return figure


def _finish(axes: Axes, experts: int, across: str) -> None:
    axes.axhline(1 / experts, color="gray", linestyle="--", linewidth=1.2, label=f"even share, 1/{experts}")
    style.dress(axes, across, "share of the tokens' choices", columns=6)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
