"""Rows to tensors: which sentence is shown, padding, cutting, and pixels."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from hisem.text.vocabulary import SPECIALS, UNCHANGED_SENTENCE, Vocabulary
from hisem.training.batches import PAIR_COLUMNS, Collate, image_tensor

WORDS = Vocabulary((*SPECIALS, "a", "as", "before", "built", "house", "is", "road", "same", "scene", "the"))
NULL, UNK, START, END, A, AS, BEFORE, BUILT, HOUSE, IS, ROAD, SAME, SCENE, THE = range(14)


def collate(max_length: int = 10, seed: int = 0, epoch: int = 0) -> Collate:
    return Collate(WORDS, max_length, seed, epoch)


def draw(seed: int, epoch: int, tile: str, count: int) -> int:
    """The number of the drawn one of `count` references."""
    return int(collate(seed=seed, epoch=epoch).draw(tile, [str(number) for number in range(count)]))


def chi_square(counts: Counter[object], cells: int) -> float:
    expected = counts.total() / cells
    return sum((counts[cell] - expected) ** 2 / expected for cell in counts) + expected * (cells - len(counts))


TILES = [f"scene_{scene:04d}/{row}_{column}_64" for scene in range(40) for row in range(8) for column in range(8)]


@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_references_are_drawn_evenly_over_tiles(count: int) -> None:
    drawn = Counter(draw(0, 0, tile, count) for tile in TILES)
    assert set(drawn) == set(range(count))
    # Five standard deviations above the mean of the chi-square distribution.
    assert chi_square(Counter(drawn), count) <= count - 1 + 5 * math.sqrt(2 * max(1, count - 1))


@pytest.mark.parametrize("count", [2, 4, 5])
@pytest.mark.parametrize("other", [(0, 1), (0, 9), (0, 10), (1, 0)])
def test_draws_of_two_epochs_or_seeds_have_nothing_to_do_with_each_other(count: int, other: tuple[int, int]) -> None:
    both: Counter[object] = Counter((draw(0, 0, tile, count), draw(*other, tile, count)) for tile in TILES)
    cells = count * count
    assert chi_square(both, cells) <= cells - 1 + 5 * math.sqrt(2 * (cells - 1))


def test_every_tile_shows_all_its_references_over_the_epochs() -> None:
    for tile in TILES[::50]:
        drawn = Counter(draw(3, epoch, tile, 5) for epoch in range(50))
        assert set(drawn) == set(range(5))
        assert max(drawn.values()) <= 25


def columns(count: int) -> dict[str, object]:
    return {
        "tile_id": np.array(TILES[:count], dtype=object),
        "before": np.zeros((count, 4, 4, 3), np.uint8),
        "after": np.zeros((count, 4, 4, 3), np.uint8),
        "references": [["a road", "a house", "the road", "the house", "a scene"]] * count,
        "changed": np.ones(count, bool),
    }


def test_drawn_reference_depends_on_seed_epoch_and_tile_alone() -> None:
    whole = columns(40)
    first = collate()(whole).word_ids
    assert torch.equal(first, collate()(whole).word_ids)
    # In other company and order a tile shows the same.
    order = np.random.default_rng(1).permutation(40)[:17]
    mixed = {name: [list(values)[at] for at in order] for name, values in whole.items()}  # type: ignore[call-overload]
    assert torch.equal(collate()(mixed).word_ids, first[torch.from_numpy(order)])
    assert not torch.equal(first, collate(epoch=1)(whole).word_ids)
    assert not torch.equal(first, collate(seed=1)(whole).word_ids)
    pixels = whole | {"before": np.full((40, 4, 4, 3), 9, np.uint8)}
    assert torch.equal(first, collate()(pixels).word_ids)


def test_unchanged_tiles_show_the_canonical_sentence_and_keep_their_references() -> None:
    rows = columns(3) | {
        "references": [["the road is a road"], ["nothing", "is built"], ["a house is built"]],
        "changed": np.array([False, False, True]),
    }
    for epoch in range(5):
        batch = collate(epoch=epoch)(rows)
        canonical = [START, THE, SCENE, IS, THE, SAME, AS, BEFORE, END]
        assert batch.word_ids.tolist()[:2] == [canonical, canonical]
        assert WORDS.decode(batch.word_ids[0].tolist()) == UNCHANGED_SENTENCE
    assert batch.references == rows["references"]
    assert batch.changed.tolist() == [False, False, True]
    assert batch.changed.dtype == torch.bool


def test_padding_to_the_longest_and_unknown_words() -> None:
    rows = columns(3) | {"references": [["a road"], ["A house, is built."], ["road"]]}
    assert collate()(rows).word_ids.tolist() == [
        [START, A, ROAD, END, NULL, NULL, NULL],
        [START, A, HOUSE, UNK, IS, BUILT, END],
        [START, ROAD, END, NULL, NULL, NULL, NULL],
    ]
    assert collate()(rows).word_ids.dtype == torch.int64


@pytest.mark.parametrize("longest", [1, 2, 4, 6])
def test_a_caption_has_at_most_max_length_predicted_words(longest: int) -> None:
    rows = columns(1) | {"references": [["the house is built as the road"]]}
    whole = [THE, HOUSE, IS, BUILT, AS, THE, ROAD]
    assert collate(longest)(rows).word_ids.tolist() == [[START, *whole[: longest - 1], END]]


def test_pixels_keep_their_places() -> None:
    images = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
    tensor = image_tensor(images)
    assert tensor.shape == (2, 3, 3, 4)
    for image, channel, row, column in itertools.product(range(2), range(3), range(3), range(4)):
        assert tensor[image, channel, row, column] == images[image, row, column, channel]
    ragged = np.empty(2, dtype=object)  # what Ray makes of a column of arrays
    ragged[:] = list(images)
    assert torch.equal(image_tensor(ragged), tensor)
    assert torch.equal(image_tensor(list(images)), tensor)


def test_a_batch_is_independent_of_read_only_input() -> None:
    rows = columns(2)
    before = np.zeros((2, 4, 4, 3), np.uint8)
    before.flags.writeable = False
    batch = collate()(rows | {"before": before})
    batch.before.add_(1)
    assert before.max() == 0
    assert set(rows) == set(PAIR_COLUMNS)


def test_moving_a_batch_moves_all_its_tensors() -> None:
    batch = collate()(columns(2))
    moved = batch.to(torch.device("meta"))
    tensors = [f.name for f in fields(batch) if isinstance(getattr(batch, f.name), torch.Tensor)]
    assert len(tensors) == 4
    assert all(getattr(moved, name).device.type == "meta" for name in tensors)
    assert len(moved) == 2
    assert replace(moved, **{name: getattr(batch, name) for name in tensors}) == batch
