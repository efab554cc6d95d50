"""Short summaries on the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

LABEL = 90
"""Characters after which a label is folded: a long reason leaves the numbers beside the other labels."""


def counts_table(title: str, values: Mapping[str, object]) -> Table:
    """A two-column table: what, how much. Floats get four significant digits."""
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, show_header=False, show_edge=False)
    table.add_column("what", max_width=LABEL, overflow="fold")
    table.add_column("value", justify="right", overflow="fold")
    for name, value in values.items():
        table.add_row(Text(name), Text(f"{value:.4g}" if isinstance(value, float) else str(value)))
    return table


def show(renderable: RenderableType, note: str = "") -> None:
    """Print to standard output, and a note below; where that is no terminal, 120 columns wide or as wide as need be."""
    console = Console()
    if not console.is_terminal:
        console.width = 1000
        console.width = max(120, console.measure(renderable).maximum)
    console.print(renderable)
    if note:
        console.print(Text(note))
