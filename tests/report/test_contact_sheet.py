"""The contact sheet: where tiles and texts end up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hisem.report.contact_sheet import ACCENT, GAP, PAD, TILE, TilePair, draw_contact_sheet, write_contact_sheet

RED, GREEN = (200, 30, 30), (30, 160, 60)
LONG = "a new large building has been built on the empty land in the upper left and some trees are cut down"


def tile(colour: tuple[int, int, int], size: int = 64) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    return np.full((size, size, 3), colour, np.uint8)


def pair(references: list[str], title: str = "", caption: str | None = None) -> TilePair:
    return TilePair(tile(RED), tile(GREEN, 256), references, title, caption)


def pixels(image: Image.Image) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    return np.asarray(image)


def test_tiles_stand_side_by_side_in_columns_and_rows() -> None:
    sheet = draw_contact_sheet([pair(["one"]), pair(["two"]), pair(["three"])], width=1200, columns=2)
    picture = pixels(sheet)
    assert sheet.width == 1200
    cell_width = (1200 - PAD) // 2
    row_height = TILE + 18 + PAD
    assert sheet.height == PAD + 2 * row_height
    for column, row in ((0, 0), (1, 0), (0, 1)):
        left, top = PAD + column * cell_width, PAD + row * row_height
        before = picture[top : top + TILE, left : left + TILE]
        after = picture[top : top + TILE, left + TILE + GAP : left + 2 * TILE + GAP]
        assert np.all(before == RED)
        assert np.all(after == GREEN)
    assert np.all(picture[PAD + row_height :, PAD + cell_width :] == 255)


def test_long_text_wraps_within_the_cell_and_makes_it_higher() -> None:
    short, long = (draw_contact_sheet([pair([text] * 5)], width=640, columns=1) for text in ("short", LONG))
    assert long.height > short.height
    picture = pixels(long)
    assert np.all(picture[:, 640 - PAD :] == 255)
    text = picture[PAD:, PAD + 2 * TILE + 3 * GAP : 640 - PAD]
    assert np.count_nonzero((text < 128).all(axis=2)) > 3 * np.count_nonzero(
        (pixels(short)[PAD:, PAD + 2 * TILE + 3 * GAP :] < 128).all(axis=2)
    )


def test_title_and_caption_are_drawn_when_given() -> None:
    plain = pixels(draw_contact_sheet([pair(["one"])]))
    told = pixels(draw_contact_sheet([pair(["one"], title="road built", caption="a road is built")]))
    assert told.shape[0] == plain.shape[0] + 24
    assert not np.any(np.all(plain == ACCENT, axis=2))
    assert np.any(np.all(told == ACCENT, axis=2))
    assert np.any(told[PAD : PAD + 20, PAD : PAD + TILE] < 128)


def test_no_room_for_text_is_an_error() -> None:
    with pytest.raises(ValueError, match="120 are needed"):
        draw_contact_sheet([pair(["one"])], width=900, columns=2)


def test_written_file_is_the_drawn_sheet(tmp_path: Path) -> None:
    path = tmp_path / "sheets" / "sheet.png"
    pairs = [pair([LONG, "two"], "title", "caption")]
    write_contact_sheet(pairs, str(path))
    with Image.open(path) as written:
        assert np.array_equal(pixels(written), pixels(draw_contact_sheet(pairs)))
