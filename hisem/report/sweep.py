"""The trials of a sweep, and the table that people read of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.table import Table
from rich.text import Text

from hisem.report.curves import score_label
from hisem.text.threshold import ThresholdCurve

Status = Literal["finished", "stopped", "failed", "unfinished"]
"""`stopped`: early, because it was worse than others; `unfinished`: cut off with the sweep."""

Value = float | int | str

SHOWN = ("bleu_4", "s_m", "change_f1")
"""Metrics that the table always has."""

NONE = "-"


@dataclass(frozen=True)
class Trial:
    """One trial of a sweep, as it ended."""

    name: str
    parameters: dict[str, Value]
    """What was drawn for it."""
    status: Status
    error: str
    """Empty unless it failed."""
    epochs: int
    """Epochs done."""
    metrics: dict[str, float]
    """Validation metrics of its best epoch; empty where none was done."""
    threshold: float | None
    """The image router's calibrated threshold."""
    captions_per_second: float | None
    """Validation tiles captioned and scored in a second, on both paths."""
    seconds: float
    """Spent in training and validation."""
    curve: ThresholdCurve | None = None
    """BLEU-4 and change F1 of its best epoch over the router's threshold."""

    def score(self, metric: str) -> float:
        """Its `metric`, NaN where it has none."""
        return self.metrics.get(metric, math.nan)


def label(metric: str) -> str:
    """How people call a metric."""
    return score_label(metric) or metric.replace("_", " ")


def best_first(trials: Iterable[Trial], metric: str) -> list[Trial]:
    """Those with the highest metric first; those without it last, in the order given."""
    return sorted(trials, key=lambda trial: math.inf if math.isnan(trial.score(metric)) else -trial.score(metric))


def parameter_names(trials: Iterable[Trial]) -> list[str]:
    """The names of what was drawn for any trial, in the order of their first use."""
    return list(dict.fromkeys(name for trial in trials for name in trial.parameters))


def trials_table(trials: Sequence[Trial], metric: str) -> Table:
    """One row a trial, best first: what was drawn, metrics, threshold, speed, time. Errors stand below their trial."""
    metrics = [*(() if metric in SHOWN else (metric,)), *SHOWN]
    names = parameter_names(trials)
    table = Table(
        title=Text(f"trials by {label(metric)}"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 0, 0, 1),
    )
    table.add_column("trial", overflow="fold")
    for header in (*names, *map(label, metrics), "threshold", "BLEU-4 there", "captions/s", "seconds", "epochs"):
        # Each word on a line of its own keeps columns as narrow as their numbers.
        words = header.replace("_", " ").replace("/", " /").replace("threshold", "thresh old").replace(" ", "\n")
        table.add_column(words, justify="right", overflow="fold")
    for trial in best_first(trials, metric):
        calibrated = trial.curve and trial.threshold is not None and trial.curve.at(trial.threshold)
        table.add_row(
            trial.name,
            *(_number(trial.parameters.get(name), 2) for name in names),
            *(_percent(trial.metrics.get(name)) for name in metrics),
            _number(trial.threshold, 3),
            _percent(calibrated.bleu_4 if calibrated else None),
            NONE if trial.captions_per_second is None else f"{trial.captions_per_second:.0f}",
            f"{trial.seconds:.0f}",
            f"{trial.epochs}" + ("" if trial.status == "finished" else f", {trial.status}"),
        )
    failed = [f"{trial.name} failed: {trial.error}" for trial in trials if trial.error]
    table.caption = Text("\n".join(["metrics x 100, of each trial's best epoch", *failed]))
    table.caption_justify = "left"
    return table


def _number(value: Value | None, digits: int) -> str:
    if value is None:
        return NONE
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.2f}"
