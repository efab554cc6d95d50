"""Damage to the bytes of a file: blind, and by the fields of its format."""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

Mutation = Callable[[bytes, random.Random], bytes]

EXTREMES = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFFFFF0, 0x10000)
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 0.5, 1e308, 10**20, -(10**20), float("nan"), float("inf")),
    *("", "x" * 5000, "\x00", "\ud800", "../../x", "=1+1", "2024-13-45", "9999999999999", "\x1b[31m"),
    *([], [None], [[]], {}, {"": None}, [1] * 3000, {"type": "Polygon", "coordinates": [[]]}),
)


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwrite(data: bytes, rng: random.Random) -> bytes:
    start, length = rng.randrange(len(data)), rng.choice((1, 2, 4, 16, 256))
    run = rng.choice((b"\0" * length, b"\xff" * length, rng.randbytes(length)))
    return data[:start] + run[: len(data) - start] + data[start + length :]


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def insert(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data[:start] + rng.randbytes(rng.choice((1, 2, 8, 100))) + data[start:]


def repeat(data: bytes, rng: random.Random) -> bytes:
    start, length = rng.randrange(len(data)), rng.randrange(1, 200)
    return data[: start + length] + data[start : start + length] * rng.choice((1, 1, 5)) + data[start + length :]


BLIND: tuple[Mutation, ...] = (flip_bits, flip_bits, overwrite, truncate, insert, repeat)


def tiff_entry(data: bytes, rng: random.Random) -> bytes:
    """An entry of one directory with another tag, type, count or value; or the offset of the next directory."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    head, size, word = ("Q", 20, "Q") if big else ("H", 12, "I")
    width = struct.calcsize(f"<{word}")
    (offset,) = struct.unpack_from(f"{order}{word}", data, 8 if big else 4)
    places = []
    for _ in range(20):
        if not offset or offset + 8 > len(data):
            break
        (count,) = struct.unpack_from(f"{order}{head}", data, offset)
        first = offset + struct.calcsize(f"<{head}")
        places.append((first, count))
        (offset,) = struct.unpack_from(f"{order}{word}", data, first + count * size)
    first, count = rng.choice(places)
    changed = bytearray(data)
    entry = first + rng.randrange(count) * size
    field, code = rng.choice(
        ((entry, "H"), (entry + 2, "H"), (entry + 4, word), (entry + 4 + width, word), (entry + 4 + width, "H"))
    )
    if rng.random() < 0.1:
        field, code = first + count * size, word
    value = rng.choice((*EXTREMES, first, rng.randrange(len(data)))) % 2 ** (8 * struct.calcsize(f"<{code}"))
    struct.pack_into(f"{order}{code}", changed, field, value)
    return bytes(changed)


def png_chunk(data: bytes, rng: random.Random) -> bytes:
    """A chunk with other content and a checksum that fits."""
    chunks, offset = [], 8
    while offset + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, offset)
        chunks.append((offset, length))
        offset += length + 12
    offset, length = rng.choice(chunks)
    body = bytearray(data[offset + 4 : offset + 8 + length])
    if len(body) > 4:
        body[rng.randrange(4, min(len(body), 40))] = rng.choice((0, 1, 3, 8, 16, 255, rng.randrange(256)))
    return data[: offset + 4] + body + struct.pack(">I", zlib.crc32(body)) + data[offset + 12 + length :]


def json_value(data: bytes, rng: random.Random) -> bytes:
    """A value anywhere in the document replaced by one of another type or size, removed, or nested deeply."""
    document = json.loads(data)
    places: list[tuple[Any, Any]] = []

    def collect(node: Any) -> None:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            places.append((node, key))
            if isinstance(value, (dict, list)):
                collect(value)

    collect(document)
    container, key = rng.choice(places)
    kind = rng.random()
    if kind < 0.15:
        del container[key]
    elif kind < 0.2:
        nested: Any = 1
        for _ in range(400):
            nested = [nested]
        container[key] = nested
    else:
        container[key] = rng.choice(ODD_VALUES)
    if rng.random() < 0.05:
        document = rng.choice(ODD_VALUES)
    return json.dumps(document).encode(errors="surrogatepass")


def parquet_page(data: bytes, rng: random.Random) -> bytes:
    """Pages with other bytes and a footer that is whole."""
    (footer,) = struct.unpack_from("<I", data, len(data) - 8)
    pages = len(data) - 8 - footer
    return data[:4] + rng.choice((flip_bits, overwrite))(data[4:pages], rng) + data[pages:]


def csv_cell(data: bytes, rng: random.Random) -> bytes:
    """A cell with other text, or one cell more or less."""
    lines = data.split(b"\n")
    number = rng.randrange(len(lines))
    cells = lines[number].split(b",")
    odd = (b"", b'"', b"\xff\xfe", b"\0", b"-1e999", b"nan", b"9" * 400, b"20240601", b"=cmd()", b"a|b", b"../x")
    cells[rng.randrange(len(cells))] = rng.choice(odd)
    if rng.random() < 0.2:
        cells.append(b"more")
    lines[number] = b",".join(cells)
    return b"\n".join(lines)


def header_line(data: bytes, rng: random.Random) -> bytes:
    """A line of text with another number or word behind its sign of equality."""
    lines = data.split(b"\n")
    number = rng.randrange(len(lines))
    name, sign, _ = lines[number].partition(b"=")
    odd = (
        b"0",
        b"-1",
        b"1",
        b"2147483647",
        b"4294967296",
        b"99999999999999999999",
        b"{",
        b"nan",
        b"",
        b"\xff",
        b"1e308",
    )
    lines[number] = name + sign + rng.choice(odd)
    return b"\n".join(lines)


def mutate(data: bytes, fields: tuple[Mutation, ...], rng: random.Random) -> bytes:
    """`data` with one kind of damage, sometimes two; half of the time by the fields of the format."""
    for _ in range(rng.choice((1, 1, 1, 2))):
        if not data:
            break
        by_field = fields and rng.random() < 0.5
        try:
            data = rng.choice(fields if by_field else BLIND)(data, rng)
        except (struct.error, ValueError, IndexError, RecursionError, TypeError, OverflowError):
            data = flip_bits(data, rng)  # fields that a first mutation has destroyed
    return data
