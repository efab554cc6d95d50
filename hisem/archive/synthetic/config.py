"""The configuration of a synthetic archive, and which of its scenes are special."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from hisem.errors import ConfigError
from hisem.ranges import Fraction, Range, Seed, require_ranges

TRAIN, VAL, TEST = "train", "val", "test"


@dataclass(frozen=True)
class SyntheticConfig:
    """What determines a synthetic archive to the byte."""

    scenes: Annotated[int, Range(1, 100_000)] = 120
    """Scene pairs, at least 1."""
    seed: Seed = 0
    """Seed of everything random, at least 0."""
    tile_size: Annotated[int, Range(32, 512)] = 64
    """Pixels a tile's side, 32 to 512. A tile shows 64 m of ground, so 64 makes pixels of 1 m."""
    scene_tiles: Annotated[int, Range(1, 64)] = 8
    """Tiles a scene's side, 1 to 64."""
    val_share: Annotated[float, Range(0, 0.5)] = 0.08
    """Share of scenes for validation, 0 to 0.5; from 3 scenes on at least one if above 0."""
    test_share: Annotated[float, Range(0, 0.5)] = 0.10
    """Share of scenes for the test, 0 to 0.5; from 3 scenes on at least one if above 0."""
    nodata_share: Fraction = 0.15
    """Share of scenes with a corner beyond the footprint on one date or both, 0 to 1."""
    two_crs_share: Fraction = 0.10
    """Share of scenes whose after scene is delivered in another CRS, 0 to 1."""

    def __post_init__(self) -> None:
        require_ranges(self)
        side = self.tile_size * self.scene_tiles
        if side > 8192:
            raise ConfigError(
                f"tile_size {self.tile_size} times scene_tiles {self.scene_tiles} makes scenes of {side} pixels "
                "a side, which are composed in memory: keep the product at or below 8192."
            )

        if TRAIN not in self.splits():
            raise ConfigError(
                f"val_share {self.val_share} and test_share {self.test_share} of {self.scenes} scenes leaves no scene "
                "for training: lower them or raise scenes."
            )

    @property
    def scene_size(self) -> int:
        """Pixels a scene's side."""
        return self.tile_size * self.scene_tiles

    @property
    def pixel(self) -> float:
        """Metres a pixel."""
        return 64.0 / self.tile_size

    def splits(self) -> list[str]:
        """The split of each scene. Test and validation scenes are spread evenly over the archive."""
        splits = [TRAIN] * self.scenes
        for share, split in ((self.test_share, TEST), (self.val_share, VAL)):
            free = [index for index in range(self.scenes) if splits[index] == TRAIN]
            least = 1 if share and self.scenes >= 3 else 0
            for position in _spread(len(free), max(least, round(share * self.scenes))):
                splits[free[position]] = split
        return splits

    def nodata_scenes(self) -> set[int]:
        """The scenes with nodata."""
        return set(_scattered(self.scenes, round(self.nodata_share * self.scenes), 0.3))

    def two_crs_scenes(self) -> list[int]:
        """The scenes in two CRS."""
        return _scattered(self.scenes, round(self.two_crs_share * self.scenes), 0.7)


def _spread(total: int, count: int) -> list[int]:
    """`count` of the numbers below `total` at even distances."""
    return [int((index + 0.5) * total / count) for index in range(count)]


def _scattered(total: int, count: int, phase: float) -> list[int]:
    """`count` of the numbers below `total` at uneven distances, so that all splits get their share."""
    golden = (5**0.5 - 1) / 2
    return sorted(sorted(range(total), key=lambda number: (number * golden + phase) % 1.0)[:count])
