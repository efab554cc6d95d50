"""A displacement between the two dates of a tile; `coregistration` estimates it.

Apart from it, since SciPy's signal processing takes a second to import, and most processes measure no shift.
"""

from __future__ import annotations

from dataclasses import dataclass

RELIABLE = 0.8
"""From this confidence on the two estimates are within 0.2 pixels of each other: the unchanged tiles of
the synthetic archive that reach it are right to 0.25 pixels."""


@dataclass(frozen=True)
class Shift:
    """By how much the after image's content is displaced relative to the before image's.

    `x` (to the right) and `y` (downwards) are in pixels: what lies in column c and row r before lies in
    column c + x and row r + y after. Both are None where the shift is unknown.

    `confidence` is in [0, 1]: 1 less the distance in pixels between the two estimates; reduced where
    their correlation is less than twice that of unrelated images. It is 0 exactly where the shift is unknown.
    """

    x: float | None
    y: float | None
    confidence: float


UNKNOWN = Shift(None, None, 0.0)
