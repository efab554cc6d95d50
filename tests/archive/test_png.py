"""PNG bytes against Pillow, and what is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from hisem.archive import png
from hisem.errors import RasterError


def png_bytes(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_images_survive_the_round_trip() -> None:
    image = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    content = png.encode(image)
    assert np.array_equal(png.decode(content), image)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), image)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no image", "no readable PNG"),
        (png.encode(np.zeros((64, 64, 3), np.uint8))[:60], "no readable PNG"),
        (png_bytes(Image.new("RGB", (8, 8)), "JPEG"), "no readable PNG"),
        (png_bytes(Image.new("L", (8, 8))), "mode L with 8 x 8 pixels"),
        (png_bytes(Image.new("RGBA", (8, 8))), "mode RGBA"),
        (png_bytes(Image.new("1", (8193, 8192))), "mode 1 with 8192 x 8193 pixels"),
    ],
)
def test_other_bytes_are_refused(content: bytes, reason: str) -> None:
    with pytest.raises(RasterError, match=reason):
        png.decode(content)


def test_large_images_are_refused_before_they_are_decompressed(monkeypatch: pytest.MonkeyPatch) -> None:
    content = png.encode(np.zeros((64, 64, 3), np.uint8))
    monkeypatch.setattr(png, "MAX_PIXELS", 64 * 64 - 1)
    with pytest.raises(RasterError, match="up to 4095 pixels"):
        png.decode(content)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_other_arrays_are_refused(image: np.ndarray) -> None:  # type: ignore[type-arg]
    with pytest.raises(RasterError, match="cannot be encoded"):
        png.encode(image)
