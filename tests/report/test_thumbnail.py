from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from hisem.report.thumbnail import thumbnail


@pytest.mark.parametrize(
    ("height", "width", "size"), [(512, 256, (64, 128)), (256, 256, (128, 128)), (40, 64, (64, 40)), (1, 300, (128, 1))]
)
def test_longest_side_is_bounded_and_nothing_grows(height: int, width: int, size: tuple[int, int]) -> None:
    picture = Image.open(io.BytesIO(thumbnail(np.zeros((height, width, 3), np.uint8))))
    assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", size)


def test_shows_what_the_image_shows() -> None:
    image = np.zeros((256, 256, 3), np.uint8)
    image[:, 128:] = (250, 120, 10)
    small = np.asarray(Image.open(io.BytesIO(thumbnail(image)))).astype(int)
    assert np.abs(small[64, 32] - (0, 0, 0)).max() < 8
    assert np.abs(small[64, 96] - (250, 120, 10)).max() < 8
    assert thumbnail(image) == thumbnail(image.copy())
