from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from hisem.errors import BundleError, ConfigError
from hisem.text.vocabulary import END, SPECIALS, START, UNCHANGED_SENTENCE, UNK, Vocabulary, means_unchanged, tokenize

WORDS = (*SPECIALS, ",", "a", "house", "road")
VALID = {word: number for number, word in enumerate(WORDS)}


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("Two Houses appear.", ["two", "houses", "appear"]),
        ("a road,a house ; trees", ["a", "road", ",", "a", "house", ";", "trees"]),
        (" is it\nthe\tsame?? ", ["is", "it", "the", "same"]),
        ("u-shaped road's end", ["u-shaped", "road's", "end"]),
        (" . ?", []),
        ("", []),
    ],
)
def test_tokenize(sentence: str, words: list[str]) -> None:
    assert tokenize(sentence) == words
    assert tokenize(" ".join(words)) == words


@pytest.mark.parametrize(("splits", "entries"), [({"train"}, 404), ({"train", "val", "test"}, 468)])
def test_published_vocabulary_size(shared_data: Path, splits: set[str], entries: int) -> None:
    images = json.loads(gzip.decompress((shared_data / "levir_cc/LevirCCcaptions_all_10077.json.gz").read_bytes()))
    sentences = [
        sentence["raw"] for image in images["images"] if image["split"] in splits for sentence in image["sentences"]
    ]
    vocabulary = Vocabulary.build(sentences, min_count=6)
    assert len(vocabulary) == entries
    assert list(vocabulary.words[4:]) == sorted(vocabulary.words[4:])
    ids = vocabulary.encode(UNCHANGED_SENTENCE, 41)
    assert UNK not in ids
    assert vocabulary.decode(ids) == UNCHANGED_SENTENCE


def test_build_counts_words_over_all_sentences() -> None:
    assert Vocabulary.build(["a house, a road", "A road.", "house"], min_count=2).words == (
        *SPECIALS,
        *("a", "house", "road"),
    )


def test_build_leaves_out_what_cannot_be_an_entry() -> None:
    vocabulary = Vocabulary.build(["a " + "x" * 129 + " zero\u200bwidth \x1b[31m"], min_count=1)
    assert vocabulary.words == (*SPECIALS, "a")


@pytest.mark.parametrize(("sentences", "min_count", "message"), [(["a"], 0, "min_count is 0"), (["a"], 2, "lower")])
def test_build_refuses(sentences: list[str], min_count: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Vocabulary.build(sentences, min_count)


def test_extended_keeps_old_ids_and_adds_frequent_words_in_alphabetical_order() -> None:
    sentences = ["zebra barn, a house", "a barn; zebra", "rare house", "a tree tree"]
    known = Vocabulary((*SPECIALS, "road", "house", "a"))
    assert known.extended(sentences, min_count=2).words == (*known.words, "barn", "tree", "zebra")
    assert known.extended(sentences, min_count=1).words == (
        *known.words,
        *sorted([",", ";", "barn", "rare", "tree", "zebra"]),
    )
    assert known.extended([], min_count=1) == known
    with pytest.raises(ConfigError, match="min_count is 0"):
        known.extended(sentences, min_count=0)


def test_extending_takes_the_words_that_building_takes() -> None:
    sentences = ["b " + "x" * 129 + " zero\u200bwidth \x1b[31m <UNK>", "b c"]
    built, extended = (make(sentences, min_count=1) for make in (Vocabulary.build, Vocabulary(WORDS).extended))
    assert set(extended.words) == {*built.words, *WORDS}


def test_encode_and_decode() -> None:
    vocabulary = Vocabulary(WORDS)
    assert vocabulary.encode("A house, a barn", 10) == [START, 5, 6, 4, 5, UNK, END]
    assert vocabulary.encode("a house, a barn", 2) == [START, 5, 6, END]
    assert vocabulary.encode("", 2) == [START, END]
    assert vocabulary.decode([START, 5, UNK, 6, END, 0, 0]) == "a house"
    kept = vocabulary.decode([START, 5, UNK, 6, END, 0, 0], keep_unknown=True)
    assert kept == "a <UNK> house"
    assert vocabulary.encode(kept, 10) == [START, 5, UNK, 6, END]


@pytest.mark.parametrize("number", [-1, len(WORDS)])
def test_decode_refuses_ids_outside(number: int) -> None:
    with pytest.raises(ValueError, match="outside 0 to 7"):
        Vocabulary(WORDS).decode([number])


def test_survives_json_in_any_order() -> None:
    vocabulary = Vocabulary(WORDS)
    text = json.dumps(dict(reversed(vocabulary.to_dict().items())))
    assert Vocabulary.from_dict(json.loads(text)) == vocabulary


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([*WORDS], "mapping"),
        ({}, "first entries"),
        ({"a": 0}, "first entries"),
        (VALID | {"<UNK>": 2, "<START>": 1}, "first entries"),
        (VALID | {"road": 8}, "needs? the ids"),
        (VALID | {"road": -1}, "needs? the ids"),
        (VALID | {"road": 6}, "share id 6"),
        (VALID | {"road": 7.0}, "has id 7.0"),
        (VALID | {"road": True}, "has id True"),
        (VALID | {"road": None}, "has id None"),
        (VALID | {"road": "7" * 9999}, "has id .{,60}; 8 words"),
        (VALID | {"x" * 129: 8}, "entry 8"),
        (VALID | {"": 8}, "entry 8"),
        (VALID | {"two words": 8}, "entry 8"),
        (VALID | {"\x1b[31mred": 8}, "entry 8 is '.x1b"),
        (VALID | {8: 8}, "strings"),
    ],
)
def test_from_dict_refuses(ids: Any, message: str) -> None:
    with pytest.raises(BundleError, match=message) as raised:
        Vocabulary.from_dict(ids)
    assert len(str(raised.value)) < 300


def test_constructor_refuses_doubles() -> None:
    with pytest.raises(BundleError, match="'a' occurs more than once"):
        Vocabulary((*WORDS, "a"))


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        (UNCHANGED_SENTENCE, True),
        ("No change has occurred.", True),
        ("almost nothing has changed", True),
        ("the two scenes seem identical", True),
        ("There are no differences", True),
        ("two houses appear", False),
        ("the color of a roof has changed", False),
        ("no house is left", False),
        ("", False),
    ],
)
def test_sentences_that_mean_unchanged(sentence: str, expected: bool) -> None:
    assert means_unchanged(tokenize(sentence)) == expected


def test_real_labels_and_sentences_agree(shared_data: Path) -> None:
    images = json.loads(gzip.decompress((shared_data / "levir_cc/LevirCCcaptions_all_10077.json.gz").read_bytes()))
    for image in images["images"]:
        meant = [means_unchanged(tokenize(sentence["raw"])) for sentence in image["sentences"]]
        assert not all(meant) if image["changeflag"] else any(meant)
