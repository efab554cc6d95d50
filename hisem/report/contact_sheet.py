"""Contact sheets: pairs of tiles with their references and, if there is one, the model's caption."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from hisem import storage

TILE, GAP, PAD = 192, 6, 18
"""Pixels on the sheet: a tile's side, between the two tiles of a pair, around everything."""
BACKGROUND, INK, SOFT, ACCENT = (255, 255, 255), (31, 35, 40), (101, 109, 118), (9, 105, 218)


@dataclass(frozen=True, eq=False)
class TilePair:
    """What one cell of the sheet shows. Tiles are uint8, H by W by 3, of any size."""

    before: npt.NDArray[np.uint8]
    after: npt.NDArray[np.uint8]
    references: Sequence[str]
    title: str = ""
    caption: str | None = None


def draw_contact_sheet(pairs: Sequence[TilePair], *, width: int = 1200, columns: int = 2) -> Image.Image:
    """The pairs row by row in `columns`, on a sheet `width` pixels wide and as high as it needs.

    Each cell has the title above, before and after scaled (Lanczos) to 192 pixels, the references beside
    them and the caption in colour below the references. Text wraps; a cell grows with its text. Raises
    `ValueError` if the columns are too narrow for tiles and text.
    """
    cell_width = (width - PAD) // columns - PAD
    text_width = cell_width - 2 * TILE - 3 * GAP
    if text_width < 120:
        raise ValueError(f"width {width} with {columns} columns leaves {text_width} pixels for text: 120 are needed.")
    cells = [_draw_cell(pair, cell_width, text_width) for pair in pairs]
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) for row in rows]
    sheet = Image.new("RGB", (width, PAD + sum(height + PAD for height in heights)), BACKGROUND)
    top = PAD
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            sheet.paste(cell, (PAD + column * (cell_width + PAD), top))
        top += height + PAD
    return sheet


def write_contact_sheet(pairs: Sequence[TilePair], uri: str, *, width: int = 1200, columns: int = 2) -> None:
    """Write the sheet of `draw_contact_sheet` as PNG to a path or URI."""
    content = io.BytesIO()
    draw_contact_sheet(pairs, width=width, columns=columns).save(content, "PNG", optimize=True)
    storage.write_bytes(uri, content.getvalue())


def _draw_cell(pair: TilePair, width: int, text_width: int) -> Image.Image:
    title_font, font = ImageFont.load_default(16), ImageFont.load_default(13)
    lines: list[tuple[str, tuple[int, int, int], int]] = []  # text, colour, advance
    for sentence in pair.references:
        wrapped = _wrap(sentence, font, text_width)
        lines += [(line, INK, 15) for line in wrapped[:-1]] + [(wrapped[-1], INK, 20)]
    if pair.caption is not None:
        lines.append(("caption", SOFT, 16))
        lines += [(line, ACCENT, 15) for line in _wrap(pair.caption, font, text_width)]

    head = 24 if pair.title else 0
    height = head + max(TILE + 18, sum(advance for *_, advance in lines))
    cell = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(cell)
    draw.text((0, 0), pair.title, INK, title_font)
    for column, (name, tile) in enumerate((("before", pair.before), ("after", pair.after))):
        left = column * (TILE + GAP)
        cell.paste(Image.fromarray(tile).resize((TILE, TILE), Image.Resampling.LANCZOS), (left, head))
        draw.text((left, head + TILE + 2), name, SOFT, font)
    top = head - 2
    for text, colour, advance in lines:
        draw.text((2 * TILE + 3 * GAP, top), text, colour, font)
        top += advance
    return cell


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines of whole words no wider than `width`, at least one; a longer word stands alone."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
