from __future__ import annotations

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from hisem.report.routing import expert_load_figure, threshold_figure
from hisem.text.threshold import ThresholdCurve

CURVE = ThresholdCurve((0.0, 0.2, 0.5, 0.9, 1.0), (0.3, 0.4, 0.35, 0.2, 0.1), (0.6, 0.6, 0.8, 0.5, 0.0))


def lines(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    return {
        str(line.get_label()): (
            np.asarray(line.get_xdata(), float).tolist(),
            np.asarray(line.get_ydata(), float).tolist(),
        )
        for line in axes.lines
    }


def heights(axes: Axes) -> list[float]:
    return [bar.get_height() for bar in axes.patches if isinstance(bar, Rectangle)]


def test_threshold_figure_shows_both_curves_and_both_thresholds() -> None:
    (axes,) = threshold_figure(CURVE, 0.3).axes
    drawn = lines(axes)
    assert drawn["BLEU-4"] == (list(CURVE.thresholds), list(CURVE.bleu_4))
    assert drawn["change F1"] == (list(CURVE.thresholds), list(CURVE.change_f1))
    assert {line.get_drawstyle() for line in axes.lines[:2]} == {"steps-pre"}
    # 0.3 gives what 0.5, the next probability, gives; the best BLEU-4 is at 0.2.
    assert drawn["the model's threshold 0.3: BLEU-4 0.350, F1 0.800"][0] == [0.3, 0.3]
    assert drawn["the best threshold 0.2: BLEU-4 0.400, F1 0.600"][0] == [0.2, 0.2]
    assert "threshold" in axes.get_xlabel()
    assert axes.get_ylabel() == "score"


def test_expert_load_of_one_epoch_is_bars_beside_the_even_share() -> None:
    (axes,) = expert_load_figure([[6, 2, 0, 0]]).axes
    assert heights(axes) == [0.75, 0.25, 0, 0]
    assert lines(axes)["even share, 1/4"][1] == [0.25, 0.25]
    assert axes.get_xlabel() == "expert"


def test_expert_load_of_several_epochs_shows_how_it_moved() -> None:
    bars, moves = expert_load_figure([[1, 3], [0, 0], [4, 4]]).axes
    assert heights(bars) == [0.5, 0.5]
    assert str(lines(moves)["0"][1]) == "[0.25, nan, 0.5]"
    assert str(lines(moves)["1"][1]) == "[0.75, nan, 0.5]"
    assert [bar.get_facecolor()[:3] for bar in bars.patches] != [bars.patches[0].get_facecolor()[:3]] * 2


def test_a_model_that_calls_nothing_changed_says_so() -> None:
    (axes,) = expert_load_figure([[0, 0, 0]]).axes
    assert heights(axes) == [0, 0, 0]
    assert [text.get_text() for text in axes.texts] == ["no tile took the changed path"]
    with pytest.raises(ValueError, match="no epoch"):
        expert_load_figure([])
