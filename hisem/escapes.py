"""Text from outside (paths, ids, captions, errors) as one line that terminals and spreadsheets take for text alone."""

from __future__ import annotations

import re

UNSAFE = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # C0 and C1: ends of lines, escape sequences
    "\u2028\u2029"  # ends of lines, too
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # what turns the direction of writing
    "\ud800-\udfff"  # halves of characters, which nothing can encode
    "]"
)
"""Characters that a terminal acts on, or that are no text."""

FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
"""How a cell begins that spreadsheets run, and one that `formula_safe` has quoted."""

NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def escaped(text: str, keep: str = "") -> str:
    """Return `text` with control characters, but those in `keep`, as Python writes them in a literal."""

    def written(match: re.Match[str]) -> str:
        return match[0] if match[0] in keep else match[0].encode("unicode_escape").decode()

    return UNSAFE.sub(written, text)


def formula_safe(cell: str) -> str:
    """Return a cell of a CSV file that spreadsheets take for text: with `'` before what they would run.

    Numbers such as -3.5 stay as they are. `formula_read` is the inverse.
    """
    return f"'{cell}" if FORMULA.match(cell) and not NUMBER.fullmatch(cell) else cell


def formula_read(cell: str) -> str:
    """Return the text of a cell that `formula_safe` may have quoted."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell
