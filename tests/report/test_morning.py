"""The morning page, read back by a parser; `test_morning_browser.py` uses it."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from hisem.errors import SchemaError
from hisem.report import morning
from hisem.report.morning import KINDS, render_morning
from tests.report.nights import night, row, table

EVIL = "</script><img src=x onerror=alert(1)><!--<script>{{data}} & \"'"
VOID = {"meta", "img", "input"}


class Reader(HTMLParser):
    """Tags with attributes, text, and what each script and style holds; refuses tags that do not nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag in ("script", "style"):
            self.texts.append((tag, ""))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("script", "style"):
            self.texts[-1] = (self.texts[-1][0], self.texts[-1][1] + data)
        else:
            self.texts.append((self._open[-1] if self._open else "", data))

    def all(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.all("script")[0])

    @property
    def pictures(self) -> list[str]:
        return json.loads(self.all("script")[1])

    def words(self, name: str) -> list[str | None]:
        """A coded column, row by row."""
        column = self.data[name]
        return [None if code < 0 else column["values"][code] for code in column["codes"]]


def read(rows: pa.Table, **summary: object) -> Reader:
    return Reader(render_morning(rows, "Night", summary, []))


def test_rows_come_back_changed_first_then_failed_unchanged_and_skipped() -> None:
    rows = [
        row(tile_id="same", change_probability=0.3),
        row(tile_id="maybe", changed=True, change_probability=0.6, caption="a road"),
        row(tile_id="torn", status="failed", error="torn", caption=None, changed=None, change_probability=None),
        row(tile_id="sure", changed=True, change_probability=0.9, caption="a house", second_caption="a hut"),
        row(tile_id="dark", status="skipped", error="dark", caption=None, changed=None, change_probability=None),
        row(tile_id="unrouted", changed=True, change_probability=None, caption="a road"),
    ]
    found = read(table(rows))
    assert found.data["tile_id"] == ["sure", "maybe", "unrouted", "torn", "same", "dark"]
    assert [KINDS[kind] for kind in found.data["kind"]] == [
        "changed", "changed", "changed", "failed", "unchanged", "skipped",
    ]  # fmt: skip
    assert found.words("caption") == ["a house", "a road", "a road", None, row()["caption"], None]
    assert found.words("second_caption") == ["a hut", *[None] * 5]
    assert found.words("error") == [None, None, None, "torn", None, "dark"]
    assert found.data["change_probability"] == [0.9, 0.6, None, None, 0.3, None]
    assert set(found.words("captioned_at")) == {"2026-01-05 04:30 UTC"}
    assert set(found.words("model")) == {"hisem 3 d1"}


def test_order_of_rows_does_not_matter() -> None:
    rows = night(300)
    shuffled = rows.take(np.random.default_rng(5).permutation(len(rows)))
    page = render_morning(rows, "Night", {"tiles": 300}, ["Odd."])
    assert page == render_morning(shuffled, "Night", {"tiles": 300}, ["Odd."])


def test_pictures_stand_once_each_where_their_tiles_say() -> None:
    rows = [
        row(tile_id="a", changed=True, change_probability=0.8, before_thumbnail=b"a0", after_thumbnail=b"a1"),
        row(tile_id="b", changed=True, change_probability=0.9, before_thumbnail=b"b0", after_thumbnail=b"b1"),
        row(tile_id="c"),
    ]
    found = read(table(rows))
    assert [base64.b64decode(picture) for picture in found.pictures] == [b"b0", b"b1", b"a0", b"a1"]
    assert found.data["before"] == [0, 2, -1]
    assert found.data["after"] == [1, 3, -1]


def test_what_exceeds_the_bounds_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(morning, "MAX_TILES", 3)
    monkeypatch.setattr(morning, "MAX_THUMBNAILS", 3)
    pictures = {"before_thumbnail": b"x", "after_thumbnail": b"y"}
    rows = [row(tile_id=f"same{number}") for number in range(1200)]
    rows += [row(tile_id=f"c{p}", changed=True, change_probability=p, **pictures) for p in (0.7, 0.9)]
    rows += [row(tile_id="torn", status="failed", changed=None), row(tile_id="dark", status="skipped", changed=None)]
    found = read(table(rows))
    assert found.data["tile_id"] == ["c0.9", "c0.7", "torn"]
    assert len(found.pictures) == 2
    assert found.data["after"] == [1, -2, -1]
    said = " ".join(found.all("p"))
    assert "This page has 3 of 1,204 tiles. Left out are 1,200 unchanged and 1 skipped" in said
    assert "Left out are the pictures of 1 tile(s)" in said


def test_pictures_that_were_not_read_are_said_to_be_left_out() -> None:
    there = {"changed": True, "before_thumbnail": b"x", "after_thumbnail": b"y"}
    unread = {"changed": True, "before_thumbnail": b"", "after_thumbnail": b""}
    rows = [row(tile_id="a", change_probability=0.9, **there), row(tile_id="b", change_probability=0.8, **unread)]
    found = read(table(rows))
    assert len(found.pictures) == 2
    assert found.data["before"] == [0, -2]
    assert "Left out are the pictures of 1 tile(s)" in " ".join(found.all("p"))


def test_within_the_bounds_nothing_is_said_to_be_left_out() -> None:
    assert "eft out" not in " ".join(read(night(100)).all("p"))


def test_tiles_without_a_place_are_said() -> None:
    assert "The tiles have no place on Earth" in " ".join(read(table([row()])).all("p"))
    one = pa.concat_tables([night(10), table([row()])])
    assert "1 tile(s) have no place on Earth" in " ".join(read(one).all("p"))


@pytest.mark.parametrize("turn", [0.0, 0.3])
def test_change_is_outlined_where_the_transform_puts_it(turn: float) -> None:
    """Oracle: the affine transform itself, applied to the corners of a box of pixels."""
    a, b = 2 * math.cos(turn), 2 * math.sin(turn)
    d, e = 2 * math.sin(turn), -2 * math.cos(turn)
    place = lambda x, y: (a * x + b * y + 500, d * x + e * y + 900)  # noqa: E731
    corners = np.array([place(x, y) for x in (10, 30) for y in (5, 25)])
    values = {
        "transform": [a, b, 500, d, e, 900],
        "change_bbox": [*corners.min(0), *corners.max(0)],
        "height": 50,
        "width": 40,
    }
    (left, top, right, bottom) = read(table([row(**values)])).data["change_box"][0]
    assert left <= 10 / 40 + 1e-4
    assert top <= 5 / 50 + 1e-4
    assert right >= 30 / 40 - 1e-4
    assert bottom >= 25 / 50 - 1e-4
    if not turn:
        assert [left, top, right, bottom] == pytest.approx([10 / 40, 5 / 50, 30 / 40, 25 / 50])


def test_change_is_not_outlined_where_it_cannot_be_placed() -> None:
    box = [0.0, 0.0, 1.0, 1.0]
    rows = [row(tile_id="1", change_bbox=box), row(tile_id="2", change_bbox=box, transform=[0.0] * 6)]
    assert read(table(rows)).data["change_box"] == [None, None]


def test_numbers_that_json_does_not_have_are_unknown() -> None:
    found = read(table([row(change_probability=math.nan, caption_logprob=-math.inf)]))
    assert found.data["change_probability"] == [None]
    assert found.data["caption_logprob"] == [None]


def test_summary_and_remarks_are_shown() -> None:
    figures = {"tiles": 12345, "seconds": 3.14159, "model": "hisem 3", **{f"more {n}": n for n in range(8)}}
    page = Reader(render_morning(night(10), "Night of <Monday>", figures, ["Unusual: 12 % & 2 %."]))
    assert page.all("h1") == page.all("title") == ["Night of <Monday>"]
    assert page.all("dt") == list(figures)
    assert page.all("dd") == ["12,345", "3.142", "hisem 3", *map(str, range(8))]
    assert "Unusual: 12 % & 2 %." in page.all("p")


def test_text_from_data_is_only_ever_text() -> None:
    texts = dict.fromkeys(("tile_id", "pair_id", "caption", "second_caption", "error", "model_name"), EVIL)
    harmless = Reader(render_morning(table([row()]), "Night", {"a": 1}, ["b"]))
    found = Reader(render_morning(table([row(**texts)]), EVIL, {EVIL: EVIL}, [EVIL]))
    assert [tag for tag, _ in found.tags] == [tag for tag, _ in harmless.tags]
    assert found.words("caption") == found.words("pair_id") == found.data["tile_id"] == [EVIL]
    assert found.all("h1") == found.all("dt") == found.all("dd") == [EVIL]
    assert all(text.count("<") == 0 for text in found.all("script")[:2])


def test_policy_lets_pass_what_is_inline_and_nothing_else() -> None:
    found = read(night(50))
    (policy,) = (tag["content"] or "" for name, tag in found.tags if tag.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    digests = [
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for text in (found.all("style")[0], found.all("script")[2])
    ]
    assert rules == {
        "default-src": "'none'", "img-src": "data:", "base-uri": "'none'", "form-action": "'none'",
        "style-src": digests[0], "script-src": digests[1],
    }  # fmt: skip
    for tag, attributes in found.tags:
        assert tag not in ("link", "iframe", "object", "base")
        assert not any(name.startswith("on") or name in ("src", "href", "style") for name in attributes)
    assert re.search(r"url\(|@import|https?:", found.all("style")[0] + found.all("script")[2]) is None


def test_no_rows_make_a_page() -> None:
    assert read(table([])).data["tile_id"] == []


def test_rows_of_another_schema_are_refused() -> None:
    with pytest.raises(SchemaError, match="tile_id"):
        render_morning(night(3).drop_columns(["tile_id"]), "Night", {}, [])
