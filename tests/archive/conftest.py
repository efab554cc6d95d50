"""Small rasters of known content."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning

UTM = "EPSG:32633"
ORIGIN = Affine(10.0, 0.0, 500_000.0, 0.0, -10.0, 4_000_000.0)


@pytest.fixture
def noise() -> Callable[..., npt.NDArray[np.uint8]]:
    """Makes random pixels, bands x height x width, none of them 0 or 255."""

    def make(bands: int = 3, height: int = 96, width: int = 80, seed: int = 0) -> npt.NDArray[np.uint8]:
        return np.random.default_rng(seed).integers(1, 255, (bands, height, width), dtype=np.uint8)

    return make


@pytest.fixture
def write_raster(tmp_path: Path) -> Callable[..., str]:
    """Writes bands x height x width to a raster in the test's folder and returns its path."""

    def write(
        name: str,
        pixels: npt.NDArray[Any],
        *,
        transform: Affine | None = ORIGIN,
        crs: str | None = UTM,
        mask: npt.NDArray[np.uint8] | None = None,
        alpha: bool = False,
        **profile: Any,
    ) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        drivers = {".png": "PNG", ".jpg": "JPEG"}
        profile |= {"driver": drivers.get(path.suffix, "GTiff"), "dtype": pixels.dtype, "crs": crs}
        if transform is not None:
            profile["transform"] = transform
        count, height, width = pixels.shape
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path, "w", count=count, height=height, width=width, **profile) as raster:
                if alpha:
                    raster.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
                raster.write(pixels)
                if mask is not None:
                    raster.write_mask(mask)
        return str(path)

    return write
