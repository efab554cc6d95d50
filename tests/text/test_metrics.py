from __future__ import annotations

import gzip
import json
import math
import shutil
from collections import Counter
from pathlib import Path

import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor as CocoMeteor
from pycocoevalcap.rouge.rouge import Rouge

from hisem.errors import DatasetError
from hisem.text.metrics import CaptionScorer, caption_scores
from hisem.text.scoring import score_table
from hisem.text.vocabulary import SPECIALS, UNCHANGED_SENTENCE, Vocabulary

REFERENCES = [
    ["a road is built in the forest", "a new road crosses the trees", "the trees make way for a road"],
    ["many houses appear beside the road", "some villas are built , with trees around", "houses are built"],
    [UNCHANGED_SENTENCE, "there is no difference", "the two scenes seem identical"],
    ["the bareland has become a parking lot", "a parking lot replaces the bareland", "a lot appears"],
]
CANDIDATES = ["a road is built in the trees", "some house is built beside roads", UNCHANGED_SENTENCE, ""]

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="METEOR needs Java")


def corpus_bleu(candidates: list[str], references: list[list[str]], order: int) -> float:
    """BLEU by its definition (Papineni et al. 2002), the closest reference's length for the penalty."""

    def grams(text: str, n: int) -> Counter[tuple[str, ...]]:
        words = text.split()
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    logarithm = 0.0
    for n in range(1, order + 1):
        matched = total = 0
        for candidate, sentences in zip(candidates, references, strict=True):
            said = grams(candidate, n)
            matched += sum(min(count, max(grams(s, n)[gram] for s in sentences)) for gram, count in said.items())
            total += sum(said.values())
        logarithm += math.log(matched / total) / order
    length = sum(len(candidate.split()) for candidate in candidates)
    closest = sum(
        min((abs(len(s.split()) - len(c.split())), len(s.split())) for s in sentences)[1]
        for c, sentences in zip(candidates, references, strict=True)
    )
    return math.exp(logarithm + min(0.0, 1 - closest / length))


def test_bleu_by_its_definition() -> None:
    scores = caption_scores(CANDIDATES, REFERENCES, meteor=False)
    for order, score in enumerate((scores.bleu_1, scores.bleu_2, scores.bleu_3, scores.bleu_4), start=1):
        # coco-caption keeps its divisions finite with 1e-9.
        assert score == pytest.approx(corpus_bleu(CANDIDATES, REFERENCES, order), abs=1e-8)


def test_equals_coco_caption_without_meteor() -> None:
    scores = caption_scores(CANDIDATES, REFERENCES, meteor=False)
    truth, said = dict(enumerate(REFERENCES)), {tile: [text] for tile, text in enumerate(CANDIDATES)}
    assert [scores.bleu_1, scores.bleu_2, scores.bleu_3, scores.bleu_4] == pytest.approx(
        Bleu(4).compute_score(truth, said, verbose=0)[0], abs=1e-12
    )
    assert scores.rouge_l == pytest.approx(Rouge().compute_score(truth, said)[0], abs=1e-12)
    assert scores.cider_d == pytest.approx(Cider().compute_score(truth, said)[0], abs=1e-12)
    assert scores.count == len(CANDIDATES)
    assert scores.meteor is None
    assert scores.s_m is None
    assert scores.notes == ("METEOR and S*m are unavailable: not asked for",)
    assert list(scores.values()) == ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d"]


def test_cider_is_cider_d() -> None:
    """Repeating words must not pay: CIDEr-D clips counts and punishes length, with sigma 6."""
    references = [["a house"], ["the road"]]
    once = caption_scores(["a house", "the road"], references, meteor=False)
    assert once.cider_d == pytest.approx(10 * 2 / 4)  # only 1- and 2-grams exist; both agree fully
    twice = caption_scores(["a house a house", "the road"], references, meteor=False)
    unigrams = 2 / (2 * math.sqrt(2) * math.sqrt(2))  # the clipped counts' cosine
    bigrams = 1 / math.sqrt(4 + 1)  # "a house" twice, "house a" once
    penalty = math.exp(-(2**2) / (2 * 6**2))  # coco-caption measures length in bigrams: 3 against 1
    assert twice.cider_d == pytest.approx((10 * (unigrams + bigrams) / 4 * penalty + 5) / 2)


@needs_java
def test_equals_coco_caption_with_meteor() -> None:
    candidates = [*CANDIDATES, "many\nhouses ||| appear"]
    references = [*REFERENCES, ["houses appear ||| a lot", "more buildings"]]
    clean = [*CANDIDATES, "many houses appear"], [*REFERENCES, ["houses appear a lot", "more buildings"]]
    coco = CocoMeteor()  # before ours, so that both load their tables at the same time
    with CaptionScorer() as scorer:
        scores = scorer.score(candidates, references)
        empty = scorer.score(["", ""], REFERENCES[:2])
        perfect = scorer.score([sentences[0] for sentences in REFERENCES], REFERENCES)
    expected = coco.compute_score(dict(enumerate(clean[1])), {tile: [text] for tile, text in enumerate(clean[0])})[0]
    coco.meteor_p.stdout.close()
    coco.meteor_p.stderr.close()
    assert scores.meteor == pytest.approx(expected, abs=1e-12)
    assert 0.1 < expected < 0.9
    assert scores.meteor is not None
    assert scores.s_m == pytest.approx((scores.bleu_4 + scores.meteor + scores.rouge_l + scores.cider_d) / 4)
    assert scores.notes == ()
    assert (empty.bleu_4, empty.meteor, empty.rouge_l, empty.cider_d) == pytest.approx((0, 0, 0, 0), abs=1e-12)
    assert perfect.meteor == pytest.approx(1)


def test_protocol_ids() -> None:
    vocabulary = Vocabulary((*SPECIALS, "a", "house", "appears", "road"))
    candidates, references = ["a barn appears", "a road"], [["a villa appears", "a house"], ["the road", "a path"]]
    scores = caption_scores(candidates, references, protocol="ids", vocabulary=vocabulary, meteor=False)
    as_ids = caption_scores(["4 1 6", "4 7"], [["4 1 6", "4 5"], ["1 7", "4 1"]], meteor=False)
    assert scores == as_ids
    assert scores.bleu_1 == pytest.approx(1)  # barn and villa are both unknown, so they agree
    assert caption_scores(candidates, references, meteor=False).bleu_1 < 0.9
    with pytest.raises(ValueError, match="needs a vocabulary"):
        caption_scores(candidates, references, protocol="ids")


@needs_java
def test_protocol_ids_on_levir_cc_is_coco_caption_on_id_strings(shared_data: Path) -> None:
    """Ids by a dictionary of this test's own, scored by coco-caption's classes directly."""
    content = gzip.decompress((shared_data / "levir_cc" / "LevirCCcaptions_all_10077.json.gz").read_bytes())
    images = json.loads(content)["images"]
    counts = Counter(
        word for image in images if image["split"] == "train" for each in image["sentences"] for word in each["tokens"]
    )
    ids = {"<NULL>": 0, "<UNK>": 1, "<START>": 2, "<END>": 3}
    for word in sorted(word for word, count in counts.items() if count >= 6):
        ids[word] = len(ids)
    assert len(ids) == 404  # as published
    test = [[each["tokens"] for each in image["sentences"]] for image in images if image["split"] == "test"][::8]
    # A caption is the tile's first reference, and now and then the next tile's; every fifth has a word of nobody's.
    said = [test[(tile + (tile % 3 == 0)) % len(test)][0] for tile in range(len(test))]
    said = [[*words[:2], "zeppelin", *words[2:]] if tile % 5 == 0 else words for tile, words in enumerate(said)]
    described = [sentences[1:] for sentences in test]

    def id_string(words: list[str]) -> str:
        return " ".join(str(ids[word]) if word in ids else "1" for word in words)

    truth = {tile: [id_string(words) for words in sentences] for tile, sentences in enumerate(described)}
    candidates = {tile: [id_string(words)] for tile, words in enumerate(said)}
    assert any("1" in text.split() for texts in truth.values() for text in texts)
    coco = CocoMeteor()
    (row,) = score_table(
        {"model": [" ".join(words) for words in said]},
        [[" ".join(words) for words in sentences] for sentences in described],
        [False] * len(test),  # one row: none of the changed tiles alone
        protocol="ids",
        vocabulary=Vocabulary(tuple(ids)),
    )
    meteor = coco.compute_score(truth, candidates)[0]
    coco.meteor_p.stdout.close()
    coco.meteor_p.stderr.close()
    found = row.captions
    bleu = Bleu(4).compute_score(truth, candidates, verbose=0)[0]
    assert [found.bleu_1, found.bleu_2, found.bleu_3, found.bleu_4] == pytest.approx(bleu, abs=1e-12)
    assert found.rouge_l == pytest.approx(Rouge().compute_score(truth, candidates)[0], abs=1e-12)
    assert found.cider_d == pytest.approx(Cider().compute_score(truth, candidates)[0], abs=1e-12)
    assert found.meteor == pytest.approx(meteor, abs=1e-12)
    assert 0.1 < meteor < 0.9


def test_both_sides_are_tokenised() -> None:
    assert caption_scores(["A house, a road."] * 2, [["a house , a road"], ["x"]], meteor=False) == caption_scores(
        ["a house , a road"] * 2, [["A house, a road?"], ["X."]], meteor=False
    )


def test_notes_on_what_needs_care() -> None:
    scores = caption_scores(["a house"], [["a house", " . "]], meteor=False)
    assert scores.cider_d == 0
    assert "CIDEr-D is 0 for a single tile" in scores.notes[1]
    assert scores.notes[2] == "1 reference(s) without a word were left out"


def test_refuses_what_cannot_be_scored() -> None:
    with pytest.raises(DatasetError, match="no tile to score"):
        caption_scores([], [], meteor=False)
    with pytest.raises(DatasetError, match="tile 1 has no reference"):
        caption_scores(["a", "a"], [["a"], ["."]], meteor=False)
    with pytest.raises(ValueError, match="1 candidates for 2 tiles"):
        caption_scores(["a"], [["a"], ["b"]], meteor=False)
