"""The page of a night: one HTML file with a map, a list and pictures of its tiles, which loads nothing."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hisem.report.footprint_rings import footprint_rings
from hisem.report.policy import content_policy
from hisem.schemas import FAILED, SKIPPED, STAGED, conform

MAX_TILES = 20_000
"""Tiles on a page: changed ones first, the most probable of them first, then failed, unchanged and skipped ones."""
MAX_THUMBNAILS = 2_000
"""Pictures on a page, two a tile, in the same order."""
PICTURED = MAX_THUMBNAILS // 2
"""Tiles whose pictures are on it."""

KINDS = ("changed", "failed", "unchanged", "skipped")
"""What becomes of a tile, in the page's order."""

_SCRIPTS = ("data", "filter", "layer", "draw", "map", "list", "detail", "main")
_FIGURES = 8  # of the summary, in sight; the others unfold
_WORDS = ("pair_id", "caption", "second_caption", "error")
_TIMES = ("before_time", "after_time", "captioned_at")
_WHOLE = ("row_off", "col_off", "height", "width")
_NUMBERS = {
    "change_probability": 4,
    "caption_logprob": 3,
    "shift_x": 2,
    "shift_y": 2,
    "shift_confidence": 2,
    "before_valid": 3,
    "after_valid": 3,
}
"""Columns of numbers, and the digits they keep."""
_NONE, _LEFT_OUT = -1, -2  # in place of a picture's number


def render_morning(rows: pa.Table, title: str, summary: Mapping[str, object], remarks: Sequence[str]) -> str:
    """The page as HTML, of rows in schema STAGED, in any order; the same rows give the same page.

    `summary` are figures with what they count, `remarks` what a person must not miss. Thumbnails show the window of
    `height` by `width` pixels, without padding; an empty one stands for a picture that was not read. Where `MAX_TILES`
    or `MAX_THUMBNAILS` leave something out, the page says what. Raises `SchemaError` for rows of another schema.
    """
    rows = conform(rows, STAGED, "the page of the night")
    shown = ordered(rows, MAX_TILES)
    columns = _columns(shown)
    places, pictures, unpictured = _pictures(shown)
    notes = _notes(rows, shown, columns["places"].count(None), unpictured)
    style = _asset("style.css")
    script = '"use strict";\n' + "\n".join(_asset(f"{name}.js") for name in _SCRIPTS)
    fillings = {
        "policy": content_policy(style, script),
        "title": escape(title),
        "style": style,
        "script": script,
        "remarks": "\n".join(f'<p class="remark">{escape(remark)}</p>' for remark in remarks),
        "summary": _summary(summary),
        "notes": f'<p class="note">{escape(" ".join(notes))}</p>',
        "data": _json(columns | places),
        "pictures": _json(pictures),
    }
    # In one go: what is filled in may hold braces itself.
    return re.sub(r"{{(\w+)}}", lambda found: fillings[found[1]], _asset("page.html"))


def _asset(name: str) -> str:
    return files("hisem.report").joinpath("morning_page", name).read_text(encoding="utf-8")


def _json(value: object) -> str:
    """JSON that ends no script element, whatever its strings hold."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def ordered(rows: pa.Table, most: int) -> pa.Table:
    """The first `most` rows in the page's order, with their place in `KINDS` as the column `kind`."""
    names = ["change_probability", "tile_id", "model_digest"]
    keys = rows.select(names).append_column("kind", _kinds(rows))
    directions = ("ascending", "descending", "ascending", "ascending")
    first = pc.sort_indices(keys, sort_keys=list(zip(("kind", *names), directions, strict=True)))[:most]
    return rows.take(first).append_column("kind", keys.column("kind").take(first))


def _kinds(rows: pa.Table) -> pa.ChunkedArray:
    """The place of each row in `KINDS`."""
    status = rows.column("status")
    return pc.case_when(
        pc.make_struct(
            pc.equal(status, FAILED), pc.equal(status, SKIPPED), pc.fill_null(rows.column("changed"), False)
        ),
        *(pa.scalar(KINDS.index(name), pa.int8()) for name in ("failed", "skipped", "changed", "unchanged")),
    )


def _columns(rows: pa.Table) -> dict[str, Any]:
    """The rows column by column, as `morning_page/data.js` reads them; repeated values stand once."""
    columns: dict[str, Any] = {name: rows.column(name).to_pylist() for name in ("kind", "tile_id", *_WHOLE)}
    for name in _WORDS:
        columns[name] = _coded(rows.column(name))
    for name in _TIMES:
        columns[name] = _coded(pc.strftime(rows.column(name), "%Y-%m-%d %H:%M UTC", locale="C"))
    models = [rows.column(name).cast(pa.string()) for name in ("model_name", "model_version", "model_digest")]
    columns["model"] = _coded(pc.binary_join_element_wise(*models, " "))
    for name, digits in _NUMBERS.items():
        values = rows.column(name).to_pylist()
        columns[name] = [
            round(value, digits) if value is not None and math.isfinite(value) else None for value in values
        ]
    columns["places"] = footprint_rings(rows.column("geometry"))
    columns["change_box"] = list(map(_change_box, rows.select(_BOX_COLUMNS).to_pylist()))
    return columns


def _coded(column: pa.ChunkedArray) -> dict[str, list[Any]]:
    """Distinct values by first appearance, and their numbers row by row, -1 for null."""
    coded = column.combine_chunks().dictionary_encode()
    return {"values": coded.dictionary.to_pylist(), "codes": pc.fill_null(coded.indices, -1).to_pylist()}


_BOX_COLUMNS = ["change_bbox", "transform", "height", "width"]


def _change_box(row: dict[str, Any]) -> list[float] | None:
    """Left, top, right and bottom of the change as shares of the window, 0 to 1; None where it has none."""
    if row["change_bbox"] is None or row["transform"] is None or not row["height"] or not row["width"]:
        return None
    a, b, c, d, e, f = row["transform"]
    west, south, east, north = row["change_bbox"]
    corners = np.array([(x - c, y - f) for x in (west, east) for y in (south, north)])
    try:
        pixels = np.linalg.solve(np.array([[a, b], [d, e]]), corners.T).T
    except np.linalg.LinAlgError:
        return None
    shares = np.clip(pixels / (row["width"], row["height"]), 0, 1)
    box = np.concatenate([shares.min(0), shares.max(0)])
    return np.round(box, 4).tolist() if np.isfinite(box).all() else None


def _pictures(rows: pa.Table) -> tuple[dict[str, list[int]], list[str], int]:
    """Each tile's places in the list of pictures, before and after; the list, base64; tiles that go without theirs."""
    pictures: list[str] = []
    places: dict[str, list[int]] = {"before": [], "after": []}
    unpictured = 0
    columns = (rows.column("before_thumbnail").to_pylist(), rows.column("after_thumbnail").to_pylist())
    for pair in zip(*columns, strict=True):
        there = [content for content in pair if content is not None]
        fits = all(there) and len(pictures) + len(there) <= MAX_THUMBNAILS
        unpictured += not fits
        for content, place in zip(pair, places.values(), strict=True):
            place.append(_NONE if content is None else len(pictures) if fits else _LEFT_OUT)
            if content and fits:
                pictures.append(base64.b64encode(content).decode())
    return places, pictures, unpictured


def _notes(rows: pa.Table, shown: pa.Table, placeless: int, unpictured: int) -> list[str]:
    """What the page leaves out of all `rows`, or shows otherwise than one would think."""
    notes = []
    if len(rows) > len(shown):
        there, here = (
            np.bincount(kinds, minlength=len(KINDS)) for kinds in (_kinds(rows).to_numpy(), shown.column("kind"))
        )
        counts = [f"{count:,} {name}" for name, count in zip(KINDS, there - here, strict=True) if count]
        notes.append(
            f"This page has {len(shown):,} of {len(rows):,} tiles. Left out are {_listed(counts)}: "
            "the captions table has them."
        )
    if unpictured:
        notes.append(f"Left out are the pictures of {unpictured:,} tile(s), the least probable changes.")
    if placeless:
        which = "The tiles" if placeless == len(shown) else f"{placeless:,} tile(s)"
        notes.append(f"{which} have no place on Earth: the map shows them as a grid instead.")
    return notes


def _listed(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def _summary(summary: Mapping[str, object]) -> str:
    figures = [f"<div><dt>{escape(name)}</dt><dd>{escape(_said(value))}</dd></div>" for name, value in summary.items()]
    first, others = "\n".join(figures[:_FIGURES]), "\n".join(figures[_FIGURES:])
    strip = f'<dl class="figures">{first}</dl>' if first else ""
    if others:
        strip += (
            f'\n<details><summary>{len(figures) - _FIGURES} more</summary><dl class="figures">{others}</dl></details>'
        )
    return f'<div class="strip">{strip}</div>'


def _said(value: object) -> str:
    match value:
        case bool() | None:
            return {True: "yes", False: "no", None: "unknown"}[value]
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
        case datetime():
            return f"{value:%Y-%m-%d %H:%M} {value.tzname() or ''}".strip()
        case _:
            return str(value)
