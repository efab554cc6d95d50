"""From pixels to delivered rasters: where a scene lies on the map, footprints, warping, GeoTIFF."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rasterio.crs import CRS
from rasterio.io import MemoryFile
from rasterio.transform import Affine, from_bounds
from rasterio.warp import Resampling, reproject, transform_bounds

Picture = npt.NDArray[np.uint8]

HOME_CRS = "EPSG:32632"
"""The CRS of all before scenes and of most after scenes."""
OTHER_CRS = ("EPSG:32633", "EPSG:4326")
"""In which some after scenes are delivered, in turn: the neighbouring UTM zone, geographic coordinates."""
ORIGIN = (668_000.0, 5_330_000.0)
"""Easting and northing of the first scene's upper left corner, near the border of two UTM zones."""
GAP = 64.0
"""Metres between neighbouring scenes."""
SPARE = 8
"""Pixels by which an after scene in another CRS reaches beyond the before scene."""
NODATA = 0


@dataclass(frozen=True)
class Frame:
    """The footprint of a before scene: upper left corner in `HOME_CRS`, pixels a side, metres a pixel."""

    left: float
    top: float
    size: int
    pixel: float

    @classmethod
    def of(cls, index: int, scenes: int, size: int, pixel: float) -> Frame:
        """The frame of scene `index` of `scenes`, row by row in a square mosaic with gaps."""
        row, column = divmod(index, math.ceil(math.sqrt(scenes)))
        step = size * pixel + GAP
        return cls(ORIGIN[0] + column * step, ORIGIN[1] - row * step, size, pixel)

    def transform(self, margin: int = 0) -> Affine:
        """The affine transform of the frame's pixels with `margin` pixels more on each side."""
        left, top = self.left - margin * self.pixel, self.top + margin * self.pixel
        return Affine(self.pixel, 0.0, left, 0.0, -self.pixel, top)

    def bounds(self, margin: int = 0) -> tuple[float, float, float, float]:
        """Left, bottom, right, top in `HOME_CRS`, with `margin` pixels more on each side."""
        more, side = margin * self.pixel, self.size * self.pixel
        return self.left - more, self.top - side - more, self.left + side + more, self.top + more

    def covering(self, crs: str) -> tuple[tuple[float, float, float, float], int]:
        """Bounds in `crs` that cover the frame, and the margin in pixels that covers those bounds."""
        there = transform_bounds(HOME_CRS, crs, *self.bounds(SPARE), densify_pts=21)
        back = transform_bounds(crs, HOME_CRS, *there, densify_pts=21)
        beyond = max(abs(a - b) for a, b in zip(back, self.bounds(), strict=True))
        return there, math.ceil(beyond / self.pixel) + SPARE


def warp(picture: Picture, frame: Frame, margin: int, crs: str) -> tuple[Picture, Affine]:
    """`picture` (H by W by 3, the frame with its margin) resampled to `crs`, and its transform there.

    Pixels keep their size on the ground as nearly as the CRS allows. `margin` is at least what
    `Frame.covering` asks for, so that the result has no nodata.
    """
    there, _ = frame.covering(crs)
    left, bottom, right, top = transform_bounds(crs, HOME_CRS, *there, densify_pts=21)
    width, height = round((right - left) / frame.pixel), round((top - bottom) / frame.pixel)
    transform = from_bounds(*there, width, height)
    warped = np.zeros((3, height, width), np.uint8)
    reproject(
        np.ascontiguousarray(picture.transpose(2, 0, 1)),
        warped,
        src_transform=frame.transform(margin),
        src_crs=HOME_CRS,
        dst_transform=transform,
        dst_crs=crs,
        dst_nodata=NODATA,
        resampling=Resampling.cubic,
    )
    return np.maximum(warped, NODATA + 1).transpose(1, 2, 0), transform


def cut_corner(picture: Picture, rng: np.random.Generator) -> Picture:
    """`picture` (H by W by 3) with nodata beyond a slanting edge that cuts off one corner.

    The edge meets the two sides at a quarter to a half and at an eighth to a quarter of their length, so
    that at most a sixteenth of the picture is lost.
    """
    height, width, _ = picture.shape
    legs = rng.permutation([rng.uniform(0.25, 0.5), rng.uniform(0.12, 0.25)])
    across = (np.arange(width) + 0.5)[None, :] / width
    down = (np.arange(height) + 0.5)[:, None] / height
    flip_x, flip_y = rng.random(2) < 0.5
    across, down = (1 - across if flip_x else across), (1 - down if flip_y else down)
    cut = picture.copy()
    cut[across / legs[0] + down / legs[1] < 1.0] = NODATA
    return cut


def encode(picture: Picture, crs: str, transform: Affine, *, nodata: bool) -> bytes:
    """A tiled, deflated RGB GeoTIFF; `nodata` declares value 0. The same input gives the same bytes."""
    height, width, _ = picture.shape
    block = min(256, min(height, width) // 16 * 16)
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff",
            width=width,
            height=height,
            count=3,
            dtype="uint8",
            crs=CRS.from_user_input(crs),
            transform=transform,
            nodata=NODATA if nodata else None,
            photometric="RGB",
            interleave="pixel",
            tiled=True,
            blockxsize=block,
            blockysize=block,
            compress="deflate",
            zlevel=4,
            predictor=2,
        ) as dataset:
            dataset.write(picture.transpose(2, 0, 1))
        return bytes(memory.getbuffer())
