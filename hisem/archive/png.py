"""Tile images as PNG bytes, which shards carry: lossless, and readable by every Parquet viewer."""

from __future__ import annotations

import io
import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image

from hisem.archive.gdal import raster_errors
from hisem.errors import RasterError

MAX_PIXELS = 8192**2
"""Images above this many pixels are refused before they are decompressed."""


def encode(rgb: npt.NDArray[np.uint8]) -> bytes:
    """PNG bytes of an image, uint8 H W 3. Raises `RasterError` for another shape or type, or too many pixels."""
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or not 0 < rgb.shape[0] * rgb.shape[1] <= MAX_PIXELS:
        raise RasterError(
            f"an image of {rgb.dtype} and shape {rgb.shape} cannot be encoded; uint8 of shape height x width x 3 "
            f"is needed, with up to {MAX_PIXELS} pixels."
        )
    buffer = io.BytesIO()
    # Level 2 takes a quarter of the default's time for a few per cent more bytes.
    Image.fromarray(rgb).save(buffer, format="PNG", compress_level=2)
    return buffer.getvalue()


def decode(content: bytes) -> npt.NDArray[np.uint8]:
    """The image, uint8 H W 3, in PNG bytes.

    Raises `RasterError` for damaged bytes, another format or mode than RGB, or too many pixels.
    """
    with raster_errors(f"an image of {len(content)} bytes", "is no readable PNG", lambda _: "Make the shards again"):
        # Pillow's own warning about large images is moot: the limit below is stricter.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=["PNG"])
        width, height = image.size
        if image.mode != "RGB" or width * height > MAX_PIXELS:
            raise RasterError(
                f"found a PNG of mode {image.mode} with {height} x {width} pixels; "
                f"mode RGB with up to {MAX_PIXELS} pixels is needed."
            )
        return np.array(image)
