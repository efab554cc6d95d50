"""The curve over the router's threshold, against scoring the captions that each threshold selects."""

from __future__ import annotations

import gzip
import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu

from hisem.errors import DatasetError
from hisem.text.metrics import Protocol, caption_scores
from hisem.text.scoring import change_scores
from hisem.text.threshold import Cut, ThresholdCurve, threshold_curve
from hisem.text.vocabulary import UNCHANGED_SENTENCE, Vocabulary

SUBJECTS = ["a road", "some houses", "many villas", "a parking lot", "a row of trees", "the bareland"]
ENDS = ["is built", "are built beside the road", "replaces the trees , on the left", "has been removed", "appears"]


@dataclass
class Tiles:
    probabilities: list[float]
    if_unchanged: list[str]
    if_changed: list[str]
    references: list[list[str]]
    changed: list[bool]

    def curve(self, vocabulary: Vocabulary | None = None) -> ThresholdCurve:
        return threshold_curve(
            self.probabilities, self.if_unchanged, self.if_changed, self.references, self.changed, vocabulary
        )

    def selected(self, threshold: float) -> tuple[list[str], list[bool]]:
        called = [probability >= threshold for probability in self.probabilities]
        pairs = zip(called, self.if_changed, self.if_unchanged, strict=True)
        return [moved if flag else still for flag, moved, still in pairs], called


def tiles(count: int, seed: int = 0, digits: int = 3) -> Tiles:
    """Random tiles whose router is right more often than not; with few digits many share a probability."""
    rng = random.Random(seed)

    def sentence() -> str:
        return f"{rng.choice(SUBJECTS)} {rng.choice(ENDS)}"

    changed = [rng.random() < 0.5 for _ in range(count)]
    return Tiles(
        [round(min(1.0, max(0.0, rng.gauss(0.65 if flag else 0.35, 0.2))), digits) for flag in changed],
        [rng.choice([UNCHANGED_SENTENCE, sentence()]) for _ in changed],
        [sentence() for _ in changed],
        [[sentence() for _ in range(5)] if flag else [UNCHANGED_SENTENCE, "nothing has changed"] for flag in changed],
        changed,
    )


def check(given: Tiles, curve: ThresholdCurve, thresholds: list[float]) -> None:
    truth = dict(enumerate(given.references))
    for threshold in thresholds:
        captions, called = given.selected(threshold)
        bleu = Bleu(4).compute_score(truth, {tile: [text] for tile, text in enumerate(captions)}, verbose=0)[0][3]
        cut = curve.at(threshold)
        assert cut.threshold == threshold
        assert cut.bleu_4 == pytest.approx(bleu, rel=1e-12)
        assert cut.change_f1 == pytest.approx(change_scores(called, given.changed).f1, rel=1e-12)


@pytest.mark.parametrize(("seed", "digits"), [(0, 3), (1, 1), (2, 6)])
def test_equals_scoring_the_selected_captions(seed: int, digits: int) -> None:
    given = tiles(60, seed, digits)
    curve = given.curve()
    assert list(curve.thresholds) == sorted({0.0, 0.5, 1.0, *given.probabilities})
    between = np.linspace(0, 1, 37).tolist()
    check(given, curve, [*curve.thresholds, *between])
    assert len(set(curve.bleu_4)) > 3
    assert len(set(curve.change_f1)) > 3


def test_real_references(shared_data: Path) -> None:
    """Each test tile of LEVIR-CC, its second reference as what is said on the changed path."""
    content = gzip.decompress((shared_data / "levir_cc" / "LevirCCcaptions_all_10077.json.gz").read_bytes())
    images = [image for image in json.loads(content)["images"] if image["split"] == "test"]
    raw = [[sentence["raw"] for sentence in image["sentences"]] for image in images]
    rng = random.Random(0)
    given = Tiles(
        [rng.betavariate(4, 2) if image["changeflag"] else rng.betavariate(2, 4) for image in images],
        [UNCHANGED_SENTENCE] * len(images),
        [sentences[1] for sentences in raw],
        [[*sentences[:1], *sentences[2:]] for sentences in raw],
        [bool(image["changeflag"]) for image in images],
    )
    curve = given.curve()
    assert len(images) == 1929
    check(given, curve, [0.0, 0.2, 0.41, 0.5, curve.best().threshold, 0.8, 1.0])


def test_the_best_is_the_highest_and_of_equals_the_nearest_to_one_half() -> None:
    curve = ThresholdCurve((0.0, 0.2, 0.4, 0.5, 0.7, 1.0), (0.1, 0.3, 0.3, 0.2, 0.3, 0.1), (0.5, 0.6, 0.7, 0.6, 0.8, 0))
    assert curve.best() == Cut(0.4, 0.3, 0.7)
    assert curve.best("change_f1") == Cut(0.7, 0.3, 0.8)
    assert curve.at(0.3) == Cut(0.3, 0.3, 0.7)
    assert curve.at(1.0) == Cut(1.0, 0.1, 0)


@pytest.mark.parametrize("protocol", ["words", "ids"])
def test_equals_the_table_under_either_protocol(protocol: Protocol) -> None:
    given = tiles(40)
    given.if_changed[:3] = ["An unheard-of word.", "", "A Road, is built?"]
    given.references[0] = [*given.references[0], " . ", "one more unheard word"]
    vocabulary = Vocabulary.build([s for sentences in given.references for s in sentences], 3)
    curve = given.curve(vocabulary if protocol == "ids" else None)
    for threshold in (0.0, 0.3, 0.5, 0.7):
        captions, _ = given.selected(threshold)
        expected = caption_scores(captions, given.references, protocol=protocol, vocabulary=vocabulary, meteor=False)
        assert curve.at(threshold).bleu_4 == pytest.approx(expected.bleu_4, rel=1e-12)


@pytest.mark.parametrize("changed", [True, False])
def test_tiles_of_one_kind_alone(changed: bool) -> None:
    given = tiles(12)
    given.changed = [changed] * 12
    check(given, given.curve(), np.linspace(0, 1, 11).tolist())
    assert max(given.curve().change_f1) == (1.0 if changed else 0.0)


@pytest.mark.parametrize("probability", [0.0, 0.3, 0.5, 1.0])
def test_equal_probabilities_and_single_tiles(probability: float) -> None:
    for count in (1, 8):
        given = tiles(count)
        given.probabilities = [probability] * count
        curve = given.curve()
        assert len(curve.thresholds) <= 4
        check(given, curve, [0.0, 0.2, 0.3, 0.5, 0.9, 1.0])


def test_refuses_what_cannot_be_scored() -> None:
    with pytest.raises(DatasetError, match="no tile to score"):
        threshold_curve([], [], [], [], [])
    with pytest.raises(DatasetError, match="tile 1 has no reference"):
        threshold_curve([0.1, 0.2], ["a", "a"], ["b", "b"], [["a"], ["."]], [True, True])
    with pytest.raises(ValueError, match="every tile needs"):
        threshold_curve([0.1], ["a"], ["b"], [["a"]], [])
