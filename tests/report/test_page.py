"""The page, read back by a parser."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

from hisem.report.page import Picture, render_page
from hisem.report.tables import HEADERS
from hisem.text.metrics import CaptionScores
from hisem.text.published_scores import PUBLISHED
from hisem.text.scoring import ScoreRow, change_scores

EVIL = "<script>alert('\"&')</script>"
VOID = {"meta", "img"}


class Reader(HTMLParser):
    """Tags with attributes, cells row by row, and all text; refuses tags that do not nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._open and self._open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def page() -> str:
    scores = CaptionScores(0.9, 0.8, 0.7, 0.6, None, 0.5, 1.25, None, 2, ("no `java` <here>",))
    rows = [ScoreRow(EVIL, "all", scores, change_scores([True, False], [True, True]))]
    pictures = [Picture(f"A {EVIL}", f"Read {EVIL}", b"\x89PNG one"), Picture("B", "Two", b"\x89PNG two")]
    return render_page(f"Model {EVIL}", rows, PUBLISHED["WHU-CDC"], [f"Only {EVIL}."], pictures)


def test_shows_table_remarks_and_pictures() -> None:
    found = Reader(page())
    assert found.rows == [
        ["captioner", *HEADERS],
        ["all 2 tiles"],
        [EVIL, "90.00", "80.00", "70.00", "60.00", "n/a", "50.00", "125.00", "n/a", "50.00", "100.00", "50.00"],
        ["published, WHU-CDC test, protocol ids"],
        ["HiSem", "n/a", "n/a", "n/a", "76.52", "48.77", "82.00", "158.35", "91.41", "n/a", "n/a", "n/a"],
        ["CTMTNet", "n/a", "n/a", "n/a", "69.00", "45.39", "79.23", "149.40", "85.76", "n/a", "n/a", "n/a"],
    ]
    for text in (f"Model {EVIL}", f"Only {EVIL}.", "no `java` <here>.", f"A {EVIL}", f"Read {EVIL}"):
        assert text in found.text
    sources = [attributes["src"] or "" for tag, attributes in found.tags if tag == "img"]
    pngs = [base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in sources]
    assert pngs == [b"\x89PNG one", b"\x89PNG two"]


def test_runs_and_loads_nothing() -> None:
    found = Reader(page())
    assert not {tag for tag, _ in found.tags} & {"script", "link", "iframe", "object", "base", "form"}
    for _, attributes in found.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert re.search(r"url\(|@import|https?:", page()) is None
    (policy,) = (tag["content"] or "" for name, tag in found.tags if tag.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    style = re.search(r"<style>(.*?)</style>", page(), re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert rules == {
        "default-src": "'none'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "style-src": f"'sha256-{digest}'",
    }
