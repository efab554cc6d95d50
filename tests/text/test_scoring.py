from __future__ import annotations

import itertools

import pytest

from hisem.errors import DatasetError
from hisem.text.metrics import caption_scores
from hisem.text.scoring import Baselines, change_scores, describes_change, most_frequent_changed, score_table
from hisem.text.vocabulary import SPECIALS, UNCHANGED_SENTENCE, Vocabulary

REFERENCES = [["a house appears", "a villa is built"], [UNCHANGED_SENTENCE], ["a road is built", "a road appears"]]
CHANGED = [True, False, True]


def test_change_scores_by_hand() -> None:
    scores = change_scores([True, True, True, False, False, False], [True, True, False, True, False, False])
    assert (scores.accuracy, scores.precision, scores.recall, scores.f1) == pytest.approx((4 / 6, 2 / 3, 2 / 3, 2 / 3))
    assert (scores.count, scores.positives) == (6, 3)


@pytest.mark.parametrize("truth", list(itertools.product([False, True], repeat=3)))
@pytest.mark.parametrize("predicted", list(itertools.product([False, True], repeat=3)))
def test_change_scores_by_their_definition(predicted: tuple[bool, ...], truth: tuple[bool, ...]) -> None:
    scores = change_scores(predicted, truth)
    called = [true for said, true in zip(predicted, truth, strict=True) if said]
    there = [said for said, true in zip(predicted, truth, strict=True) if true]
    precision = sum(called) / len(called) if called else 0
    recall = sum(there) / len(there) if there else 0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0
    accuracy = sum(said == true for said, true in zip(predicted, truth, strict=True)) / 3
    assert (scores.accuracy, scores.precision, scores.recall, scores.f1) == pytest.approx(
        (accuracy, precision, recall, f1)
    )


def test_change_scores_refuse() -> None:
    with pytest.raises(DatasetError, match="no tile to score"):
        change_scores([], [])
    with pytest.raises(ValueError, match="1 predictions for 2 tiles"):
        change_scores([True], [True, False])


def test_most_frequent_changed() -> None:
    references = [["A road.", "a house"], ["a road", "b"], ["a house"], ["same"] * 9, ["", "."] * 9]
    changed = [True, True, True, False, True]
    assert most_frequent_changed(references, changed) == "a house"  # twice, as "a road": the alphabet decides
    assert most_frequent_changed(references[:2], changed[:2]) == "a road"
    with pytest.raises(DatasetError, match="no changed tile"):
        most_frequent_changed(references, [False] * 5)


def test_baselines() -> None:
    captions = Baselines.from_training(REFERENCES, CHANGED).captions(2)
    assert captions == {"always unchanged": [UNCHANGED_SENTENCE] * 2, "most frequent change": ["a house appears"] * 2}


@pytest.mark.parametrize(
    ("caption", "change"),
    [(UNCHANGED_SENTENCE, False), ("The scene is the same as before.", False), ("", False), ("a house", True)],
)
def test_describes_change(caption: str, change: bool) -> None:
    assert describes_change(caption) is change


def test_score_table() -> None:
    captions = {
        "model": ["a house is built", UNCHANGED_SENTENCE, "a road appears"],
        "always unchanged": [UNCHANGED_SENTENCE] * 3,
    }
    vocabulary = Vocabulary((*SPECIALS, "a", "house", "is"))
    rows = score_table(
        captions,
        REFERENCES,
        CHANGED,
        predicted={"model": [False, True, True]},
        protocol="ids",
        vocabulary=vocabulary,
        meteor=False,
    )
    assert [(row.tiles, row.captioner) for row in rows] == [
        ("all", "model"),
        ("all", "always unchanged"),
        ("changed", "model"),
        ("changed", "always unchanged"),
    ]
    for row in rows:
        tiles = [0, 1, 2] if row.tiles == "all" else [0, 2]
        assert row.captions == caption_scores(
            [captions[row.captioner][tile] for tile in tiles],
            [REFERENCES[tile] for tile in tiles],
            protocol="ids",
            vocabulary=vocabulary,
            meteor=False,
        )
    assert rows[0].change == change_scores([False, True, True], CHANGED)
    assert rows[1].change == change_scores([False] * 3, CHANGED)  # decided by the text
    assert rows[2].change == change_scores([False, True], [True, True])


def test_score_table_without_change_has_one_section() -> None:
    rows = score_table({"model": ["a"]}, [["a b"]], [False], meteor=False)
    assert [row.tiles for row in rows] == ["all"]


def test_score_table_refuses_other_lengths() -> None:
    with pytest.raises(ValueError, match="model: 1 captions and 1 change decisions for 3 references"):
        score_table({"model": ["a"]}, REFERENCES, CHANGED, meteor=False)
