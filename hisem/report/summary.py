"""Short summaries on the terminal."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hisem.escapes import escaped

LABEL = 90
"""Characters after which a label is continued on the next line: a long reason leaves the numbers beside the others."""
NARROWEST = 20
"""Characters that a label has at least, however narrow the terminal is."""


def counts_table(title: str, values: Mapping[str, object]) -> Table:
    """A two-column table: what, how much. Floats get four significant digits."""
    rows = {
        escaped(name): escaped(f"{value:.4g}" if isinstance(value, float) else str(value))
        for name, value in values.items()
    }
    console = Console()
    room = console.width - max(map(len, rows.values()), default=0) - 5 if console.is_terminal else LABEL
    table = Table(
        title=Text(escaped(title)), title_justify="left", box=box.SIMPLE_HEAD, show_header=False, show_edge=False
    )
    table.add_column("what", no_wrap=True, overflow="ignore")
    table.add_column("value", justify="right", no_wrap=True, overflow="ignore")
    for name, value in rows.items():
        table.add_row(Text(_lines(name, max(NARROWEST, min(LABEL, room)))), Text(value))
    return table


def _lines(text: str, width: int) -> str:
    """Return `text` in lines of `width`; a longer word, such as a path, has a line of its own and stays whole."""
    return "\n".join(textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)) or text


def show(table: Table, note: str = "") -> None:
    """Print a table to standard output, its title above, a note below: neither breaks a path.

    A table is as wide as it has to be, and 120 columns where standard output is not a terminal.
    """
    console = Console()
    title, table.title = table.title, None
    if title:
        console.print(Text(escaped(str(title)), style="italic"), soft_wrap=True)
    if not console.is_terminal or any(column.overflow == "ignore" for column in table.columns):
        least, console.width = console.width if console.is_terminal else 120, 1000
        console.width = max(least, console.measure(table).maximum)
    console.print(table)
    if note:
        print_lines(note)


def print_lines(text: str) -> None:
    """Print lines to standard output, without control characters and as long as they are."""
    sys.stdout.write(escaped(text, keep="\n") + "\n")
