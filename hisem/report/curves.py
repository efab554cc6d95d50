"""Training curves: losses and validation scores by epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hisem import storage
from hisem.report import style

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


def training_curves(history: Sequence[Mapping[str, float | None]]) -> Figure:
    """A figure 9 inches wide: losses on the left, validation scores (as fractions) on the right.

    `history` has one mapping an epoch; `epoch` in it is its number, else its place, from 1. Keys
    that contain `loss` are losses; keys that are a name in `SCORE_LABELS`, alone or behind a prefix
    (`validation/bleu_4`), are scores; anything else, such as times, is not drawn. A value that is
    missing, None or not finite is a gap; a curve of gaps alone, and a side without curves, is left out.

    Raises `ValueError` where `history` holds nothing to draw.
    """
    keys = dict.fromkeys(key for epoch in history for key, value in epoch.items() if math.isfinite(_number(value)))
    losses = {key: " ".join(_split(key)) for key in keys if "loss" in key}
    scores = {key: label for key in keys if key not in losses and (label := score_label(key))}
    panels = [(title, labels) for title, labels in (("loss", losses), ("validation score", scores)) if labels]
    if not panels:
        raise ValueError(f"training history of {len(history)} epoch(s) has neither a loss nor a score to draw")

    numbers = [_number(epoch.get("epoch", place)) for place, epoch in enumerate(history, 1)]
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    for axes, (title, labels) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for place, (key, label) in enumerate(labels.items()):
            values = [_number(epoch.get(key)) for epoch in history]
            colour, line = style.look(place)
            axes.plot(numbers, values, line, color=colour, label=label, marker="o", markersize=3, linewidth=1.6)
        style.dress(axes, "epoch", title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def save(figure: Figure, uri: str | Path) -> None:
    """Write `figure` as PNG, 1800 pixels for its 9 inches. Raises `StorageError` where it cannot be written."""
    storage.write_bytes(uri, style.png(figure))


def score_label(key: str) -> str | None:
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
