"""The page of an evaluation: one HTML file with the table and the figures in it, which loads and runs nothing."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from hisem.report.policy import content_policy
from hisem.report.tables import HEADERS, notes, sections
from hisem.text.published_scores import PublishedTable
from hisem.text.scoring import ScoreRow

STYLE = """
:root { color-scheme: light dark; }
body { max-width: 72rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; }
h1, h2 { line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin-top: 2.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { padding: 0.2rem 0.6rem; text-align: right; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; }
tbody th { padding-top: 1rem; }
img { display: block; max-width: 100%; height: auto; background: #fff; }
"""


@dataclass(frozen=True)
class Picture:
    """A figure of the page: its heading, how to read it, and the PNG itself."""

    heading: str
    reading: str
    png: bytes


def render_page(
    title: str,
    rows: Sequence[ScoreRow],
    published: PublishedTable | None,
    remarks: Sequence[str],
    pictures: Sequence[Picture],
) -> str:
    """The page as HTML: the score table (times 100) with its notes and `remarks`, then the pictures in order."""
    said = [*remarks, *filter(None, [notes(rows)])]
    parts = [
        f"<h1>{escape(title)}</h1>",
        "<h2>Scores</h2>",
        "<p>All numbers are times 100, and higher is better. B1 to B4 are BLEU; S*m is the mean of B4, METEOR, ROUGE-L "
        "and CIDEr-D. The last three columns say how well a captioner tells changed tiles from unchanged ones. A model "
        "should be well above the captioners that look at no image.</p>",
        *(f"<p>{escape(remark)}</p>" for remark in said),
        _table(rows, published),
        *map(_figure, pictures),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{content_policy(STYLE)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _table(rows: Sequence[ScoreRow], published: PublishedTable | None) -> str:
    bodies = []
    for heading, lines in sections(rows, published):
        head = f'<tr><th colspan="{len(HEADERS) + 1}" scope="rowgroup">{escape(heading)}</th></tr>'
        body = ["".join(f"<td>{escape(cell)}</td>" for cell in line) for line in lines]
        bodies.append(f"<tbody>{head}{''.join(f'<tr>{cells}</tr>' for cells in body)}</tbody>")
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in ("captioner", *HEADERS))
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>{"".join(bodies)}</table></div>'


def _figure(picture: Picture) -> str:
    source = f"data:image/png;base64,{base64.b64encode(picture.png).decode()}"
    return (
        f"<h2>{escape(picture.heading)}</h2>\n<p>{escape(picture.reading)}</p>\n"
        f'<img src="{source}" alt="{escape(picture.heading)}">'
    )
