from __future__ import annotations

import io
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from hisem.report.curves import save, training_curves

HISTORY: list[dict[str, float | None]] = [
    {"epoch": 5, "loss": 3.0, "class_loss": 0.7, "validation/bleu_4": 0.1, "validation/meteor": None, "seconds": 60.0},
    {"epoch": 6, "loss": 2.0, "validation/bleu_4": 0.3, "cider_d": 0.9, "learning_rate": 1e-4},
    {"epoch": 7, "loss": math.inf, "class_loss": 0.5, "validation/bleu_4": 0.4, "validation/change_accuracy": 0.8},
]


def data(axes: Axes) -> dict[str, str]:
    """What each curve shows, as text: NaN equals nothing, its text equals itself."""
    return {str(line.get_label()): str(np.asarray(line.get_ydata(), dtype=float).tolist()) for line in axes.lines}


def epochs(axes: Axes) -> list[list[float]]:
    return [np.asarray(line.get_xdata(), dtype=float).tolist() for line in axes.lines]


def test_draws_the_history() -> None:
    losses, scores = training_curves(HISTORY).axes
    assert (losses.get_xlabel(), losses.get_ylabel()) == ("epoch", "loss")
    assert (scores.get_xlabel(), scores.get_ylabel()) == ("epoch", "validation score")
    assert data(losses) == {"loss": "[3.0, 2.0, nan]", "class loss": "[0.7, nan, 0.5]"}
    assert data(scores) == {
        "BLEU-4": "[0.1, 0.3, 0.4]",
        "CIDEr-D": "[nan, 0.9, nan]",
        "change accuracy": "[nan, nan, 0.8]",
    }
    for axes in (losses, scores):
        legend = axes.get_legend()
        assert legend is not None
        assert [text.get_text() for text in legend.get_texts()] == list(data(axes))
        assert epochs(axes) == [[5, 6, 7]] * len(axes.lines)
        assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == len(axes.lines)


def test_epochs_count_from_one_and_one_side_may_be_missing() -> None:
    (axes,) = training_curves([{"loss": 2.0}, {"loss": 1.0}]).axes
    assert axes.get_ylabel() == "loss"
    assert epochs(axes) == [[1, 2]]


@pytest.mark.parametrize("history", [[], [{}], [{"epoch": 0, "seconds": 3.0, "loss": math.nan}]])
def test_refuses_an_empty_history(history: list[dict[str, float | None]]) -> None:
    with pytest.raises(ValueError, match="neither a loss nor a score"):
        training_curves(history)


def test_saves_a_png_and_leaves_pyplot_alone(tmp_path: Path) -> None:
    first, second = tmp_path / "new" / "curves.png", tmp_path / "again.png"
    save(training_curves(HISTORY), first)
    save(training_curves(HISTORY), str(second))
    with Image.open(io.BytesIO(first.read_bytes())) as image:
        assert image.format == "PNG"
        assert image.width == 1800
        assert len(image.convert("RGB").getcolors(2**20) or []) > 50
    assert first.read_bytes() == second.read_bytes()
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
