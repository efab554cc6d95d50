"""Rows to tensors: which sentence is shown, padding, cutting, and pixels."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from hisem.errors import ConfigError, TrainingError
from hisem.text.vocabulary import SPECIALS, UNCHANGED_SENTENCE, Vocabulary
from hisem.training.batches import (
    PAIR_COLUMNS,
    Collate,
    image_tensor,
    local_batch_sizes,
    micro_batches,
    rebatch,
)

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


@pytest.mark.parametrize("count", range(1, 8))
def test_micro_batches_are_the_batch_in_order_and_even(count: int) -> None:
    batch = collate()(columns(7) | {"before": np.arange(7 * 48, dtype=np.uint32).astype(np.uint8).reshape(7, 4, 4, 3)})
    parts = batch.split(count)
    assert len(parts) == count
    assert {len(part) for part in parts} <= {7 // count, -(-7 // count)}
    for name in ("before", "after", "word_ids", "changed"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))
    for name in ("tile_ids", "references"):
        assert [item for part in parts for item in getattr(part, name)] == getattr(batch, name)


def test_all_workers_have_as_few_micro_batches_as_the_limit_allows_and_none_empty() -> None:
    assert micro_batches([5, 3], 0) == 1
    for sizes, largest in itertools.product(itertools.product(range(1, 9), repeat=2), range(1, 10)):
        counts = [count for count in range(1, min(sizes) + 1) if all(-(-size // count) <= largest for size in sizes)]
        assert micro_batches(sizes, largest) == min(counts, default=min(sizes))


def test_local_batches_are_a_global_one_of_the_same_size_for_any_number_of_workers() -> None:
    for rows, batch_size, world in itertools.product(range(1, 30), range(1, 20), range(1, 10)):
        if batch_size < world:
            continue
        sizes = np.array([local_batch_sizes(rows, batch_size, rank, world) for rank in range(world)])  # world, steps
        assert (sizes.sum(axis=1) == rows).all()
        assert (sizes >= 1).all()
        assert (np.ptp(sizes, axis=0) <= 1).all()
        together = sizes.sum(axis=0)
        assert (together[:-1] == batch_size).all()
        assert 1 <= together[-1] < batch_size + world
    assert local_batch_sizes(19, 64, 0, 7) == [9, 10]  # 133 pairs: 64, then 69, as 5 are too few for 7 workers
    assert local_batch_sizes(19, 64, 6, 7) == [10, 9]
    assert local_batch_sizes(0, 8, 1, 3) == []


def test_more_workers_than_pairs_in_a_batch_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"training\.batch_size=3: 4 workers need a pair each"):
        local_batch_sizes(10, 3, 0, 4)


def stream(lengths: Sequence[int]) -> Iterator[dict[str, np.ndarray]]:
    """Chunks of so many rows, numbered on: a column of numbers, one of images and one of lists."""
    start = 0
    for length in lengths:
        if not length:
            yield {name: np.empty(0) for name in ("number", "image", "lists")}
            continue
        numbers = np.arange(start, start + length)
        lists = np.empty(length, dtype=object)
        lists[:] = [[f"row {number}"] * (number % 3) for number in numbers]
        yield {"number": numbers, "image": np.broadcast_to(numbers[:, None, None], (length, 2, 2)), "lists": lists}
        start += length


def test_a_stream_is_cut_into_batches_of_exact_sizes() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        lengths = rng.integers(0, 9, rng.integers(1, 12)).tolist()
        cuts = rng.integers(0, sum(lengths) + 1, rng.integers(0, 9))
        sizes = [size for size in np.diff(np.sort(cuts), prepend=0).tolist() if size]
        start = 0
        for size, batch in zip(sizes, rebatch(stream(lengths), sizes), strict=True):
            numbers = list(range(start, start + size))
            assert batch["number"].tolist() == numbers
            assert batch["image"].tolist() == [[[number] * 2] * 2 for number in numbers]
            assert batch["lists"].tolist() == [[f"row {number}"] * (number % 3) for number in numbers]
            start += size


def test_batches_are_cut_as_the_chunks_come_and_copied_only_over_a_border() -> None:
    chunks = list(stream([4, 4, 4]))
    coming = iter(chunks)
    batches = rebatch(coming, [3, 2, 3])
    assert np.shares_memory(next(batches)["image"], chunks[0]["image"])
    over = next(batches)["image"]
    assert not any(np.shares_memory(over, chunk["image"]) for chunk in chunks)
    assert np.shares_memory(next(batches)["image"], chunks[1]["image"])
    assert next(batches, None) is None
    assert next(coming) is chunks[2]  # behind the last batch, not asked for


def test_a_stream_that_ends_early_is_an_error_with_both_numbers() -> None:
    batches = rebatch(stream([4, 3]), [4, 4])
    assert len(next(batches)["number"]) == 4
    with pytest.raises(TrainingError, match=r"gave this worker 7 rows of the 8 expected"):
        next(batches)
    assert list(rebatch(stream([]), [])) == []
