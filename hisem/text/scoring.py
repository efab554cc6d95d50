"""How well captioners do: change detection, two trivial captioners to beat, and the table of them all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from hisem.errors import DatasetError
from hisem.text.metrics import CaptionScorer, CaptionScores, Protocol
from hisem.text.vocabulary import UNCHANGED_SENTENCE, Vocabulary, tokenize


@dataclass(frozen=True)
class ChangeScores:
    """Change detection by tile; *changed* is the positive class. All scores lie in [0, 1]."""

    accuracy: float
    precision: float
    """0 where no tile was called changed (0/0), as scikit-learn has it."""
    recall: float
    """0 where no tile is changed (0/0)."""
    f1: float
    """Harmonic mean of precision and recall; 0 where both are."""
    count: int
    """Tiles scored."""
    positives: int
    """Tiles that are changed."""


@dataclass(frozen=True)
class Baselines:
    """Two captioners that look at no image."""

    unchanged: str
    """What the first says of every tile: nothing changed."""
    most_frequent: str
    """What the second says of every tile: the most frequent reference of changed training tiles."""

    @classmethod
    def from_training(cls, references: Sequence[Sequence[str]], changed: Sequence[bool]) -> Baselines:
        """From the training split. Raises `DatasetError` where none of its tiles is changed."""
        return cls(UNCHANGED_SENTENCE, most_frequent_changed(references, changed))

    def captions(self, count: int) -> dict[str, list[str]]:
        """`{captioner: captions}` for `count` tiles, as `score_table` takes them."""
        return {
            "always unchanged": [self.unchanged] * count,
            "most frequent change": [self.most_frequent] * count,
        }


@dataclass(frozen=True)
class ScoreRow:
    """The scores of one captioner on one set of tiles."""

    captioner: str
    tiles: Literal["all", "changed"]
    captions: CaptionScores
    change: ChangeScores


def change_scores(predicted: Sequence[bool], truth: Sequence[bool]) -> ChangeScores:
    """Compare `predicted` with `truth`, both True for changed.

    Raises `ValueError` where their lengths differ and `DatasetError` where they are empty.
    """
    if len(predicted) != len(truth):
        raise ValueError(f"{len(predicted)} predictions for {len(truth)} tiles")
    if not truth:
        raise DatasetError("change scores: there is no tile to score; is the split empty?")
    pairs = Counter((bool(said), bool(true)) for said, true in zip(predicted, truth, strict=True))
    hits, false_alarms, misses = pairs[True, True], pairs[True, False], pairs[False, True]
    return ChangeScores(
        accuracy=(hits + pairs[False, False]) / len(truth),
        precision=_ratio(hits, hits + false_alarms),
        recall=_ratio(hits, hits + misses),
        f1=_ratio(2 * hits, 2 * hits + false_alarms + misses),
        count=len(truth),
        positives=hits + misses,
    )


def most_frequent_changed(references: Sequence[Sequence[str]], changed: Sequence[bool]) -> str:
    """The most frequent reference among those of changed tiles, tokenised; the alphabet settles a tie.

    Raises `DatasetError` where no changed tile has a reference.
    """
    counts = Counter(
        " ".join(tokenize(sentence))
        for sentences, is_changed in zip(references, changed, strict=True)
        if is_changed
        for sentence in sentences
    )
    del counts[""]
    if not counts:
        raise DatasetError("baselines: no changed tile in the training split; the most frequent change is undefined.")
    return min(counts, key=lambda sentence: (-counts[sentence], sentence))


def describes_change(caption: str) -> bool:
    """Whether `caption` says something other than `UNCHANGED_SENTENCE`; an empty one says nothing."""
    return tokenize(caption) not in ([], tokenize(UNCHANGED_SENTENCE))


def score_table(
    captions: Mapping[str, Sequence[str]],
    references: Sequence[Sequence[str]],
    changed: Sequence[bool],
    *,
    predicted: Mapping[str, Sequence[bool]] | None = None,
    protocol: Protocol = "words",
    vocabulary: Vocabulary | None = None,
    meteor: bool = True,
) -> list[ScoreRow]:
    """Score every captioner of `captions` on all tiles, then every one on the changed tiles alone.

    `references` and `changed` are the truth, one entry a tile; each captioner has one caption a tile.
    `predicted` holds the change decisions of captioners that make one apart from their text; for the
    others the caption decides, see `describes_change`. Where no tile is changed there are no rows for
    the changed ones. Java is started once for all rows.

    Raises as `caption_scores` and `change_scores` do.
    """
    decisions = {
        name: (predicted or {}).get(name, [describes_change(caption) for caption in sentences])
        for name, sentences in captions.items()
    }
    subsets: dict[Literal["all", "changed"], list[int]] = {"all": list(range(len(references)))}
    if any(changed):
        subsets["changed"] = [tile for tile, is_changed in enumerate(changed) if is_changed]
    for name, sentences in captions.items():
        if not len(sentences) == len(decisions[name]) == len(references) == len(changed):
            raise ValueError(
                f"{name}: {len(sentences)} captions and {len(decisions[name])} change decisions for "
                f"{len(references)} references and {len(changed)} change labels"
            )
    with CaptionScorer(protocol=protocol, vocabulary=vocabulary, meteor=meteor) as scorer:
        return [
            ScoreRow(
                captioner=name,
                tiles=subset,
                captions=scorer.score([sentences[tile] for tile in tiles], [references[tile] for tile in tiles]),
                change=change_scores([decisions[name][tile] for tile in tiles], [changed[tile] for tile in tiles]),
            )
            for subset, tiles in subsets.items()
            for name, sentences in captions.items()
        ]


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
