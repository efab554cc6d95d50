"""Score tables for the terminal and for files, with the numbers times 100 as papers print them."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from hisem.text.scoring import ScoreRow

HEADERS = ("B1", "B2", "B3", "B4", "METEOR", "ROUGE-L", "CIDEr-D", "S*m", "acc.", "prec.", "recall")
"""The columns behind the captioner's name; the last three are those of change detection."""

_UNAVAILABLE = "n/a"


def score_table(rows: Sequence[ScoreRow], title: str | None = None) -> Table:
    """A table with one section for each set of tiles, in the order of `rows`; notes stand below.

    Narrow enough for 80 columns: there names are folded and no number is cut.
    """
    table = Table(title=title, caption=_notes(rows) or None, box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column("captioner", overflow="fold")
    for header in HEADERS:
        table.add_column(header.replace("-", "\n-"), justify="right", no_wrap=True, vertical="bottom")
    for heading, members in _sections(rows):
        table.add_section()
        table.add_row(Text(heading, style="bold"))
        for row in members:
            table.add_row(Text(row.captioner), *_cells(row))  # Text: a name is no markup
    return table


def score_markdown(rows: Sequence[ScoreRow]) -> str:
    """The same as Markdown, one table a set of tiles."""
    blocks = []
    for heading, members in _sections(rows):
        lines = [["captioner", *HEADERS], ["---", *["---:"] * len(HEADERS)]]
        lines += [[row.captioner.replace("|", "\\|"), *_cells(row)] for row in members]
        blocks.append("\n".join([f"**{heading}**", "", *(f"| {' | '.join(line)} |" for line in lines)]))
    return "\n\n".join([*blocks, *filter(None, [_notes(rows)])]) + "\n"


def _sections(rows: Sequence[ScoreRow]) -> list[tuple[str, list[ScoreRow]]]:
    """The rows by the tiles that they were scored on, with a heading for each set."""
    sections: dict[str, list[ScoreRow]] = {}
    for row in rows:
        count = f"{row.captions.count} tile{'' if row.captions.count == 1 else 's'}"
        heading = f"all {count}" if row.tiles == "all" else f"{count} with change"
        sections.setdefault(heading, []).append(row)
    return list(sections.items())


def _cells(row: ScoreRow) -> list[str]:
    captions, change = row.captions, row.change
    scores = [
        *(captions.bleu_1, captions.bleu_2, captions.bleu_3, captions.bleu_4),
        *(captions.meteor, captions.rouge_l, captions.cider_d, captions.s_m),
        *(change.accuracy, change.precision, change.recall),
    ]
    return [_UNAVAILABLE if score is None else f"{100 * score:.2f}" for score in scores]


def _notes(rows: Sequence[ScoreRow]) -> str:
    """Each different note once, as sentences."""
    return " ".join(f"{note}." for note in dict.fromkeys(note for row in rows for note in row.captions.notes))
