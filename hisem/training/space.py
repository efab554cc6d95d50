"""Search spaces: a function `space(trial, base)` in a Python file of the user's, as Optuna's define-by-run has it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hisem import storage
from hisem.config import from_dict, merge, to_dict
from hisem.errors import ConfigError
from hisem.training.recipe import Experiment

Value = float | int | str

SETTINGS = ("model", "training")
"""Keys that a space may return."""

GRID_POINTS = 3
"""Values that a grid takes of a range of floats without step: its ends, and what lies between."""


@dataclass(frozen=True)
class Space:
    """A search space around an experiment. It travels and is stored as its source text."""

    source: str
    where: str
    """The file or URI of the source, for messages."""
    base: Experiment = field(repr=False)

    @classmethod
    def read(cls, uri: str, base: Experiment) -> Space:
        """The space in a file. The code in it is run: it is the caller's own, as that of any script.

        Raises `ConfigError` where it cannot be run or has no function `space`.
        """
        space = cls(storage.read_bytes(uri).decode(), uri, base)
        space._function()
        return space

    def __call__(self, trial: Any) -> dict[str, Any]:
        """The settings that `trial`, an Optuna trial or the like of it, leads to."""
        settings = self._function()(trial, self.base)
        if not isinstance(settings, dict) or not set(settings) <= set(SETTINGS):
            raise ConfigError(
                f"{self.where}: space returned {settings!r}; settings as in a --config file are needed, a dictionary "
                f"with the keys {' and '.join(SETTINGS)}."
            )
        return settings

    def experiment(self, settings: dict[str, Any]) -> Experiment:
        """The base with `settings` over it. Raises `ConfigError` for those that do not fit together."""
        return from_dict(Experiment, merge(to_dict(self.base), settings), self.where)

    def grid(self) -> Iterator[tuple[dict[str, Value], dict[str, Any]]]:
        """All that can be drawn, as (values by name, settings), the first name's values changing last."""
        indices: list[int] | None = []
        while indices is not None:
            walk = _Walk(indices)
            settings = self(walk)
            yield walk.values, settings
            indices = walk.next()

    def _function(self) -> Any:
        names: dict[str, Any] = {"__name__": "space", "__file__": self.where}
        try:
            exec(compile(self.source, self.where, "exec"), names)
        except Exception as error:
            raise ConfigError(f"{self.where}: cannot be run as Python ({type(error).__name__}: {error}).") from error
        if not callable(names.get("space")):
            raise ConfigError(f"{self.where}: defines no function space(trial, base); see tune/space.py.")
        return names["space"]


class _Walk:
    """Stands for an Optuna trial and takes of each range the value of a given place, beyond those the first."""

    def __init__(self, indices: Sequence[int]) -> None:
        self.values: dict[str, Value] = {}
        self._given = indices
        self._taken: list[tuple[int, int]] = []
        """Index and number of values of each range."""

    def suggest_categorical(self, name: str, choices: Sequence[Value]) -> Value:
        """One of `choices`."""
        if name in self.values:  # Optuna, too, draws a name once
            return self.values[name]
        place = len(self._taken)
        index = self._given[place] if place < len(self._given) else 0
        self._taken.append((index, len(choices)))
        self.values[name] = choices[index]
        return choices[index]

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> Value:
        """A whole number; with `log` the powers of 2 from `low` on."""
        if not log:
            return self.suggest_categorical(name, range(low, high + 1, step))
        return self.suggest_categorical(name, [low * 2**power for power in range(int(math.log2(high / low)) + 1)])

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> Value:
        """A multiple of `step` from `low` on, else one of `GRID_POINTS`, evenly spaced in the numbers or their logs."""
        if step is not None:
            return self.suggest_categorical(name, [low + step * n for n in range(int((high - low) / step + 1e-9) + 1)])
        parts = [n / (GRID_POINTS - 1) for n in range(GRID_POINTS)]
        return self.suggest_categorical(
            name, [low * (high / low) ** part if log else low + (high - low) * part for part in parts]
        )

    def next(self) -> list[int] | None:
        """Places of the combination after this one; None after the last."""
        taken = list(self._taken)
        while taken and taken[-1][0] + 1 == taken[-1][1]:
            taken.pop()
        if not taken:
            return None
        return [index for index, _ in taken[:-1]] + [taken[-1][0] + 1]
