"""What is true of a change: its kind, where in the tile it lies, and how many objects it concerns."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """The kinds of change, in the order in which a sentence tells several of them."""

    HOUSE_BUILT = "house built"
    HOUSE_DEMOLISHED = "house demolished"
    BUILDING_BUILT = "building built"
    ROAD_BUILT = "road built"
    ROAD_WIDENED = "road widened"
    PARKING_BUILT = "parking built"
    TREES_CUT = "trees cut"
    TREES_GROWN = "trees grown"
    POND_APPEARED = "pond appeared"
    POND_DRIED = "pond dried"
    FIELD_CLEARED = "field cleared"
    GRASS_GROWN = "grass grown"


class Place(StrEnum):
    """Where in its tile a change lies, in the words of the references. North is up."""

    UPPER_LEFT = "in the upper left"
    UPPER_RIGHT = "in the upper right"
    LOWER_LEFT = "in the lower left"
    LOWER_RIGHT = "in the lower right"
    TOP = "at the top"
    BOTTOM = "at the bottom"
    LEFT = "on the left"
    RIGHT = "on the right"
    CENTER = "in the center"
    ROADSIDE = "along the road"


ANCHORS: dict[Place, tuple[float, float]] = {
    Place.UPPER_LEFT: (0.0, 0.0),
    Place.TOP: (0.5, 0.0),
    Place.UPPER_RIGHT: (1.0, 0.0),
    Place.LEFT: (0.0, 0.5),
    Place.CENTER: (0.5, 0.5),
    Place.RIGHT: (1.0, 0.5),
    Place.LOWER_LEFT: (0.0, 1.0),
    Place.BOTTOM: (0.5, 1.0),
    Place.LOWER_RIGHT: (1.0, 1.0),
}
"""Where a change of that place leans, as fractions (x right, y down) of the room it has in its tile."""


@dataclass(frozen=True)
class Truth:
    """One change in the terms of the references table; `count` is the number of objects, at least 1."""

    kind: Kind
    place: Place
    count: int = 1
