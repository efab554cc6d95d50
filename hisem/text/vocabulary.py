"""Sentences to word ids and back (reference section 6).

The vocabulary is the closed list of words that the caption decoder can say. It travels inside the
bundle as plain JSON, which may come from strangers: `Vocabulary.from_dict` checks all of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hisem.errors import BundleError, ConfigError

NULL, UNK, START, END = range(4)
"""Ids of padding, unknown word, start of sentence, end of sentence."""

SPECIALS = ("<NULL>", "<UNK>", "<START>", "<END>")
"""The four entries every vocabulary begins with; a special's id is its place here."""

UNCHANGED_SENTENCE = "the scene is the same as before"
"""The benchmarks' sentence for a pair without change; a pair that has it as a reference is unchanged."""

EQUAL_WORDS = frozenset({"same", "identical", "unchanged", "nothing"})
NONE_WORDS = frozenset({"no", "not", "none", "without", "hardly", "almost", "barely", "never"})
CHANGE_WORDS = frozenset({"change", "changes", "changed", "difference", "differences", "differ", "different"})
"""Words by which `means_unchanged` recognizes sentences about pairs without change."""

MAX_WORD_LENGTH = 128
"""Longest word, in characters, that a vocabulary takes."""

_PUNCTUATION = str.maketrans({",": " , ", ";": " ; ", ".": None, "?": None})


def means_unchanged(words: Sequence[str]) -> bool:
    """True where a sentence, as `tokenize` gives it, states in some wording that nothing changed."""
    found = set(words)
    return bool(found & EQUAL_WORDS) or bool(found & NONE_WORDS and found & CHANGE_WORDS)


def tokenize(sentence: str) -> list[str]:
    """The words of a sentence, lower case: `,` and `;` are words, `.` and `?` are dropped (section 6).

    Joining the result with spaces and tokenising again changes nothing.
    """
    return sentence.lower().translate(_PUNCTUATION).split()


@dataclass(frozen=True)
class Vocabulary:
    """An immutable list of words whose places are their ids; `SPECIALS` come first."""

    words: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.words[: len(SPECIALS)] != SPECIALS:
            raise BundleError(
                f"vocabulary: the first entries must be {', '.join(SPECIALS)}, "
                f"found {', '.join(map(ascii, self.words[: len(SPECIALS)])) or 'none'}."
            )
        if len(set(self.words)) != len(self.words):
            word = next(word for word, count in Counter(self.words).items() if count > 1)
            raise BundleError(f"vocabulary: {word!a} occurs more than once; words must be unique.")
        for position, word in enumerate(self.words):
            if not _is_word(word):
                raise BundleError(
                    f"vocabulary: entry {position} is {word[:40]!a}; a word has 1 to {MAX_WORD_LENGTH} "
                    "printable characters and no space."
                )

    @classmethod
    def build(cls, sentences: Iterable[str], min_count: int) -> Vocabulary:
        """All words seen at least `min_count` times (>= 1) in `sentences`, in alphabetical order.

        Give the references as people wrote them, before those of unchanged pairs are replaced by
        `UNCHANGED_SENTENCE`: with `min_count` 6 that gives the published 468 entries for the three
        splits of LEVIR-CC, and 404 for its training split. What cannot be an entry (longer than
        `MAX_WORD_LENGTH`, or with unprintable characters) stays an unknown word.

        Raises `ConfigError` for `min_count` below 1 and where no word is frequent enough.
        """
        vocabulary = cls(SPECIALS).extended(sentences, min_count)
        if len(vocabulary) == len(SPECIALS):
            raise ConfigError(
                f"vocabulary: no word occurs min_count = {min_count} times; lower min_count or give more references."
            )
        return vocabulary

    def extended(self, sentences: Iterable[str], min_count: int) -> Vocabulary:
        """These words with their ids, then in alphabetical order those that `build` would take and are new.

        Raises `ConfigError` for `min_count` below 1.
        """
        if min_count < 1:
            raise ConfigError(f"min_count is {min_count}; it must be at least 1.")
        counts = Counter(word for sentence in sentences for word in tokenize(sentence))
        frequent = sorted(word for word, count in counts.items() if count >= min_count and _is_word(word))
        return Vocabulary(self.words + tuple(word for word in frequent if word not in self._ids))

    @classmethod
    def from_dict(cls, ids: Mapping[str, int]) -> Vocabulary:
        """The vocabulary of a `{word: id}` mapping, such as `to_dict` returns or a JSON file holds.

        Raises `BundleError` unless words are distinct printable strings, ids are exactly 0 to n-1, and
        the specials have their ids.
        """
        if not isinstance(ids, Mapping):
            raise BundleError(f"vocabulary: a mapping of word to id is expected, found {type(ids).__name__}.")
        words: list[str | None] = [None] * len(ids)
        for word, number in ids.items():
            if not isinstance(word, str):
                raise BundleError(f"vocabulary: words are strings, found {type(word).__name__} for id {number!a}.")
            if type(number) is not int or not 0 <= number < len(words):  # a bool is an int to isinstance
                raise BundleError(
                    f"vocabulary: {word[:40]!a} has id {_brief(number)}; {len(words)} words need the ids "
                    f"0 to {len(words) - 1}."
                )
            if words[number] is not None:
                raise BundleError(f"vocabulary: {words[number]!a} and {word[:40]!a} share id {number}.")
            words[number] = word
        return cls(tuple(word for word in words if word is not None))

    def to_dict(self) -> dict[str, int]:
        """`{word: id}`, in the order of the ids."""
        return {word: number for number, word in enumerate(self.words)}

    def encode(self, sentence: str, max_length: int) -> list[int]:
        """`START`, the ids of the first `max_length` words at most, `END`; an unknown word becomes `UNK`."""
        words = tokenize(sentence)[:max_length]
        return [START, *(self._ids.get(word, UNK) for word in words), END]

    def decode(self, ids: Iterable[int], *, keep_unknown: bool = False) -> str:
        """The sentence of `ids` without the specials.

        With `keep_unknown`, `<UNK>` stays in the text: protocol `ids` (reference section 7) scores it.

        Raises `ValueError` for an id outside 0 to n-1.
        """
        spoken = []
        for number in ids:
            if not 0 <= number < len(self.words):  # a negative index would quietly count from the end
                raise ValueError(f"word id {number} is outside 0 to {len(self.words) - 1}")
            if number >= len(SPECIALS) or (keep_unknown and number == UNK):
                spoken.append(self.words[number])
        return " ".join(spoken)

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return self.to_dict()


def _is_word(text: str) -> bool:
    """Whether `text` may be an entry: control characters would reach terminals and pages."""
    return 0 < len(text) <= MAX_WORD_LENGTH and text.isprintable() and " " not in text


def _brief(value: Any) -> str:
    """`value` for a message, whatever a stranger's JSON put there."""
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
