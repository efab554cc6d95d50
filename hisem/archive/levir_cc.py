"""The LEVIR-CC benchmark, and others in its layout: pairs of images without georeference, with five sentences each.

Layout: `LevirCCcaptions.json` beside `images/<split>/A/*.png` (before) and `images/<split>/B/*.png`. The one file
`*captions.json` of the folder is read, whatever stands before that: WHU-CDC has a name of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image, UnidentifiedImageError

from hisem import storage
from hisem.archive.catalogue import SAFE_ID, SPLITS
from hisem.archive.grid import Window, tile_id
from hisem.errors import CatalogueError, ReferencesError
from hisem.schemas import INDEX, REFERENCES, require_unique

CAPTIONS_FILE = "LevirCCcaptions.json"
CAPTIONS_FILES = "*captions.json"

BENCHMARKS = {"levir": "LEVIR-CC", "whu": "WHU-CDC"}
"""What the captions file's name has in it, and whose it is."""


def read_levir_cc(folder: str) -> tuple[pa.Table, pa.Table]:
    """Index (schema INDEX) and references (schema REFERENCES) of a local copy of the benchmark.

    Each pair is one tile: the whole image, named after its file, with the split that the JSON gives it.

    Raises `ReferencesError` where the JSON is absent or malformed, `CatalogueError` where images that it
    names are absent, unreadable or named twice.
    """
    root = Path(storage.absolute(folder))
    path = _captions_file(root)
    entries = [_parsed(entry, number, path) for number, entry in enumerate(_read_entries(path))]
    _require_images(root, entries, path.name)
    _require_rgb(root, entries)
    index = pa.Table.from_pylist([_index_row(root, entry) for entry in entries], schema=INDEX)
    require_unique(index, "pair_id", str(path), CatalogueError)
    rows = [
        {
            "pair_id": entry["pair_id"],
            "row_off": 0,
            "col_off": 0,
            "references": entry["references"],
            "changed": entry["changed"],
        }
        for entry in entries
    ]
    return index, pa.Table.from_pylist(rows, schema=REFERENCES)


def benchmark_name(folder: str) -> str | None:
    """Which benchmark a folder holds, by the name of its captions file; None for an unknown one.

    Raises `ReferencesError` as `read_levir_cc` does.
    """
    name = _captions_file(Path(storage.absolute(folder))).name.lower()
    return next((benchmark for mark, benchmark in BENCHMARKS.items() if mark in name), None)


def _captions_file(root: Path) -> Path:
    found = sorted(root.glob(CAPTIONS_FILES))
    if not found:
        raise ReferencesError(
            f"{root / CAPTIONS_FILE}: no such file, nor another {CAPTIONS_FILES}; give the folder that holds "
            "one beside images/."
        )
    if len(found) > 1:
        raise ReferencesError(
            f"{root}: {len(found)} captions files ({', '.join(path.name for path in found)}); leave the one to import."
        )
    return found[0]


def _read_entries(path: Path) -> list[Any]:
    """The list under `images` in the captions file."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ReferencesError(f"{path}: not valid JSON ({error}); copy it again.") from error
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ReferencesError(f"{path}: a mapping with a list of at least one image under 'images' is expected.")
    return entries


def _parsed(entry: Any, number: int, path: Path) -> dict[str, Any]:
    """Pair, file name, split, sentences and change of one entry of the JSON."""
    try:
        name, split = str(entry["filename"]), entry["split"]
        references = [str(sentence["raw"]).strip() for sentence in entry["sentences"]]
        flag = entry["changeflag"]
        "".join([name, *references]).encode()
    except UnicodeEncodeError as error:
        raise ReferencesError(
            f"{path}: images[{number}] has halves of characters, which no file can hold ({error}); correct its text."
        ) from error
    except (KeyError, TypeError) as error:
        raise ReferencesError(
            f"{path}: images[{number}] lacks {error}; filename, split, changeflag and sentences with raw are needed."
        ) from error
    pair_id = Path(name).stem
    # The name becomes part of a path: nothing but a plain file name may pass.
    if not SAFE_ID.fullmatch(name) or split not in SPLITS or flag not in (0, 1) or not all(references or [""]):
        raise ReferencesError(
            f"{path}: images[{number}] has filename {name!r}, split {split!r}, changeflag {flag!r} and "
            f"{len(references)} sentence(s); needed are a plain file name, one of {', '.join(SPLITS)}, 0 or 1, "
            "and sentences that are not empty."
        )
    return {"pair_id": pair_id, "name": name, "split": split, "references": references, "changed": bool(flag)}


def _image(root: Path, entry: dict[str, Any], date: str) -> Path:
    return root / "images" / entry["split"] / date / entry["name"]


def _require_images(root: Path, entries: list[dict[str, Any]], captions: str) -> None:
    """Raise `CatalogueError` counting the images that the JSON names and the folder lacks."""
    named = [_image(root, entry, date) for entry in entries for date in "AB"]
    absent = [path for path in named if not path.is_file()]
    if absent:
        shown = ", ".join(str(path.relative_to(root)) for path in absent[:3])
        raise CatalogueError(
            f"{root}: {len(absent)} of the {len(named)} images that {captions} names are absent, among them "
            f"{shown}; unpack the benchmark's images here, or leave only the present ones in {captions}."
        )


def _require_rgb(root: Path, entries: list[dict[str, Any]]) -> None:
    """Raise `CatalogueError` counting the images that cannot be read as 8-bit red, green and blue, by their headers."""
    named = [_image(root, entry, date) for entry in entries for date in "AB"]
    others = [(path, what) for path in named if (what := _other_than_rgb(path))]
    if others:
        shown = ", ".join(f"{path.relative_to(root)} ({what})" for path, what in others[:3])
        raise CatalogueError(
            f"{root}: {len(others)} of the {len(named)} images are not 8-bit RGB PNG or JPEG, among them {shown}; "
            "convert them, as with `magick IN -colorspace sRGB -depth 8 PNG24:OUT`, or unpack damaged ones again."
        )


def _other_than_rgb(path: Path) -> str | None:
    """What an image is that cannot be read as 8-bit RGB; None where it can."""
    try:
        with Image.open(path, formats=["PNG", "JPEG"]) as image:
            kind, mode, size = image.format, image.mode, image.size
        with path.open("rb") as file:
            depth = file.read(25)[24] if kind == "PNG" else 8  # which Pillow's mode hides
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return f"cannot be read as PNG: {' '.join(str(error).split())}"
    if mode in ("RGB", "RGBA") and depth == 8 and min(size) > 0:
        return None
    return f"a {kind} of mode {mode} with {depth} bits a band"


def _index_row(root: Path, entry: dict[str, Any]) -> dict[str, Any]:
    """The one tile of a pair; its size is that of the before image, read from the header."""
    before = _image(root, entry, "A")
    with Image.open(before, formats=["PNG", "JPEG"]) as image:
        width, height = image.size
    window = Window(0, 0, height, width)
    return {
        "tile_id": tile_id(entry["pair_id"], window, max(height, width)),
        "pair_id": entry["pair_id"],
        "before": [str(before)],
        "after": [str(_image(root, entry, "B"))],
        "split": entry["split"],
        "row_off": 0,
        "col_off": 0,
        "height": height,
        "width": width,
    }
