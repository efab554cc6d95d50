"""Made-up nights for the tests of the morning page: tiles of 64 m in a few scenes, their captions and pictures."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import shapely

from hisem.report.thumbnail import thumbnail
from hisem.schemas import STAGED

BEFORE, AFTER = (20, 40, 230), (230, 40, 20)
"""Colours of the pictures: blue before, red after."""
NOUNS = ("road", "house", "large building", "parking lot", "villa", "row of trees", "sports field", "bridge")
VERBS = ("is built", "is removed", "has been widened", "appears")
PLACES = ("on the empty land", "along the road", "in the upper left", "near the forest", "at the bottom")
SAME = "the scene is the same as before"
SIDE = 0.0006
"""Degrees of a tile's side."""


def row(**values: Any) -> dict[str, Any]:
    """One row of STAGED: an unchanged tile without a place, but for `values`."""
    known = {
        "tile_id": "pair/0-0-64",
        "pair_id": "pair",
        "before": ["b.tif"],
        "after": ["a.tif"],
        "row_off": 0,
        "col_off": 0,
        "height": 64,
        "width": 64,
        "status": "ok",
        "caption": SAME,
        "changed": False,
        "change_probability": 0.1,
        "model_name": "hisem",
        "model_version": "3",
        "model_digest": "d1",
        "captioned_at": datetime(2026, 1, 5, 4, 30, tzinfo=UTC),
    }
    return dict.fromkeys(STAGED.names) | known | values


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=STAGED)


def night(tiles: int, seed: int = 0) -> pa.Table:
    """Scenes of 10 by 10 tiles that do not overlap; about a sixth has changed, some are skipped or failed."""
    chance = np.random.default_rng(seed)
    pictures = [thumbnail(np.full((64, 64, 3), colour, np.uint8)) for colour in (BEFORE, AFTER)]
    rows = []
    for number in range(tiles):
        scene, place = divmod(number, 100)
        down, right = divmod(place, 10)
        west = 11.2 + SIDE * (right + 11 * (scene % 12))
        south = 48.1 - SIDE * (down + 11 * (scene // 12))
        acquired = datetime(2026, 1, 1 + scene % 4, 10, 15, tzinfo=UTC)
        values: dict[str, Any] = {
            "tile_id": f"scene_{scene:04}/{64 * down}-{64 * right}-64",
            "pair_id": f"scene_{scene:04}",
            "before_time": acquired - timedelta(days=365),
            "after_time": acquired,
            "geometry": shapely.to_wkb(shapely.box(west, south, west + SIDE, south + SIDE)),
            "crs": "EPSG:4326",
            "transform": [SIDE / 64, 0.0, west, 0.0, -SIDE / 64, south + SIDE],
        }
        sort = chance.random()
        if sort < 0.02:
            values |= dict.fromkeys(("caption", "changed", "change_probability")) | {"status": "skipped"}
        elif sort < 0.04:
            values |= dict.fromkeys(("caption", "changed", "change_probability")) | {
                "status": "failed",
                "error": "torn",
            }
        elif sort < 0.2:
            noun, verb, where = (str(chance.choice(words)) for words in (NOUNS, VERBS, PLACES))
            values |= {"caption": f"A {noun} {verb} {where}", "changed": True, "caption_logprob": -4.5}
            values |= {"change_probability": 0.5 + chance.random() / 2}
            values |= dict(zip(("before_thumbnail", "after_thumbnail"), pictures, strict=True))
        else:
            values["change_probability"] = chance.random() / 2
        rows.append(row(**values))
    return table(rows)
