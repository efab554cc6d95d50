"""Ranges of numeric settings, declared with their types: `Annotated[int, Range(1, 8192)]`.

A class with such fields calls `require_ranges` in `__post_init__`, so that no flag, file or program gets around them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from hisem.errors import ConfigError


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included unless `above` or `below` leaves one out; NaN is in none.

    Of tuples, lists and dictionaries it holds for each number.
    """

    low: float
    high: float
    above: bool = False
    """True where `low` itself is too low."""
    below: bool = False
    """True where `high` itself is too high."""

    def __contains__(self, value: float) -> bool:
        is_above = self.low < value if self.above else self.low <= value
        is_below = value < self.high if self.below else value <= self.high
        return is_above and is_below and not math.isnan(value)

    def __str__(self) -> str:
        low = f"above {self.low:.10g}" if self.above else f"from {self.low:.10g}"
        return f"{low} to {'below ' if self.below else ''}{self.high:.10g}"


class RangeError(ConfigError):
    """A number outside its range. `key` is the setting's dotted name, as files have it."""

    def __init__(self, key: str, value: object, allowed: Range) -> None:
        super().__init__(f"{key} is {_shown(value)}: a value {allowed} is needed.")
        self.key = key
        self.value = value
        self.allowed = allowed

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.key, self.value, self.allowed)

    def as_flag(self) -> ConfigError:
        """The same error with the name of the flag."""
        return ConfigError(f"--{self.key.replace('_', '-')}{str(self).removeprefix(self.key)}")


Fraction = Annotated[float, Range(0, 1)]
Dropout = Annotated[float, Range(0, 1, below=True)]
Seed = Annotated[int, Range(0, 2**63 - 1)]
Processes = Annotated[int, Range(1, 10_000)]
Cpus = Annotated[int, Range(1, 1024)]
Beam = Annotated[int, Range(1, 64)]
Epochs = Annotated[int, Range(1, 100_000)]
Layers = Annotated[int, Range(1, 64)]
Heads = Annotated[int, Range(1, 256)]
Width = Annotated[int, Range(1, 65_536)]
"""Hidden size of a layer."""
NumExperts = Annotated[int, Range(1, 1024)]
Days = Annotated[float, Range(0, 100_000)]
Overlap = Annotated[float, Range(0, 1, above=True)]
"""Fraction of an area, not none of it."""
Percent = Annotated[float, Range(0, 100)]


def require_ranges(config: Any, prefix: str = "") -> None:
    """Raise `RangeError` for a number in a field of the dataclass `config` that lies outside the field's range.

    `prefix` is what stands before the field's name in files and flags, such as `training.`.
    """
    for name, allowed in ranges_of(type(config)).items():  # type: ignore[arg-type] # a class is hashable
        for key, value in _numbers(f"{prefix}{name}", getattr(config, name)):
            if value not in allowed:
                raise RangeError(key, value, allowed)


@cache
def ranges_of(cls: type) -> Mapping[str, Range]:
    """The ranges that a class declares, by field."""
    found = {}
    for name, hint in get_type_hints(cls, include_extras=True).items():
        for one in (hint, *get_args(hint)):  # `Annotated[int, ...] | None` holds it one level down
            for extra in get_args(one)[1:] if get_origin(one) is Annotated else ():
                if isinstance(extra, Range):
                    found[name] = extra
    return found


def _numbers(key: str, value: object) -> Iterator[tuple[str, float]]:
    """Each number in a value with its dotted name."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _numbers(f"{key}.{name}", inner)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for inner in value:
            yield from _numbers(key, inner)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield key, value


def _shown(value: object) -> str:
    """A value as text; a whole number of a hundred digits by its magnitude."""
    if isinstance(value, int) and abs(value) >= 10**100:
        return f"a number of more than 100 digits{' below zero' if value < 0 else ''}"
    return str(value)
