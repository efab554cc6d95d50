"""What the model looked at: change strength and experts of tiles, beside the pair."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap, Normalize
from matplotlib.figure import Figure

PANELS = ("before", "after", "change strength", "experts")
INCHES_A_TILE = 1.15
COLUMNS = 2
WRAP = 62
"""Letters of a caption's line."""


@dataclass(frozen=True, eq=False)
class ExplainedTile:
    """One tile: both dates, uint8, H by W by 3, and over the token grid what `hisem.model.hisem.Explanation`
    holds; `change_probability` is the image router's.
    """

    before: npt.NDArray[np.uint8]
    after: npt.NDArray[np.uint8]
    change_map: npt.NDArray[np.float32]
    experts: npt.NDArray[np.int64] | None
    caption: str
    change_probability: float | None


def draw_explanations(tiles: Sequence[ExplainedTile], experts: int) -> Figure:
    """Two tiles a row, each with both dates, the change strength and each token's best of `experts` experts.

    The strength has one scale for all tiles of the figure, from 0 to the strongest token. A tile that took
    the unchanged path has no experts. Raises `ValueError` for no tiles.
    """
    if not tiles:
        raise ValueError("no tiles to explain")
    rows = -(-len(tiles) // COLUMNS)
    heights = rows * (INCHES_A_TILE + 0.55), 0.55
    figure = Figure(figsize=(COLUMNS * len(PANELS) * INCHES_A_TILE + 0.4, sum(heights)), layout="constrained")
    parts = figure.subfigures(2, 1, height_ratios=heights, squeeze=False)
    upper, lower = parts[:, 0]
    strength = Normalize(0.0, max(float(tile.change_map.max()) for tile in tiles) or 1.0)
    colours = (
        colormaps["tab10" if experts <= 10 else "tab20"] if experts <= 20 else colormaps["turbo"].resampled(experts)
    )
    palette = ListedColormap(colours(np.arange(experts)), name="experts")
    numbers = BoundaryNorm(np.arange(experts + 1) - 0.5, experts)
    cells = upper.subfigures(rows, COLUMNS, squeeze=False, wspace=0.03).flat
    for cell, tile in zip(cells, tiles, strict=False):  # the last cell may stay empty
        cell.suptitle(_title(tile), fontsize=8, x=0.01, ha="left")
        _draw(cell.subplots(1, len(PANELS)), tile, strength, palette, numbers)
    left, right = lower.subplots(1, 2)
    for axes, norm, colour, label in (
        (left, strength, "inferno", PANELS[2]),
        (right, numbers, palette, "best expert of a token"),
    ):
        bar = figure.colorbar(ScalarMappable(norm, colour), cax=axes, orientation="horizontal")
        bar.set_label(label, fontsize=7)
        axes.tick_params(labelsize=7)
    bar.set_ticks(range(0, experts, -(-experts // 16)))
    return figure


def _draw(
    axes: Sequence[Axes], tile: ExplainedTile, strength: Normalize, palette: ListedColormap, numbers: BoundaryNorm
) -> None:
    height, width = tile.after.shape[:2]
    extent = (0, width, height, 0)
    for one, name in zip(axes, PANELS, strict=True):
        one.set_xticks([])
        one.set_yticks([])
        one.set_xlabel(name, fontsize=7)
    axes[0].imshow(tile.before, extent=extent)
    axes[1].imshow(tile.after, extent=extent)
    axes[2].imshow(tile.change_map, cmap="inferno", norm=strength, extent=extent)
    axes[3].imshow(tile.after.mean(axis=-1), cmap="gray", vmin=0, vmax=255, extent=extent)
    if tile.experts is not None:
        axes[3].imshow(tile.experts[..., 0], cmap=palette, norm=numbers, extent=extent, alpha=0.75)
    else:
        axes[3].set_xlabel("no experts", fontsize=7)


def _title(tile: ExplainedTile) -> str:
    probability = "" if tile.change_probability is None else f"p(changed) {tile.change_probability:.2f}: "
    return "\n".join(textwrap.wrap(probability + tile.caption, WRAP))
