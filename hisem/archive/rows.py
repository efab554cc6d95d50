"""Rows of a table from outside, CSV or Parquet: a defect of one row rejects that row alone."""

from __future__ import annotations

import csv
import io
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from hisem import storage
from hisem.errors import CatalogueError
from hisem.escapes import formula_read, formula_safe
from hisem.schemas import TIMESTAMP

SUFFIXES = (".parquet", ".csv")
"""Of catalogues, and of tables of footprints."""

LONGEST_CELL = 2**28
"""Characters of one cell of CSV at most."""

YEARS = -62_135_596_800, 253_402_300_800
"""Seconds since 1970 at which the years 1 and 10000 begin: between them lies what Python's datetime can hold."""

UNITS = {"s": 1, "ms": 10**3, "us": 10**6}
"""Parts of a second that Arrow's timestamps count; those that count nanoseconds cannot leave these years."""

OTHERS = {
    b"PAR1": "Parquet",
    b"PK\x03\x04": "a spreadsheet or another zip archive",
    b"\x1f\x8b": "compressed by gzip",
    b"{": "JSON, which pair.py --items reads as STAC items",
    b"[": "JSON",
}
"""How files of other formats begin, and what they are."""

NOT_UTF8 = re.compile("[\ud800-\udfff]")
"""What `surrogateescape` makes of bytes that are not UTF-8."""


@dataclass(frozen=True)
class Rows:
    """A table with the rows that are to be left out."""

    table: pa.Table
    """All rows, columns as in the file; those of CSV are text, and empty cells null."""
    rejected: dict[int, str]
    """Why a row, by its number from 0, cannot be used. More reasons may be added."""

    def reject(self, number: int, reason: str) -> None:
        """Reject a row; its first reason is kept."""
        self.rejected.setdefault(number, reason)

    def mapped(self, name: str, parse: Callable[[Any], Any], kind: pa.DataType) -> pa.Array:
        """A column with `parse` of each value that is not null; a row for which it raises `ValueError` is rejected."""
        values = []
        for number, value in enumerate(self.values(name)):
            try:
                values.append(None if value is None else parse(value))
            except ValueError as error:
                self.reject(number, str(error))
                values.append(None)
        return pa.array(values, kind)

    def values(self, name: str) -> list[Any]:
        """A column as Python values; a row whose value Python cannot hold is rejected, and null here."""
        column = self.table.column(name)
        try:
            return column.to_pylist()
        except (ValueError, OverflowError):
            pass
        values: list[Any] = []
        for number, scalar in enumerate(column):
            try:
                values.append(scalar.as_py())
            except (ValueError, OverflowError) as error:
                self.reject(number, f"{name} cannot be read ({error})")
                values.append(None)
        return values

    def times(self, name: str) -> pa.ChunkedArray | pa.Array:
        """A column of times, dates or ISO 8601 text in UTC; rows with other text or years are rejected.

        What names no zone is in UTC. A column of another type is returned as it is.
        """
        column = self.table.column(name)
        if is_text(column.type):
            return self.mapped(name, lambda text: parsed_time(text, name), TIMESTAMP)
        if pa.types.is_date(column.type):
            column = column.cast(pa.timestamp("s" if pa.types.is_date32(column.type) else "ms"))
        if not pa.types.is_timestamp(column.type):
            return column
        unit = column.type.unit
        number = column.cast(pa.int64())
        if unit in UNITS:
            low, high = (second * UNITS[unit] for second in YEARS)
            outside = pc.fill_null(pc.or_(pc.less(number, low), pc.greater_equal(number, high)), False)
            for row, is_outside in enumerate(outside.to_pylist()):
                if is_outside:
                    self.reject(row, f"{name} lies outside the years 1 to 9999")
            number = pc.if_else(outside, pa.scalar(None, pa.int64()), number)
        return number.cast(pa.timestamp(unit, "UTC")).cast(TIMESTAMP, safe=False)  # nanoseconds are cut


def read_rows(uri: str, columns: Sequence[str]) -> Rows:
    """The table in a file, in the format of its suffix; rows of CSV are rejected where a cell of `columns` is not text.

    Categories (dictionaries of Arrow) become their values. Raises `CatalogueError` where the file is of another
    format or a column occurs twice, `StorageError` where it cannot be read.
    """
    if table_suffix(uri) == "csv":
        return _read_csv(uri, columns)
    table = storage.read_parquet(uri)
    _require_each_once(table.column_names, uri)
    for number, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(number, field.name, table.column(number).cast(field.type.value_type))
    return Rows(table, {})


def table_suffix(uri: str) -> str:
    """`parquet` or `csv`, whichever `uri` ends in. Raises `CatalogueError` where it ends in neither."""
    suffix = posixpath.splitext(uri)[1].lower()
    if suffix not in SUFFIXES:
        hint = "; STAC items in JSON are paired by pair.py --items" if "json" in suffix else ""
        raise CatalogueError(
            f"{uri}: a catalogue ends in {' or '.join(SUFFIXES)}, found {suffix or 'no suffix'}{hint}."
        )
    return suffix[1:]


def is_text(kind: pa.DataType) -> bool:
    """True for Arrow's types of text."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def parsed_time(text: str, name: str) -> datetime:
    """ISO 8601 as a time in UTC, in which it is where it names no zone. Raises `ValueError`."""
    try:
        time = datetime.fromisoformat(text.strip())
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{name} {shown(text)} is not an ISO 8601 time such as 2024-05-01T10:30:00Z") from error


def csv_bytes(table: pa.Table) -> bytes:
    """Return `table` as CSV; texts that a spreadsheet would run are quoted as `formula_safe` does."""
    content = io.BytesIO()
    pacsv.write_csv(_texts(table, formula_safe), content)
    return content.getvalue()


def _texts(table: pa.Table, change: Callable[[str], str]) -> pa.Table:
    """Return `table` with every text changed."""
    for number, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            texts = [text if text is None else change(text) for text in table.column(number).to_pylist()]
            table = table.set_column(number, field, pa.array(texts, pa.string()))
    return table


def shown(value: object, most: int = 80) -> str:
    """Return `repr` of an untrusted value, short enough for a message."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def _read_csv(uri: str, columns: Sequence[str]) -> Rows:
    """A CSV file. Rows are rejected with another number of cells than the header, or a quote in the wrong place."""
    header: list[str] | None = None
    lines: list[list[str]] = []
    rejected: dict[int, str] = {}
    for line, cells in _cells(_text(uri), uri):
        if header is None:
            header = [] if isinstance(cells, str) else [NOT_UTF8.sub("\ufffd", name.strip()) for name in cells]
            _require_each_once(header, uri)
            wanted = [number for number, name in enumerate(header) if name in columns]
            continue
        if isinstance(cells, list) and len(cells) != len(header):
            cells = f"line {line} has {len(cells)} cell(s), the header {len(header)}"
        elif isinstance(cells, list) and any(NOT_UTF8.search(cells[number]) for number in wanted):
            rejected[len(lines)] = f"line {line} is not UTF-8 text; save the file as UTF-8"
        if isinstance(cells, str):
            rejected[len(lines)] = cells
            cells = [""] * len(header)
        lines.append([formula_read(NOT_UTF8.sub("\ufffd", cell)) for cell in cells])
    if header is None:
        raise CatalogueError(f"{uri}: is empty; a header of comma-separated names of columns is needed.")
    values = zip(*lines, strict=True) if lines else [()] * len(header)
    arrays = [pa.array([cell or None for cell in column], pa.string()) for column in values]
    return Rows(pa.table(arrays, names=header), rejected)


def _text(uri: str) -> str:
    content = storage.read_bytes(uri)
    if other := next((name for start, name in OTHERS.items() if content.startswith(start)), None):
        raise CatalogueError(f"{uri}: is {other}, not comma-separated text; name it by what it is, or save it as CSV.")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise CatalogueError(f"{uri}: is UTF-16 text; comma-separated UTF-8 text is needed: save it as UTF-8.")
    return content.decode("utf-8-sig", errors="surrogateescape")


def _cells(text: str, uri: str) -> Iterator[tuple[int, list[str] | str]]:
    """The number of the line on which each row begins, and its cells, or what is wrong with them.

    Blank rows are skipped. Raises `CatalogueError` for a quote that is never closed, after which rows would vanish.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    with _long_cells():
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if "unexpected end of data" in str(error):
                    raise CatalogueError(
                        f"{uri}: cannot be read as comma-separated text: line {line} opens a quote that is not closed "
                        "until the end of the file; double each quote inside a cell."
                    ) from error
                yield line, f"line {line} is not comma-separated text ({error})"
                continue
            if any(cell.strip() for cell in cells):
                yield line, cells


@contextmanager
def _long_cells() -> Iterator[None]:
    """Allow cells as long as outlines are; the module's own limit is 131072 characters."""
    before = csv.field_size_limit(LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _require_each_once(names: Sequence[str], uri: str) -> None:
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise CatalogueError(f"{uri}: column(s) {', '.join(twice)} occur more than once; rename or drop one.")
