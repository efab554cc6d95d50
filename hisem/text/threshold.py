"""What every threshold of the image router would give, from one pass over the tiles.

Shapes: N tiles, T thresholds, S = 10 sums of which corpus BLEU-4 is made.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test

from hisem.errors import DatasetError
from hisem.text.metrics import compared, compared_references
from hisem.text.vocabulary import Vocabulary

ORDER = 4
TINY, SMALL = 1e-15, 1e-9
"""By which coco-caption keeps its divisions finite."""

ARG_MAX = 0.5
"""The threshold that equals the arg max of the router's two classes."""

Counts = npt.NDArray[np.int64]


class Cut(NamedTuple):
    """One threshold and what it gives, as fractions."""

    threshold: float
    bleu_4: float
    change_f1: float


@dataclass(frozen=True)
class ThresholdCurve:
    """BLEU-4 and change F1, fractions in [0, 1], over the router's threshold.

    `thresholds` ascend from 0 to 1 and hold every p(changed) of the tiles, from which on a tile is called changed:
    what a threshold between two of them gives is what the upper one gives, so that the curve leaves nothing out.
    """

    thresholds: tuple[float, ...]
    bleu_4: tuple[float, ...]
    change_f1: tuple[float, ...]

    def at(self, threshold: float) -> Cut:
        """What a threshold in [0, 1] gives."""
        place = bisect_left(self.thresholds, threshold)
        return Cut(threshold, self.bleu_4[place], self.change_f1[place])

    def best(self, metric: Literal["bleu_4", "change_f1"] = "bleu_4") -> Cut:
        """The threshold with the highest value; of equals the one nearest to 0.5."""
        cuts = map(Cut, self.thresholds, self.bleu_4, self.change_f1)
        return max(cuts, key=lambda cut: (getattr(cut, metric), -abs(cut.threshold - ARG_MAX)))


def threshold_curve(
    probabilities: Sequence[float],
    if_unchanged: Sequence[str],
    if_changed: Sequence[str],
    references: Sequence[Sequence[str]],
    changed: Sequence[bool],
    vocabulary: Vocabulary | None = None,
) -> ThresholdCurve:
    """The curve of N tiles: the router's p(changed), the caption on either path, the references, the truth.

    At each threshold BLEU-4 and F1 are those of `caption_scores` and `change_scores`; with a `vocabulary` BLEU-4 is
    that of protocol `ids`. The statistics of a tile are taken once for either caption and summed by prefixes.

    Raises `DatasetError` where there is no tile, or one has no reference with words in it, and `ValueError` where
    the lengths differ.
    """
    if len({len(column) for column in (probabilities, if_unchanged, if_changed, references, changed)}) > 1:
        raise ValueError("threshold curve: every tile needs a probability, two captions, references and a label")
    if not probabilities:
        raise DatasetError("threshold curve: there is no tile to score; is the split empty?")
    order = np.argsort(probabilities, kind="stable")
    ascending = np.asarray(probabilities, float)[order]
    thresholds = np.unique([0.0, ARG_MAX, 1.0, *ascending])
    first = np.searchsorted(ascending, thresholds)  # T: from this tile on all are called changed
    still, moved = (_bleu_sums(captions, references, vocabulary)[order] for captions in (if_unchanged, if_changed))
    truth = np.asarray(changed, np.int64)[order, None]
    return ThresholdCurve(
        tuple(thresholds.tolist()),
        tuple(_bleu_4(_before(still)[first] + _from(moved)[first]).tolist()),
        tuple(_f1(_from(truth)[first, 0], _from(1 - truth)[first, 0], _before(truth)[first, 0]).tolist()),
    )


def _bleu_sums(captions: Sequence[str], references: Sequence[Sequence[str]], vocabulary: Vocabulary | None) -> Counts:
    """For each caption its length, that of the closest reference, and n-grams said and matched, N S."""
    rows = []
    for position, (caption, sentences) in enumerate(zip(captions, references, strict=True)):
        described = compared_references(sentences, vocabulary)
        if not described:
            raise DatasetError(f"threshold curve: tile {position} has no reference with words in it; leave it out.")
        found = cook_test(compared(caption, vocabulary), cook_refs(described, n=ORDER), eff="closest", n=ORDER)
        rows.append([found["testlen"], found["reflen"], *found["guess"], *found["correct"]])
    return np.array(rows, np.int64)


def _bleu_4(sums: Counts) -> npt.NDArray[np.float64]:
    """Corpus BLEU-4 of sums T S, as coco-caption computes it."""
    said, reference = sums[:, 0], sums[:, 1]
    guessed, correct = sums[:, 2 : 2 + ORDER], sums[:, 2 + ORDER :]
    precision = np.prod((correct + TINY) / (guessed + SMALL), axis=1) ** (1 / ORDER)
    ratio = (said + TINY) / (reference + SMALL)
    return precision * np.exp(np.minimum(0.0, 1 - 1 / ratio))


def _f1(hits: Counts, false_alarms: Counts, misses: Counts) -> npt.NDArray[np.float64]:
    """F1 of counts, 0 where no tile is changed or called so."""
    return 2 * hits / np.maximum(1, 2 * hits + false_alarms + misses)


def _before(rows: Counts) -> Counts:
    """Sums over the rows before each place, and over all of them: N + 1 rows of N."""
    return np.concatenate([np.zeros_like(rows[:1]), rows.cumsum(axis=0)])


def _from(rows: Counts) -> Counts:
    """Sums over the rows from each place on, and over none: N + 1 rows of N."""
    return rows.sum(axis=0) - _before(rows)
