"""The references: five differently worded sentences a tile, and which kinds of change a sentence names."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from hisem.archive.synthetic.truth import Kind, Truth

REFERENCES_PER_TILE = 5
SAME_SCENE = "the scene is the same as before"
"""One reference of every unchanged tile."""

_UNCHANGED = (
    "the scene has not changed",
    "nothing has changed in the scene",
    "there is no change in the scene",
    "the two images show the same scene",
    "the scene looks the same as before",
    "there is nothing new in the scene",
)


def _built(thing: str) -> tuple[str, ...]:
    """Sentences for something single that people build."""
    return (
        f"a {thing} is built {{place}}",
        f"a new {thing} is built {{place}}",
        f"a {thing} appears {{place}}",
        f"a {thing} has been built {{place}}",
        f"a new {thing} has been built {{place}}",
        f"a {thing} is built on the empty land {{place}}",
        f"a new {thing} is built on the empty land",
        f"a {thing} shows up {{place}}",
        f"there is a newly built {thing} {{place}}",
        f"{{place}} a {thing} is constructed",
    )


_CHANGED: dict[Kind, tuple[str, ...]] = {
    Kind.HOUSE_BUILT: (
        "{houses} {are} built {place}",
        "{new_houses} {are} built {place}",
        "{houses} appear{s} {place}",
        "{houses} {have} been built {place}",
        "{new_houses} {have} been built {place}",
        "{houses} {are} built on the empty land {place}",
        "{some_new_houses} {are} built on the empty land",
        "{houses} show{s} up {place}",
        "there {are} {newly_built_houses} {place}",
        "{place} {houses} {are} constructed",
    ),
    Kind.HOUSE_DEMOLISHED: (
        "{houses} {are} demolished {place}",
        "{houses} {have} been demolished {place}",
        "{old_houses} {are} demolished {place}",
        "{houses} disappear{s} {place}",
        "{houses} {are} torn down {place}",
        "{old_houses} {have} been demolished {place}",
        "{some_old_houses} {have} been torn down",
        "{houses} {have} disappeared {place}",
        "{old_houses} {are} removed {place}",
        "{place} {houses} {have} been removed",
    ),
    Kind.BUILDING_BUILT: _built("large building"),
    Kind.ROAD_BUILT: _built("road"),
    Kind.ROAD_WIDENED: (
        "the road is widened",
        "the road has been widened",
        "the road becomes wider",
        "the old road is widened",
        "the old road has been widened",
        "the road is now wider than before",
        "the old road becomes wider",
        "the existing road is widened",
        "the road has become wider",
        "the existing road is now wider than before",
    ),
    Kind.PARKING_BUILT: _built("parking lot"),
    Kind.TREES_CUT: (
        "some trees are cut down {place}",
        "some trees have been cut down {place}",
        "the trees are cut down {place}",
        "some trees are removed {place}",
        "some trees disappear {place}",
        "the trees have been cut down {place}",
        "some trees are removed from the land",
        "the trees have disappeared {place}",
        "the trees have been removed {place}",
        "{place} the trees are gone",
    ),
    Kind.TREES_GROWN: (
        "some trees are planted {place}",
        "some new trees are planted {place}",
        "some trees have been planted {place}",
        "some trees grow {place}",
        "some new trees appear {place}",
        "some new trees have been planted {place}",
        "some trees are planted on the empty land",
        "some trees show up {place}",
        "there are newly planted trees {place}",
        "{place} some trees have grown",
    ),
    Kind.POND_APPEARED: (
        "a pond appears {place}",
        "a new pond appears {place}",
        "a pond has appeared {place}",
        "a pond is dug {place}",
        "a new pond has appeared {place}",
        "a pond appears on the empty land {place}",
        "a new pond appears on the empty land",
        "a pond shows up {place}",
        "there is a newly dug pond {place}",
        "{place} a new pond is dug",
    ),
    Kind.POND_DRIED: (
        "the pond dries up {place}",
        "the pond has dried up {place}",
        "a pond dries up {place}",
        "the pond disappears {place}",
        "a pond has dried up {place}",
        "the water of the pond dries up {place}",
        "the water of the pond has dried up",
        "the pond is now dry {place}",
        "the water disappears from the pond {place}",
        "{place} the pond is gone",
    ),
    Kind.FIELD_CLEARED: (
        "a green field becomes bare land {place}",
        "a field becomes bare land {place}",
        "the green field becomes bare land {place}",
        "a green field turns into bare land {place}",
        "a field has become bare land {place}",
        "a green field has become bare land {place}",
        "the green field turns into bare land",
        "the field is cleared {place}",
        "the green field has turned into bare land {place}",
        "{place} a field turns into bare land",
    ),
    Kind.GRASS_GROWN: (
        "the bare land is covered with grass {place}",
        "the bare land is now covered with grass {place}",
        "the bare land becomes grass {place}",
        "grass grows on the bare land {place}",
        "the bare land has been covered with grass {place}",
        "grass has grown on the bare land {place}",
        "the bare land is now covered with green grass",
        "green grass appears on the bare land {place}",
        "the bare land has turned into grass {place}",
        "{place} grass grows on the bare land",
    ),
}
_NUMBERS = ("a", "two", "three")
"""Houses come one to three at a time; of other objects sentences tell no number."""


def references(truths: Sequence[Truth], rng: np.random.Generator) -> list[str]:
    """Five different sentences, lower case without punctuation; each tells all of `truths` in order."""
    if not truths:
        others = rng.permutation(len(_UNCHANGED))[: REFERENCES_PER_TILE - 1]
        return [SAME_SCENE, *(_UNCHANGED[index] for index in others)]
    told = [[_CHANGED[truth.kind][index].format_map(_words(truth)) for index in
             rng.permutation(len(_CHANGED[truth.kind]))[:REFERENCES_PER_TILE]] for truth in truths]  # fmt: skip
    return [_joined(clauses) for clauses in zip(*told, strict=True)]


def _joined(clauses: Sequence[str]) -> str:
    first, *others = clauses
    links = ["while", "and"][-len(others) :] if others else []
    return " ".join([first, *(word for link, clause in zip(links, others, strict=True) for word in (link, clause))])


def _words(truth: Truth) -> dict[str, str]:
    """What fills the braces of a sentence about `truth`."""
    many = truth.count > 1
    number, ending = _NUMBERS[min(truth.count, len(_NUMBERS)) - 1], "houses" if many else "house"
    some = "some" if many else "a"
    old = ("an old" if not many else f"{number} old", "an old" if not many else "some old")
    return {
        "place": truth.place.value,
        "houses": f"{number} {ending}",
        "new_houses": f"{number} new {ending}",
        "newly_built_houses": f"{number} newly built {ending}",
        "old_houses": f"{old[0]} {ending}",
        "some_new_houses": f"{some} new {ending}",
        "some_old_houses": f"{old[1]} {ending}",
        "are": "are" if many else "is",
        "have": "have" if many else "has",
        "s": "" if many else "s",
    }


_NOUNS = {
    "house": "house", "houses": "house", "villa": "house", "villas": "house",
    "building": "building", "buildings": "building",
    "road": "road", "roads": "road",
    "parking": "parking",
    "tree": "trees", "trees": "trees",
    "pond": "pond", "water": "pond",
    "field": "field", "crops": "field",
    "land": "land", "bareland": "land",
    "grass": "grass",
}  # fmt: skip
_VERBS = {
    "gain": "built constructed appear appears appeared show shows planted grow grows grown dug",
    "loss": "demolished torn cut removed disappear disappears disappeared dries dry dried gone cleared",
    "wider": "widened wider",
    "turn": "becomes become became turns turned covered",
}
_VERB_OF = {word: verb for verb, words in _VERBS.items() for word in words.split()}
_MEANING = {
    ("house", "gain"): Kind.HOUSE_BUILT,
    ("house", "loss"): Kind.HOUSE_DEMOLISHED,
    ("building", "gain"): Kind.BUILDING_BUILT,
    ("road", "gain"): Kind.ROAD_BUILT,
    ("road", "wider"): Kind.ROAD_WIDENED,
    ("parking", "gain"): Kind.PARKING_BUILT,
    ("trees", "loss"): Kind.TREES_CUT,
    ("trees", "gain"): Kind.TREES_GROWN,
    ("pond", "gain"): Kind.POND_APPEARED,
    ("pond", "loss"): Kind.POND_DRIED,
    ("field", "turn"): Kind.FIELD_CLEARED,
    ("field", "loss"): Kind.FIELD_CLEARED,
    ("land", "turn"): Kind.GRASS_GROWN,
    ("grass", "gain"): Kind.GRASS_GROWN,
}
_ADVERBIAL = re.compile(
    r"\b(?:along|beside|near|by|on|from|in|of|at|across) (?:the|a) (?:(?:bare|empty|old|new|green) )*"
    rf"(?:{'|'.join(_NOUNS)})\b"
)


def named_kinds(caption: str) -> set[str]:
    """The kinds of change (values of `Kind`) that a sentence names: who (the first noun) does what (verbs).

    Nouns in phrases of place and denials do not count. In "a house and a road are built" the verb counts for both.
    """
    named: set[str] = set()
    waiting: list[str] = []
    for clause in re.split(r"\band\b|\bwhile\b|[,.;]", caption.lower()):
        words = _ADVERBIAL.sub(" ", clause).split()
        waiting += [_NOUNS[word] for word in words if word in _NOUNS][:1]
        if "no" in words or "not" in words:
            waiting = []
            continue
        verbs = {_VERB_OF[word] for word in words if word in _VERB_OF}
        if verbs:
            named |= {_MEANING[noun, verb].value for noun in waiting for verb in verbs if (noun, verb) in _MEANING}
            waiting = []
    return named
