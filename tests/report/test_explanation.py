"""The figure of explanations: what each panel shows, on scales that all tiles share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.axes import Axes

from hisem.report.explanation import PANELS, ExplainedTile, draw_explanations

BEFORE, AFTER = np.full((64, 64, 3), 30, np.uint8), np.full((64, 64, 3), 200, np.uint8)
STRENGTH = np.array([[0.0, 0.5, 0.25], [2.0, 1.0, 0.125]], np.float32)
EXPERTS = np.array([[[0, 3], [1, 0], [2, 1]], [[3, 2], [0, 1], [1, 2]]])
CHANGED = ExplainedTile(BEFORE, AFTER, STRENGTH, EXPERTS, "a road is built", 0.9)
UNCHANGED = replace(
    CHANGED, change_map=STRENGTH / np.float32(8), experts=None, caption="the same as before", change_probability=0
)


def shown(axes: Axes) -> list[np.ndarray]:
    return [np.asarray(image.get_array()) for image in axes.images]


def test_panels_show_the_pair_the_strength_and_the_best_experts() -> None:
    figure = draw_explanations([CHANGED], experts=4)
    before, after, strength, experts = figure.axes[:4]
    assert [axes.get_xlabel() for axes in figure.axes[:4]] == list(PANELS)
    np.testing.assert_array_equal(shown(before)[0], BEFORE)
    np.testing.assert_array_equal(shown(after)[0], AFTER)
    np.testing.assert_array_equal(shown(strength)[0], STRENGTH)
    np.testing.assert_array_equal(shown(experts)[1], EXPERTS[..., 0])
    # The coarse maps cover the tile: row 0 at the top.
    assert {tuple(axes.images[-1].get_extent()) for axes in figure.axes[:4]} == {(0, 64, 64, 0)}


def test_all_tiles_share_one_scale() -> None:
    figure = draw_explanations([UNCHANGED, CHANGED, UNCHANGED], experts=4)
    strengths = [axes for axes in figure.axes if axes.get_xlabel() == PANELS[2] and axes.images]
    assert [axes.images[0].get_clim() for axes in strengths] == [(0.0, 2.0)] * 3


def test_an_unchanged_tile_has_no_experts_and_says_so() -> None:
    figure = draw_explanations([UNCHANGED], experts=4)
    last = figure.axes[3]
    assert last.get_xlabel() == "no experts"
    assert len(last.images) == 1


def test_captions_stand_above_their_tiles() -> None:
    figure = draw_explanations([CHANGED, UNCHANGED, replace(CHANGED, change_probability=None)], experts=4)
    upper = figure.subfigs[0]
    titles = [cell.get_suptitle() for cell in upper.subfigs]
    assert titles == ["p(changed) 0.90: a road is built", "p(changed) 0.00: the same as before", "a road is built", ""]


@pytest.mark.parametrize("count", [4, 8, 16, 64])
def test_every_expert_has_its_own_colour(count: int) -> None:
    figure = draw_explanations([CHANGED], experts=count)
    colours = figure.axes[3].images[1].cmap(np.arange(count))
    assert len({tuple(colour) for colour in colours}) == count
    assert len(figure.axes[-1].get_xticks()) <= 16


def test_nothing_changed_anywhere() -> None:
    draw_explanations([replace(UNCHANGED, change_map=np.zeros((2, 2), np.float32))], experts=1)


def test_no_tiles() -> None:
    with pytest.raises(ValueError, match="no tiles"):
        draw_explanations([], experts=4)
