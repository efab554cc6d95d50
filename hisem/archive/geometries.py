"""Geometries as files have them (WKB, WKT, GeoJSON), parsed within bounds: their parser follows any nesting."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import shapely

MAX_SIZE = 4 * 2**20
"""Bytes or characters of one geometry: more than 100,000 points."""
MAX_NESTED = 64
"""Collections in collections, or parentheses in parentheses. GEOS crashes at some thousands."""

_KINDS = rb"[\x04-\x07\x09-\x0c]"
_COLLECTION = re.compile(
    rb"\x01(?:" + _KINDS + rb"\x00\x00[\x00\x20\x40\x60\x80\xa0\xc0\xe0]|[\xec-\xef\xf1-\xf4]\x03\x00\x00"
    rb"|[\xd4-\xd7\xd9-\xdc]\x07\x00\x00|[\xbc-\xbf\xc1-\xc4]\x0b\x00\x00)"
    rb"|\x00(?:[\x00\x20\x40\x60\x80\xa0\xc0\xe0]\x00\x00" + _KINDS + rb"|\x00\x00\x03[\xec-\xef\xf1-\xf4]"
    rb"|\x00\x00\x07[\xd4-\xd7\xd9-\xdc]|\x00\x00\x0b[\xbc-\xbf\xc1-\xc4])"
)
"""The first bytes of a WKB geometry that has others in it: either byte order, with or without z and m."""


def parsed(value: Any) -> shapely.Geometry | None:
    """Return WKB (bytes), WKT (text) or GeoJSON (a mapping) as a geometry; None is none.

    Raises `ValueError` saying what is wrong with anything else.
    """
    if value is None:
        return None
    try:
        if isinstance(value, (bytes, bytearray)):
            _require_small(len(value))
            # They cannot be nested deeper than there are of them.
            _require_flat(len(_COLLECTION.findall(value)))
            return shapely.from_wkb(bytes(value))
        if isinstance(value, str):
            _require_small(len(value))
            _require_flat(_depth(value))
            return shapely.from_wkt(value)
        if isinstance(value, Mapping):
            text = json.dumps(value)
            _require_small(len(text))
            _require_flat(_depth(text))
            return shapely.from_geojson(text)
    except (shapely.errors.ShapelyError, TypeError, RecursionError) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    raise ValueError(f"it is {type(value).__name__}")


def _depth(text: str) -> int:
    """How deep brackets of any sort are nested."""
    depth = deepest = 0
    for bracket in re.findall(r"[(){}\[\]]", text):
        depth += 1 if bracket in "({[" else -1
        deepest = max(deepest, depth)
    return deepest


def _require_small(size: int) -> None:
    if size > MAX_SIZE:
        raise ValueError(f"it takes {size} bytes, more than {MAX_SIZE}; simplify it")


def _require_flat(depth: int) -> None:
    if depth > MAX_NESTED:
        raise ValueError(f"its parts are nested {depth} deep, more than {MAX_NESTED}")
