"""Training curves: losses and validation scores by epoch."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hisem import storage

SCORE_LABELS = {
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "meteor": "METEOR",
    "rouge_l": "ROUGE-L",
    "cider_d": "CIDEr-D",
    "s_m": "S*m",
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
}
"""What figures call the scores that `hisem.text` computes."""

_SEPARATORS = "/._- "
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which colour-blind readers can tell apart, without its yellow."""

_STYLES = ("-", "--", ":")
"""Told apart by style once the colours are used up."""

_PIXELS_PER_INCH = 200


def training_curves(history: Sequence[Mapping[str, float | None]]) -> Figure:
    """A figure 9 inches wide: losses on the left, validation scores (as fractions) on the right.

    `history` has one mapping an epoch; `epoch` in it is its number, else its place counts from 0. Keys
    that contain `loss` are losses; keys that are a name in `SCORE_LABELS`, alone or behind a prefix
    (`validation/bleu_4`), are scores; anything else, such as times, is not drawn. A value that is
    missing, None or not finite is a gap; a curve of gaps alone, and a side without curves, is left out.

    Raises `ValueError` where `history` holds nothing to draw.
    """
    keys = dict.fromkeys(key for epoch in history for key, value in epoch.items() if math.isfinite(_number(value)))
    losses = {key: " ".join(_split(key)) for key in keys if "loss" in key}
    scores = {key: label for key in keys if key not in losses and (label := _score_label(key))}
    panels = [(title, labels) for title, labels in (("loss", losses), ("validation score", scores)) if labels]
    if not panels:
        raise ValueError(f"training history of {len(history)} epoch(s) has neither a loss nor a score to draw")

    numbers = [_number(epoch.get("epoch", place)) for place, epoch in enumerate(history)]
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    for axes, (title, labels) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for place, (key, label) in enumerate(labels.items()):
            values = [_number(epoch.get(key)) for epoch in history]
            colour, style = _COLOURS[place % len(_COLOURS)], _STYLES[place // len(_COLOURS) % len(_STYLES)]
            axes.plot(numbers, values, style, color=colour, label=label, marker="o", markersize=3, linewidth=1.6)
        _dress(axes, title)
    return figure


def save(figure: Figure, uri: str | Path) -> None:
    """Write `figure` as PNG, 1800 pixels for its 9 inches. Raises `StorageError` where it cannot be written."""
    content = io.BytesIO()
    # Without the library's version in it, equal figures are equal files.
    figure.savefig(content, format="png", dpi=_PIXELS_PER_INCH, metadata={"Software": None})
    storage.write_bytes(uri, content.getvalue())


def _dress(axes: Axes, title: str) -> None:
    axes.set_xlabel("epoch")
    axes.set_ylabel(title)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))  # a loss may be negative, a score never is
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, fontsize="small", frameon=False)


def _score_label(key: str) -> str | None:
    """The label of a score's key with its prefix, less what the axis says; None for any other key."""
    for name, label in SCORE_LABELS.items():
        prefix = key.removesuffix(name)
        if prefix != key and (not prefix or prefix[-1] in _SEPARATORS):
            return " ".join([*(word for word in _split(prefix) if word not in ("validation", "val")), label])
    return None


def _split(key: str) -> list[str]:
    return key.translate(dict.fromkeys(map(ord, _SEPARATORS), " ")).split()


def _number(value: float | None) -> float:
    """`value`, or NaN, which matplotlib leaves out, where it is missing or infinite."""
    return math.nan if value is None or not math.isfinite(value) else float(value)
