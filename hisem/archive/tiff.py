"""Directories of TIFF files, which Exif metadata of other formats has as well: the few tags that GDAL does not show."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

ReadBytes = Callable[[int, int], bytes]
"""Returns `count` bytes at `offset` of a file; zeros follow its end."""

MAX_DIRECTORIES, MAX_ENTRIES, MAX_VALUES = 4096, 4096, 4096
"""More of them than any writer makes; libtiff stops at the same number of entries."""

BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of one value by the type of a tag."""
UNSIGNED = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
"""Formats of `struct` by the type of a tag, of unsigned integers."""

PHOTOMETRIC, ORIENTATION, EXTRA_SAMPLES = 262, 274, 338
TAGS = (PHOTOMETRIC, ORIENTATION, EXTRA_SAMPLES)


class BrokenDirectory(ValueError):  # noqa: N818 - a state of a file that the caller words
    """A directory, or the chain of them, that is cut or leads in a circle."""


@dataclass(frozen=True)
class Directory:
    """One directory of a file."""

    offset: int
    values: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Values of `TAGS` where they are unsigned integers."""

    def first(self, tag: int, default: int) -> int:
        """The first value of a tag."""
        return self.values.get(tag, (default,))[0]


def directories(read: ReadBytes, size: int | None = None) -> Iterator[Directory]:
    """The main directories of a TIFF, or of Exif metadata, in their order; `size` is the file's where it is known.

    Raises `BrokenDirectory` where one lies beyond the end, has no entries or was met before.
    """
    start = read(0, 16)
    order = {b"II": "<", b"MM": ">"}.get(start[:2])
    if order is None:
        raise BrokenDirectory("it has no TIFF header")
    big = struct.unpack(f"{order}H", start[2:4])[0] == 43
    (offset,) = struct.unpack(f"{order}Q", start[8:16]) if big else struct.unpack(f"{order}I", start[4:8])
    seen: set[int] = set()
    while offset:
        if offset in seen or len(seen) == MAX_DIRECTORIES:
            raise BrokenDirectory(f"directory {len(seen) + 1} leads back, or there are more than {MAX_DIRECTORIES}")
        seen.add(offset)
        directory, offset = _directory(read, offset, order, big, size)
        yield directory


def _directory(read: ReadBytes, offset: int, order: str, big: bool, size: int | None) -> tuple[Directory, int]:
    """The directory at `offset`, and where the next one lies, 0 after the last."""
    head, entry, word = ("Q", 20, "Q") if big else ("H", 12, "I")
    head_bytes, word_bytes = struct.calcsize(f"<{head}"), struct.calcsize(f"<{word}")
    (count,) = struct.unpack(f"{order}{head}", read(offset, head_bytes))
    length = head_bytes + count * entry + word_bytes
    if not 0 < count <= MAX_ENTRIES or (size is not None and offset + length > size):
        raise BrokenDirectory(f"the directory at byte {offset} is cut off")
    content = read(offset, length)
    values = {}
    for number in range(count):
        place = head_bytes + number * entry
        tag, kind, amount = struct.unpack(f"{order}HH{word}", content[place : place + 4 + word_bytes])
        if tag == 0 and kind == 0:
            raise BrokenDirectory(f"the directory at byte {offset} is cut off")
        inline, needed = content[place + 4 + word_bytes : place + entry], amount * BYTES.get(kind, 0)
        (start,) = struct.unpack(f"{order}{word}", inline)
        if needed > word_bytes and size is not None and start + needed > size:
            raise BrokenDirectory(f"the values of tag {tag} in the directory at byte {offset} are cut off")
        if tag in TAGS and kind in UNSIGNED and 0 < amount <= MAX_VALUES:
            found = inline[:needed] if needed <= word_bytes else read(start, needed)
            values[tag] = struct.unpack(f"{order}{amount}{UNSIGNED[kind]}", found)
    (following,) = struct.unpack(f"{order}{word}", content[-word_bytes:])
    return Directory(offset, values), following
