"""Pixels to the backbone's input.

Shapes: B images, 3 channels, H x W pixels of a tile, h x w pixels of the backbone's input.
Architecture page, section 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class Preprocess(nn.Module):
    """uint8 images of any size to normalised floats of one size, as PIL's bicubic resize would give."""

    mean: Tensor
    std: Tensor

    def __init__(self, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised float32 B 3 h w of uint8 B 3 H W."""
        if images.dtype != torch.uint8:
            raise TypeError(f"images must be uint8 (0 to 255), found {images.dtype}")
        if tuple(images.shape[-2:]) != self.size:
            images = self._resize(images)
        return (images.float() / 255 - self.mean) / self.std

    def _resize(self, images: Tensor) -> Tensor:
        if images.device.type == "cpu":  # torch resamples uint8 nowhere else
            return F.interpolate(images, self.size, mode="bicubic", antialias=True)
        return two_passes(images, self.size)


def two_passes(images: Tensor, size: tuple[int, int]) -> Tensor:
    """PIL's resize in float: along rows, then along columns, each pass rounded to whole grey levels.

    In one go the overshoot at edges would survive the first pass: up to 20 grey levels of difference.
    """
    images = images.float()
    for shape in ((images.shape[-2], size[1]), size):
        images = F.interpolate(images, shape, mode="bicubic", antialias=True)
        images = (images + 0.5).floor().clamp(0, 255)  # PIL rounds half up
    return images
