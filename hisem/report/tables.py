"""Score tables for the terminal and for files, with the numbers times 100 as papers print them."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from hisem.escapes import escaped
from hisem.text.published_scores import PublishedRow, PublishedTable
from hisem.text.scoring import ScoreRow

HEADERS = ("B1", "B2", "B3", "B4", "METEOR", "ROUGE-L", "CIDEr-D", "S*m", "acc.", "prec.", "recall")
"""The columns behind the captioner's name; the last three are those of change detection."""

_UNAVAILABLE = "n/a"


def score_table(rows: Sequence[ScoreRow], title: str | None = None, published: PublishedTable | None = None) -> Table:
    """A table with one section for each set of tiles, in the order of `rows`, then the published ones; notes below.

    Narrow enough for 80 columns: there names are folded and no number is cut.
    """
    table = Table(title=title, caption=notes(rows) or None, box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column("captioner", overflow="fold")
    for header in HEADERS:
        table.add_column(header.replace("-", "\n-"), justify="right", no_wrap=True, vertical="bottom")
    for heading, lines in sections(rows, published):
        table.add_section()
        table.add_row(Text(escaped(heading), style="bold"))
        for captioner, *cells in lines:
            table.add_row(Text(escaped(captioner)), *cells)  # Text: a name is no markup
    return table


def score_markdown(rows: Sequence[ScoreRow]) -> str:
    """The same as Markdown, one table a set of tiles."""
    blocks = []
    for heading, members in sections(rows):
        lines = [["captioner", *HEADERS], ["---", *["---:"] * len(HEADERS)]]
        lines += [[captioner.replace("|", "\\|"), *cells] for captioner, *cells in members]
        blocks.append("\n".join([f"**{heading}**", "", *(f"| {' | '.join(line)} |" for line in lines)]))
    return "\n\n".join([*blocks, *filter(None, [notes(rows)])]) + "\n"


def sections(rows: Sequence[ScoreRow], published: PublishedTable | None = None) -> list[tuple[str, list[list[str]]]]:
    """The lines of the table by the tiles that they were scored on, with a heading for each set; then the published.

    A line is the captioner and the cells under `HEADERS`.
    """
    found: dict[str, list[list[str]]] = {}
    for row in rows:
        count = f"{row.captions.count} tile{'' if row.captions.count == 1 else 's'}"
        heading = f"all {count}" if row.tiles == "all" else f"{count} with change"
        found.setdefault(heading, []).append([row.captioner, *_cells(row)])
    if published:
        found[published.title] = [[row.captioner, *_published_cells(row)] for row in published.rows]
    return list(found.items())


def _cells(row: ScoreRow) -> list[str]:
    captions, change = row.captions, row.change
    scores = [
        *(captions.bleu_1, captions.bleu_2, captions.bleu_3, captions.bleu_4),
        *(captions.meteor, captions.rouge_l, captions.cider_d, captions.s_m),
        *(change.accuracy, change.precision, change.recall),
    ]
    return [_UNAVAILABLE if score is None else f"{100 * score:.2f}" for score in scores]


def _published_cells(row: PublishedRow) -> list[str]:
    scores = row.values()
    scores += [None] * (len(HEADERS) - len(scores))  # no change detection is published
    return [_UNAVAILABLE if score is None else f"{score:.2f}" for score in scores]


def notes(rows: Sequence[ScoreRow]) -> str:
    """Each different note once, as sentences."""
    return " ".join(f"{note}." for note in dict.fromkeys(note for row in rows for note in row.captions.notes))
