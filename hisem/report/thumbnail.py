"""Small pictures of tiles."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

SIDE, QUALITY = 128, 75
"""Pixels of the longest side at most, and the quality of the JPEG."""


def thumbnail(image: npt.NDArray[np.uint8]) -> bytes:
    """A JPEG of an image H W 3, made smaller where a side is longer than `SIDE` pixels, never larger.

    The same image gives the same bytes. Of a padded tile give the window alone: pages draw places by its size.
    """
    picture = Image.fromarray(image)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=QUALITY, optimize=True)
    return content.getvalue()
