"""How an archive is read, as a person says it: the flags that tiling and captioning share."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from hisem.config import to_dict
from hisem.errors import ConfigError
from hisem.ranges import Fraction, Range, require_ranges

TileSize = Annotated[int, Range(1, 8192)]
"""Pixels a tile's side."""
FINITE = Range(-sys.float_info.max, sys.float_info.max)
PERCENTILES = (2.0, 98.0)
WINDOW_OPTIONS = ("overlap", "min_valid", "resolution", "max_shift", "skip_shifted")
"""Options that decide which tiles there are and which are skipped; the resolution is part of their ids."""


@dataclass(frozen=True)
class ReadOptions:
    """How scenes are cut into tiles, and how their pixels become 8-bit red, green and blue.

    The defaults take 8-bit rasters as they are.
    """

    overlap: Annotated[int, Range(0, 8191)] = 0
    """Pixels that neighbouring tiles share, from 0 to the tile size - 1."""
    min_valid: Fraction = 0.5
    """Share of a tile, from 0 to 1, that must be valid on both dates; tiles with less are skipped."""
    resolution: Annotated[float, Range(0, 1_000_000, above=True)] | None = None
    """Metres per pixel, whatever unit the CRS counts in (default: the before scene's own pixels)."""
    resampling: Literal["nearest", "bilinear", "cubic", "cubic_spline", "lanczos", "average"] = "bilinear"
    """How a raster of other pixels than the tiles' is resampled. Where pixels become coarser all but nearest
    weigh every source pixel; average is the plain mean."""
    bands: tuple[str, ...] = ("1", "2", "3")
    """Bands taken as red, green and blue: numbers from 1, or names (descriptions or colours, such as red green
    blue). A single one is taken for all three."""
    after_bands: tuple[str, ...] | None = None
    """The same of the after scenes (default: as --bands)."""
    scaling: Literal["none", "dtype", "range", "percentiles"] = "none"
    """How values become 8 bit: not at all (8-bit rasters only), from the full range of the integer type, from
    --scale-range, or from --percentiles of each scene's valid pixels, band by band."""
    scale_range: Annotated[tuple[float, float], FINITE] | None = None
    """Values that become 0 and 255 with --scaling range."""
    percentiles: Annotated[tuple[float, float], Range(0, 100)] = PERCENTILES
    """Percentiles, from 0 to 100, that become 0 and 255 with --scaling percentiles."""
    nodata: Annotated[float, FINITE] | None = None
    """Value of invalid pixels, instead of what rasters declare themselves (nodata value, mask band or alpha).
    NaN and infinity are always invalid."""

    max_shift: Annotated[float, Range(0, 8192, above=True)] | None = None
    """Pixels by which the two dates may be displaced against each other; tiles that surely exceed it are flagged:
    they are ok, and error says by how much (default: none is flagged)."""
    skip_shifted: bool = False
    """Skip the tiles that --max-shift flags."""

    def __post_init__(self) -> None:
        require_ranges(self)
        if self.skip_shifted and self.max_shift is None:
            raise ConfigError("skip_shifted is set without max_shift: give --max-shift PIXELS as well.")
        for name, bands in (("bands", self.bands), ("after_bands", self.after_bands)):
            if bands is not None and (len(bands) not in (1, 3) or any(band in ("", "0") for band in bands)):
                raise ConfigError(
                    f"{name} is {' '.join(bands) or 'empty'}: three bands, or one for all three colours; "
                    "numbers count from 1."
                )
        self._check_scaling()

    def _check_scaling(self) -> None:
        if (self.scaling == "range") != (self.scale_range is not None):
            raise ConfigError(
                f"scaling is {self.scaling} and scale_range is {self.scale_range}: give both "
                "--scaling range and --scale-range LO HI, or neither."
            )
        if self.scale_range is not None:
            low, high = self.scale_range
            if not low < high:
                raise ConfigError(f"scale_range is {low} {high}: two numbers, the lower first.")
        low, high = self.percentiles
        if not low < high:
            raise ConfigError(f"percentiles is {low} {high}: two numbers from 0 to 100, the lower first.")
        if self.scaling != "percentiles" and (low, high) != PERCENTILES:
            raise ConfigError(f"percentiles is {low} {high}, but scaling is {self.scaling}: add --scaling percentiles.")

    def changed(self) -> dict[str, Any]:
        """The options that differ from the defaults, as plain data: what an output must remember."""
        defaults = to_dict(DEFAULTS)
        return {name: value for name, value in to_dict(self).items() if value != defaults[name]}

    def pixel_settings(self) -> dict[str, Any]:
        """Those of `changed` by which a tile of the same id has other pixels."""
        return {name: value for name, value in self.changed().items() if name not in WINDOW_OPTIONS}


DEFAULTS = ReadOptions()
