"""The contact sheet of a synthetic archive: one tile of each kind of change, several changes, and none."""

from __future__ import annotations

from typing import Any

import numpy as np
import rasterio
from rasterio.windows import Window

from hisem import storage
from hisem.archive.synthetic.raster import NODATA, Picture
from hisem.archive.synthetic.truth import Kind
from hisem.report.contact_sheet import TilePair, write_contact_sheet


def write_archive_sheet(folder: str, tile_size: int) -> str:
    """Draw the first fitting tile of each sort from scenes that have one CRS; sorts without one are left out.

    Writes `contact_sheet.png` into the archive's folder and returns its path.
    """
    rows = storage.read_parquet(storage.join(folder, "references.parquet")).to_pylist()
    scenes = {
        row["pair_id"]: row for row in storage.read_parquet(storage.join(folder, "catalogue.parquet")).to_pylist()
    }
    uri = storage.join(folder, "contact_sheet.png")
    wanted: dict[str, TilePair | None] = dict.fromkeys([*Kind, "several changes", "no change"])
    for row in rows:
        sort = row["kinds"][0] if len(row["kinds"]) == 1 else "several changes" if row["kinds"] else "no change"
        if wanted[sort] is None:
            wanted[sort] = _pair(scenes[row["pair_id"]], row, sort, tile_size)
    write_contact_sheet([pair for pair in wanted.values() if pair is not None], uri)
    return uri


def _pair(scene: dict[str, Any], row: dict[str, Any], title: str, tile_size: int) -> TilePair | None:
    """The tile's pixels of both dates, or None if the dates differ in grid or the tile has nodata."""
    window = Window(row["col_off"], row["row_off"], tile_size, tile_size)
    with rasterio.open(scene["before"][0]) as before, rasterio.open(scene["after"][0]) as after:
        if before.crs != after.crs:
            return None
        pictures: list[Picture] = [date.read(window=window).transpose(1, 2, 0) for date in (before, after)]
    if any(np.any(picture == NODATA) for picture in pictures):
        return None
    return TilePair(pictures[0], pictures[1], row["references"], title)
