"""Estimated shifts against known ones: made by Fourier's theorem, by cropping, and by the synthetic archive."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from PIL import Image as Pillow
from scipy import ndimage  # type: ignore[import-untyped]

from hisem.archive.coregistration import MAX_SHARE, estimate_shift
from hisem.archive.grid import Window
from hisem.archive.reader import pair_reader
from hisem.archive.shift import RELIABLE, UNKNOWN, Shift
from hisem.archive.synthetic import SyntheticConfig, generate

Image = npt.NDArray[np.uint8]
SUB_PIXEL = [(0.0, 0.5), (0.3, -0.7), (-1.25, 0.1), (2.6, 3.4), (-7.5, -4.2)]
WHOLE = [(1, 0), (0, 1), (-3, 2), (5, 5), (-12, -16)]


def levels(picture: npt.NDArray[Any]) -> Image:
    """`picture`, H W or with bands, as an image."""
    bands = picture if picture.ndim >= 3 else np.repeat(picture[..., None], 3, axis=2)
    return np.clip(np.rint(bands), 0, 255).astype(np.uint8)


def texture(height: int, width: int, seed: int = 0) -> npt.NDArray[np.float64]:
    """A periodic random picture without frequencies near the limit of sampling: it can be shifted exactly."""
    noise = np.random.default_rng(seed).normal(size=(height, width))
    smooth = ndimage.gaussian_filter(noise, 1.2, mode="wrap")
    return 120.0 + 35.0 * smooth / smooth.std()


def moved(picture: npt.NDArray[np.float64], x: float, y: float) -> npt.NDArray[np.float64]:
    """`picture`, H W, with its content displaced by `x` to the right and `y` downwards, wrapping around."""
    return np.fft.ifft2(ndimage.fourier_shift(np.fft.fft2(picture), (y, x))).real


def error(shift: Shift, x: float, y: float) -> float:
    assert shift.x is not None
    assert shift.y is not None
    return max(abs(shift.x - x), abs(shift.y - y))


@pytest.mark.parametrize(("x", "y"), SUB_PIXEL)
@pytest.mark.parametrize(("height", "width"), [(64, 64), (256, 256), (96, 65)])
def test_sub_pixel_shifts_are_found(height: int, width: int, x: float, y: float) -> None:
    large = texture(height + 40, width + 40)
    inner = np.s_[20:-20, 20:-20]  # new content enters at the edges, as it does in a tile
    shift = estimate_shift(levels(large[inner]), levels(moved(large, x, y)[inner]))
    assert error(shift, x, y) <= 0.1
    assert shift.confidence >= RELIABLE


def test_a_spot_moved_right_and_down_has_positive_shifts() -> None:
    rows, cols = np.mgrid[:64, :64]
    before, after = (
        levels(40 + 180 * np.exp(-((cols - x) ** 2 + (rows - y) ** 2) / 18)) for x, y in ((30, 28), (33, 30))
    )
    assert error(estimate_shift(before, after), 3, 2) <= 0.05
    assert error(estimate_shift(after, before), -3, -2) <= 0.05


def test_identical_images_are_surely_not_shifted() -> None:
    image = levels(texture(64, 64))
    assert estimate_shift(image, image) == Shift(0.0, 0.0, 1.0)
    valid = np.ones((64, 64), bool)
    assert estimate_shift(image, image, valid, valid) == Shift(0.0, 0.0, 1.0)


@pytest.mark.parametrize("seed", range(5))
def test_light_haze_and_noise_do_not_shift(seed: int) -> None:
    rng = np.random.default_rng(seed)
    large = texture(144, 144, seed)
    inner = np.s_[8:-8, 8:-8]
    slope = np.linspace(0.5, 1.2, 128)[None, :, None]
    before, after = levels(large[inner]), levels(moved(large, 1.3, -0.6)[inner])
    bleak = levels(30 + slope * np.array([0.7, 0.5, 0.4]) * after + rng.normal(0, 4, after.shape))
    shift = estimate_shift(before, bleak)
    assert error(shift, 1.3, -0.6) <= 0.1
    assert shift.confidence >= RELIABLE


def test_what_was_built_does_not_shift_the_rest() -> None:
    large = texture(144, 144)
    before, after = levels(large[8:-8, 8:-8]), levels(moved(large, -0.8, 0.4)[8:-8, 8:-8])
    after[20:70, 30:100] = levels(texture(50, 70, seed=9))
    after[80:110, 20:60] = 230
    assert error(estimate_shift(before, after), -0.8, 0.4) <= 0.1


@pytest.mark.parametrize("size", [64, 256])
def test_corners_missing_on_different_dates_have_no_influence(size: int) -> None:
    large = texture(size + 16, size + 16)
    before, after = levels(large[8:-8, 8:-8]), levels(moved(large, 1.7, -1.2)[8:-8, 8:-8])
    across = np.add.outer(np.arange(size), np.arange(size))
    before_valid, after_valid = across > 0.6 * size, across < 1.5 * size
    found = []
    for filling in (0, 255):
        before[~before_valid], after[~after_valid] = filling, filling
        found.append(estimate_shift(before, after, before_valid, after_valid))
    assert error(found[0], 1.7, -1.2) <= 0.1
    assert found[0].confidence >= RELIABLE
    assert found[0] == found[1]


def test_holes_common_to_both_dates_are_not_what_is_compared() -> None:
    rng = np.random.default_rng(0)
    faint = 100 + 0.05 * (texture(272, 272) - 120)
    hole = np.arange(256) % 40 < 12
    valid = ~(hole[:, None] & hole[None, :])
    before, after = (
        levels(valid[..., None] * (moved(faint, x, y)[8:-8, 8:-8, None] + rng.normal(0, 3, (256, 256, 3))))
        for x, y in ((0, 0), (3.4, -2.3))
    )
    assert error(estimate_shift(before, after, valid, valid), 3.4, -2.3) <= 0.1
    assert estimate_shift(before, after).confidence < RELIABLE


def test_unknown_where_too_little_is_valid() -> None:
    image = levels(texture(64, 64))
    corner = np.zeros((64, 64), bool)
    corner[:18, :18] = True
    assert estimate_shift(image, image, corner, None) == UNKNOWN
    assert estimate_shift(image, image, corner, ~corner) == UNKNOWN
    assert estimate_shift(image, image, None, np.zeros((64, 64), bool)) == UNKNOWN
    for height, width in ((1, 1), (8, 8), (2, 4000), (0, 0)):
        sliver = np.full((height, width, 3), 7, np.uint8)
        assert estimate_shift(sliver, sliver) == UNKNOWN


@pytest.mark.parametrize("level", [0, 100, 255])
def test_unknown_where_nothing_is_to_be_seen(level: int) -> None:
    blank, image = np.full((64, 64, 3), level, np.uint8), levels(texture(64, 64))
    assert estimate_shift(blank, blank) == UNKNOWN
    assert estimate_shift(blank, image) == UNKNOWN
    assert estimate_shift(image, blank) == UNKNOWN


@pytest.mark.parametrize("size", [64, 128])
def test_unrelated_images_are_never_reliable(size: int) -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(20):  # water, of which only the sensor's noise differs, and scenes of two places
        water = levels(rng.normal(60, 3, (2, size, size, 3)))
        places = [levels(texture(size, size, seed)) for seed in rng.integers(1, 999, 2)]
        found += [estimate_shift(water[0], water[1]), estimate_shift(places[0], places[1])]
    assert max(shift.confidence for shift in found) < RELIABLE
    assert np.mean([shift == UNKNOWN for shift in found]) >= 0.9


@pytest.mark.parametrize("steep", [0.0, 0.5, 2.0])
def test_a_straight_edge_alone_does_not_tell_the_shift(steep: float) -> None:
    rng = np.random.default_rng(0)
    side = np.add.outer(steep * np.arange(64), np.arange(64))
    edge = np.where(side < side.mean(), 60.0, 170.0)[..., None]
    for _ in range(10):
        before, after = (levels(edge + rng.normal(0, 3, (64, 64, 3))) for _ in "ab")
        assert estimate_shift(before, after).confidence < 0.5


def test_unknown_beyond_a_quarter_of_the_tile() -> None:
    large = texture(64, 128)
    limit = round(MAX_SHARE * 64)
    before = levels(large[:, 32:96])
    assert error(estimate_shift(before, levels(large[:, 32 - limit : 96 - limit])), limit, 0) <= 0.05
    assert estimate_shift(before, levels(large[:, 30 - limit : 94 - limit])) == UNKNOWN


@dataclass(frozen=True)
class Estimates:
    """Per tile of a synthetic archive: its change, its confidence, and the error in pixels, infinite if unknown."""

    changed: npt.NDArray[np.bool_]
    confidence: npt.NDArray[np.float64]
    error: npt.NDArray[np.float64]


@pytest.fixture(
    scope="module",
    params=[
        SyntheticConfig(scenes=8, seed=21, tile_size=64, scene_tiles=5, nodata_share=0.25, two_crs_share=0.25),
        SyntheticConfig(scenes=6, seed=22, tile_size=128, scene_tiles=3, nodata_share=0.2, two_crs_share=0.2),
    ],
    ids=["64", "128"],
)
def synthetic(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Estimates:
    config: SyntheticConfig = request.param
    folder: Path = tmp_path_factory.mktemp("shifted")
    generate(config, folder, workers=1)
    truths = pq.read_table(folder / "references.parquet").to_pylist()
    rows = []
    for pair in pq.read_table(folder / "catalogue.parquet").to_pylist():
        with pair_reader(pair, config.tile_size) as reader:
            for truth in (row for row in truths if row["pair_id"] == pair["pair_id"]):
                tile = reader.read(Window(truth["row_off"], truth["col_off"], config.tile_size, config.tile_size))
                if min(tile.before_valid, tile.after_valid) < 0.5:
                    continue  # archives are read without such tiles
                before_valid, after_valid = (tile.before != 0).any(2), (tile.after != 0).any(2)  # no valid pixel is 0
                shift = estimate_shift(tile.before, tile.after, before_valid, after_valid)
                off = np.inf if shift.x is None else error(shift, truth["true_shift_x"], truth["true_shift_y"])
                rows.append((truth["changed"], shift.confidence, off))
    return Estimates(*(np.array(column) for column in zip(*rows, strict=True)))


def test_unchanged_tiles_of_the_synthetic_archive_are_recovered(synthetic: Estimates) -> None:
    unchanged = ~synthetic.changed
    reliable = unchanged & (synthetic.confidence >= RELIABLE)
    assert np.count_nonzero(reliable) >= 20
    assert synthetic.error[reliable].max() < 0.25
    assert np.count_nonzero(reliable) >= 0.8 * np.count_nonzero(unchanged)
    assert np.mean(synthetic.error[unchanged] < 0.25) >= 0.97
    assert np.median(synthetic.error[unchanged]) < 0.1


def test_changed_tiles_of_the_synthetic_archive_are_recovered_too(synthetic: Estimates) -> None:
    errors = synthetic.error[synthetic.changed]
    assert np.mean(errors < 0.25) >= 0.95
    assert np.all(synthetic.error[synthetic.confidence >= RELIABLE] < 0.5)


@pytest.mark.parametrize("folder", ["A", "B"])
def test_real_tiles_shifted_against_themselves(shared_data: Path, folder: str) -> None:
    paths = sorted((shared_data / "levir_cc" / "images" / "test" / folder).glob("*.png"))[:10]
    assert len(paths) == 10
    inner = np.s_[32:-32, 32:-32]
    for path, sub_pixel, whole in zip(paths, SUB_PIXEL * 2, WHOLE * 2, strict=True):
        image = np.array(Pillow.open(path).convert("RGB"))
        for shift in (sub_pixel, whole):
            displaced = np.stack([moved(image[..., band].astype(float), *shift) for band in range(3)], axis=2)
            found = estimate_shift(image[inner], levels(displaced)[inner])
            assert error(found, *shift) <= 0.1, path.name
            assert found.confidence >= RELIABLE, path.name


def test_real_places_that_differ_are_never_reliable(shared_data: Path) -> None:
    paths = sorted((shared_data / "levir_cc" / "images" / "test" / "A").glob("*.png"))[:20]
    images = [np.array(Pillow.open(path).convert("RGB")) for path in paths]
    found = [estimate_shift(one, other) for one, other in zip(images[::2], images[1::2], strict=True)]
    assert max(shift.confidence for shift in found) < RELIABLE
