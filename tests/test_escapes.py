"""Text from outside as one line, and as a cell that no spreadsheet runs: properties over all characters."""

from __future__ import annotations

import csv
import io
import random
import unicodedata
from typing import Any

import pyarrow as pa
import pytest

from hisem.escapes import escaped, formula_read, formula_safe

STARTS = (
    "=",
    "+",
    "-",
    "@",
    "\t",
    "\r",
    "'",
    "''",
    "'=",
    "-3.5",
    "+1e3",
    "-1+2",
    "",
    "plain",
    "1-2",
    "\uff1d",
    "-",
    "'-3",
)
RUN = ("=", "+", "-", "@", "\t", "\r")
"""How cells begin that spreadsheets run, after the advice of OWASP on CSV injection."""


def test_every_control_character_is_written_out() -> None:
    for code in range(0x110000):
        text = chr(code)
        shown = escaped(text)
        if unicodedata.category(text) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(text) in BIDI:
            assert shown.isascii(), hex(code)
            assert shown.isprintable(), hex(code)
            assert shown.encode().decode("unicode_escape") == text
        else:
            assert shown == text or unicodedata.category(text) == "Cf", hex(code)


BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def test_a_text_is_one_line() -> None:
    draw = random.Random(3)
    for _ in range(2000):
        text = "".join(chr(draw.choice([*range(0x100), 0x2028, 0x2029, 0x202E, 0xD800, 0x65E5])) for _ in range(12))
        assert len(escaped(text).splitlines()) == 1
        assert escaped(escaped(text)) == escaped(text)
        assert escaped(text, keep="\n").count("\n") == text.count("\n")


def cells() -> list[str]:
    draw = random.Random(5)
    letters = "=+-@\t\r\n'\"|,;0123.eE ab\uff1d\u00e9"
    return [*STARTS, *("".join(draw.choice(letters) for _ in range(draw.randint(0, 6))) for _ in range(5000))]


def test_cells_come_back_and_none_is_run() -> None:
    for text in cells():
        cell = formula_safe(text)
        assert formula_read(cell) == text
        if cell.startswith(RUN):
            assert cell == text
            float(cell)  # a number is what it says


@pytest.mark.parametrize("text", ["-3.5", "+2", "-.5", "1e-3", "-1E+9"])
def test_numbers_stay_numbers(text: str) -> None:
    assert formula_safe(text) == text


def test_csv_of_a_table_as_another_reader_sees_it() -> None:
    from hisem.archive.rows import csv_bytes

    texts: list[Any] = ["=HYPERLINK(1)", "@SUM(1)", "-1+cmd|' /C calc'!A0", "-3.5", "plain", None]
    table = pa.table({"text": texts, "number": [-1.5, -2.0, 0.0, 3.0, None, 1.0], "count": pa.array([-1] * 6)})
    rows = list(csv.DictReader(io.StringIO(csv_bytes(table).decode())))
    assert [row["text"] for row in rows] == ["'=HYPERLINK(1)", "'@SUM(1)", "'-1+cmd|' /C calc'!A0", "-3.5", "plain", ""]
    assert [row["number"] for row in rows] == ["-1.5", "-2", "0", "3", "", "1"]
    assert {row["count"] for row in rows} == {"-1"}
