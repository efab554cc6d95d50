"""How a sweep searches: how many trials, how their values are drawn, and which are stopped early."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from hisem.ranges import Processes, Range, require_ranges

SCORED = {"training": {"meteor": True}}
"""What goes over a preset: trials are told by S*m, too, which laptops' presets leave out, as Java starts slowly."""


@dataclass(frozen=True)
class Search:
    """Which trials a sweep runs."""

    samples: Annotated[int, Range(1, 100_000)] = 6
    """Trials; a grid may have at most so many."""
    concurrent: Processes | None = None
    """Trials at once (default: as many as the cluster has room for)."""
    time_budget: Annotated[float, Range(0, 1_000_000, above=True)] | None = None
    """Minutes, of each call, after which running trials are cut off and no more start."""
    search: Literal["tpe", "random", "grid"] = "tpe"
    """How values are drawn: by Optuna's TPE, at random, or all combinations."""
    asha: bool = True
    """Stop a trial early that is worse than others were after as many epochs."""
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    """Of what is drawn."""
    retry_failed: bool = False
    """Run trials again that failed in an earlier call."""

    def __post_init__(self) -> None:
        require_ranges(self)
