"""What the figures share: colours, axes, and how a figure becomes a picture."""

from __future__ import annotations

import io

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which colour-blind readers can tell apart, without its yellow."""

_LINES = ("-", "--", ":")
"""Told apart by line once the colours are used up."""

_PIXELS_PER_INCH = 200


def look(place: int) -> tuple[str, str]:
    """Colour and line of a figure's curve number `place`, from 0."""
    return COLOURS[place % len(COLOURS)], _LINES[place // len(COLOURS) % len(_LINES)]


def dress(axes: Axes, across: str, upwards: str, columns: int = 3) -> None:
    """Label both axes, start the upright one at 0 or below, and put the legend underneath in so many columns."""
    axes.set_xlabel(across)
    axes.set_ylabel(upwards)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))  # a loss may be negative, a score never is
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=columns, fontsize="small", frameon=False)


def png(figure: Figure) -> bytes:
    """`figure` as PNG, 200 pixels an inch."""
    content = io.BytesIO()
    # Without the library's version in it, equal figures are equal files.
    figure.savefig(content, format="png", dpi=_PIXELS_PER_INCH, metadata={"Software": None})
    return content.getvalue()
