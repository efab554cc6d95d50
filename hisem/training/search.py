"""How a sweep searches: how many trials, how their values are drawn, and which are stopped early."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hisem.errors import ConfigError

SCORED = {"training": {"meteor": True}}
"""What goes over a preset: trials are told by S*m, too, which laptops' presets leave out, as Java starts slowly."""


@dataclass(frozen=True)
class Search:
    """Which trials a sweep runs."""

    samples: int = 6
    """Trials; a grid may have at most so many."""
    concurrent: int | None = None
    """Trials at once (default: as many as the cluster has room for)."""
    time_budget: float | None = None
    """Minutes, of each call, after which running trials are cut off and no more start."""
    search: Literal["tpe", "random", "grid"] = "tpe"
    """How values are drawn: by Optuna's TPE, at random, or all combinations."""
    asha: bool = True
    """Stop a trial early that is worse than others were after as many epochs."""
    seed: int = 0
    """Of what is drawn."""
    retry_failed: bool = False
    """Run trials again that failed in an earlier call."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ConfigError(f"samples is {self.samples}: 1 or more.")
        if self.concurrent is not None and self.concurrent < 1:
            raise ConfigError(f"concurrent is {self.concurrent}: 1 or more.")
        if self.time_budget is not None and not self.time_budget > 0:
            raise ConfigError(f"time_budget is {self.time_budget}: above 0.")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}: 0 or more.")
