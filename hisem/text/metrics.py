"""Caption metrics of the published tables: BLEU, METEOR, ROUGE-L, CIDEr-D and S*m (reference section 7).

The metrics themselves are coco-caption's, from `pycocoevalcap`, so that numbers compare with papers.
Its Penn Treebank tokeniser is not used: sentences go through `hisem.text.vocabulary.tokenize`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Literal

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from hisem.errors import DatasetError
from hisem.text.meteor import Meteor, MeteorError
from hisem.text.vocabulary import Vocabulary, tokenize

Protocol = Literal["words", "ids"]
"""What is compared: the words, or their ids as the published tables do (METEOR then sees no stems and
no paraphrases, and all words outside the vocabulary are one and the same, id 1)."""

_WITHOUT_METEOR = "METEOR and S*m are unavailable: "


@dataclass(frozen=True)
class CaptionScores:
    """Corpus scores as fractions: all in [0, 1], but CIDEr-D in [0, 10] and S*m in [0, 3.25]."""

    bleu_1: float
    bleu_2: float
    bleu_3: float
    bleu_4: float
    meteor: float | None
    """None where `notes` says why."""
    rouge_l: float
    cider_d: float
    """coco-caption's CIDEr, which is CIDEr-D: clipped counts, length penalty of sigma 6, times 10."""
    s_m: float | None
    """S*m: the mean of BLEU-4, METEOR, ROUGE-L and CIDEr-D; None without METEOR."""
    count: int
    """Tiles scored."""
    notes: tuple[str, ...] = ()
    """In words, what is unavailable or must be read with care."""

    def values(self) -> dict[str, float]:
        """`{metric: score}` of what is available, in the order of the tables."""
        scores = {field.name: getattr(self, field.name) for field in fields(self)[:-2]}
        return {name: score for name, score in scores.items() if score is not None}


class CaptionScorer:
    """Scores several sets of captions with one METEOR process; a context manager, see `Meteor`.

    Without a working Java everything but METEOR and S*m is still scored, and the notes tell why.
    """

    def __init__(
        self, *, protocol: Protocol = "words", vocabulary: Vocabulary | None = None, meteor: bool = True
    ) -> None:
        """`vocabulary` is needed by protocol `ids` alone; `ValueError` where it is missing."""
        if protocol == "ids" and vocabulary is None:
            raise ValueError("protocol 'ids' needs a vocabulary")
        self._vocabulary = vocabulary if protocol == "ids" else None
        self._meteor = Meteor() if meteor else None
        self.without_meteor = "" if meteor else "not asked for"
        """Why there is no METEOR; empty as long as there is."""

    def __enter__(self) -> CaptionScorer:
        if self._meteor is not None:
            try:
                self._meteor.__enter__()  # Java warms up while the other metrics are computed
            except MeteorError as error:
                self._give_up(error)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._meteor is not None:
            self._meteor.close()

    def score(self, candidates: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
        """Scores of one candidate a tile against all of its references; see `caption_scores`."""
        if len(candidates) != len(references):
            raise ValueError(f"{len(candidates)} candidates for {len(references)} tiles with references")
        if not candidates:
            raise DatasetError("captions: there is no tile to score; is the split empty?")
        spoken = [compared(candidate, self._vocabulary) for candidate in candidates]
        described = [compared_references(sentences, self._vocabulary) for sentences in references]
        for position, texts in enumerate(described):
            if not texts:
                raise DatasetError(f"captions: tile {position} has no reference with words in it; leave the tile out.")

        # coco-caption wants {tile: [sentence, ...]} on both sides.
        truth, said = dict(enumerate(described)), {tile: [text] for tile, text in enumerate(spoken)}
        bleu = [float(score) for score in Bleu(4).compute_score(truth, said, verbose=0)[0]]
        rouge_l = float(Rouge().compute_score(truth, said)[0])
        cider_d = float(Cider().compute_score(truth, said)[0])
        meteor = self._meteor_score(spoken, described)
        s_m = None if meteor is None else (bleu[3] + meteor + rouge_l + cider_d) / 4

        notes = [f"{_WITHOUT_METEOR}{self.without_meteor}"] if meteor is None else []
        if len(spoken) == 1:
            notes.append("CIDEr-D is 0 for a single tile: it weighs words by how few of the tiles have them")
        blank = sum(map(len, references)) - sum(map(len, described))
        if blank:
            notes.append(f"{blank} reference(s) without a word were left out")
        return CaptionScores(
            bleu_1=bleu[0],
            bleu_2=bleu[1],
            bleu_3=bleu[2],
            bleu_4=bleu[3],
            meteor=meteor,
            rouge_l=rouge_l,
            cider_d=cider_d,
            s_m=s_m,
            count=len(spoken),
            notes=tuple(notes),
        )

    def _meteor_score(self, candidates: list[str], references: list[list[str]]) -> float | None:
        if self._meteor is None:
            return None
        try:
            return self._meteor.score(candidates, references)
        except MeteorError as error:
            self._give_up(error)
            return None

    def _give_up(self, error: MeteorError) -> None:
        """Go on without METEOR: what failed once would fail, or time out, again."""
        self._meteor, self.without_meteor = None, str(error)


def compared(sentence: str, vocabulary: Vocabulary | None) -> str:
    """What the metrics see of a sentence: its words or, with a vocabulary, their ids, joined by single spaces."""
    words = tokenize(sentence)
    if vocabulary is None:
        return " ".join(words)
    return " ".join(map(str, vocabulary.encode(sentence, len(words))[1:-1]))  # START, END


def compared_references(sentences: Sequence[str], vocabulary: Vocabulary | None) -> list[str]:
    """A tile's references as `compared`, without those that have no word."""
    return [text for sentence in sentences if (text := compared(sentence, vocabulary))]


def caption_scores(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    protocol: Protocol = "words",
    vocabulary: Vocabulary | None = None,
    meteor: bool = True,
) -> CaptionScores:
    """Score one candidate a tile against all references of that tile.

    A candidate may be empty and then matches nothing. CIDEr-D takes its document frequencies from
    `references`, so the scores of a subset are not comparable with those of the whole. With `meteor`,
    Java is started and ended within the call; its absence costs METEOR and S*m, and a note says so.

    Raises `ValueError` where the lengths differ or protocol `ids` lacks its vocabulary, and
    `DatasetError` where there is nothing to score or a tile has no reference.
    """
    with CaptionScorer(protocol=protocol, vocabulary=vocabulary, meteor=meteor) as scorer:
        return scorer.score(candidates, references)
