"""The trials of a sweep, and the table that people read of them."""

from __future__ import annotations

import math
import shlex
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.table import Table
from rich.text import Text

from hisem.escapes import escaped
from hisem.report.curves import score_label
from hisem.text.threshold import ThresholdCurve

Status = Literal["finished", "stopped", "failed", "unfinished"]
"""`stopped`: early, because it was worse than others; `unfinished`: cut off with the sweep."""

Value = float | int | str

SHOWN = ("bleu_4", "s_m", "change_f1")
"""Metrics that the table always has."""

WIDTH = 120

NONE = "\N{EN DASH}"


@dataclass(frozen=True)
class Trial:
    """One trial of a sweep, as it ended."""

    name: str
    parameters: dict[str, Value]
    """What was drawn for it; a name may be a setting's with dots."""
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
        """Its `metric`, NaN where it has none or an infinite one."""
        value = self.metrics.get(metric, math.nan)
        return value if math.isfinite(value) else math.nan


def label(metric: str) -> str:
    """How people call a metric."""
    return score_label(metric) or metric.replace("_", " ")


def number(value: Value) -> str:
    """A value in few characters: floats with three digits, small and large ones as 3e-4."""
    if not isinstance(value, float):
        return str(value)
    if value == 0 or not math.isfinite(value) or 1e-2 <= abs(value) < 1e4:
        return f"{value:.3g}" if abs(value) < 1e3 else f"{value:.0f}"
    digits, exponent = f"{value:.2e}".split("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"


def best_first(trials: Iterable[Trial], metric: str) -> list[Trial]:
    """Those with the highest metric first; those without it last, in the order given."""
    return sorted(trials, key=lambda trial: math.inf if math.isnan(trial.score(metric)) else -trial.score(metric))


def parameter_names(trials: Iterable[Trial]) -> list[str]:
    """The names of what was drawn for any trial, in the order of their first use."""
    return list(dict.fromkeys(name for trial in trials for name in trial.parameters))


def varying(trials: Sequence[Trial]) -> list[str]:
    """The names of parameters that differ between trials; not to have one is to differ."""
    return [name for name in parameter_names(trials) if len({trial.parameters.get(name) for trial in trials}) > 1]


def short_names(names: Sequence[str]) -> dict[str, str]:
    """For each dotted name its last part, or as many of its last parts as no other name ends with."""
    return {name: _tail(name, [other for other in names if other != name]) for name in names}


def trial_names(trials: Iterable[Trial]) -> dict[str, str]:
    """For each trial's name what is behind its last underscore, if that tells them all apart."""
    short = {trial.name: trial.name.rpartition("_")[2] for trial in trials}
    return short if len(set(short.values())) == len(short) else {name: name for name in short}


def _tail(name: str, others: Sequence[str]) -> str:
    parts = name.split(".")
    tails = (".".join(parts[start:]) for start in reversed(range(len(parts))))
    return next((tail for tail in tails if not any(f".{other}".endswith(f".{tail}") for other in others)), name)


def train_command(settings: str, data: str) -> str:
    """Return the command, for a shell, that trains on the shards `data` with the file of `settings`."""
    return f"python pipelines/train.py {shlex.join(['--config', settings, '--data', data])} --name NAME"


def trials_table(trials: Sequence[Trial], metric: str) -> Table:
    """One row a trial, best first: what was drawn, metrics, threshold, speed, time.

    What was the same in all trials, and the first line of each error, stand below. Headers are broken so that the
    table fits 120 columns where it can.
    """
    metrics = [*(() if metric in SHOWN else (metric,)), *SHOWN]
    short, names = short_names(parameter_names(trials)), varying(trials)
    ordered, called = best_first(trials, metric), trial_names(trials)
    columns: list[tuple[str, list[str]]] = [
        ("trial", [called[trial.name] for trial in ordered]),
        ("status", [trial.status for trial in ordered]),
        *((short[name], [_cell(trial.parameters.get(name)) for trial in ordered]) for name in names),
        *((label(name), [_percent(trial.score(name)) for trial in ordered]) for name in metrics),
        ("threshold", [_cell(trial.threshold) for trial in ordered]),
        ("captions/s", [_cell(trial.captions_per_second, ".0f") for trial in ordered]),
        ("epochs", [f"{trial.epochs}" for trial in ordered]),
        ("seconds", [f"{trial.seconds:.0f}" for trial in ordered]),
    ]
    table = Table(
        title=Text(f"trials by {label(metric)}"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=0,
    )
    letters = next((most for most in range(12, 4, -1) if _width(columns, most) <= WIDTH), 5)
    for place, (header, _) in enumerate(columns):
        words = "\n".join(_words(header, letters))
        table.add_column(Text(words), justify="left" if place < 2 else "right", overflow="fold")
    for row in zip(*(cells for _, cells in columns), strict=True):
        table.add_row(*(Text(escaped(cell)) for cell in row))  # Text: a name is no markup
    same = [f"{short[name]} {number(trials[0].parameters[name])}" for name in short if name not in names]
    errors = [(trial.name, trial.error.strip().partition("\n")[0]) for trial in trials if trial.error.strip()]
    lines = [
        "metrics x 100, of each trial's best epoch",
        *([f"the same in all: {', '.join(same)}"] if same else []),
        *(f"{name} failed: {line}" for name, line in errors),
    ]
    table.caption = Text("\n".join(map(escaped, lines)))
    table.caption_justify = "left"
    return table


def _words(header: str, letters: int) -> list[str]:
    """Lines of a header: one a word, longer words broken."""
    words = header.replace(".", ". ").replace("_", " ").replace("/", " /").split()
    return [line for word in words for line in textwrap.wrap(word, letters)]


def _width(columns: Iterable[tuple[str, Sequence[str]]], letters: int) -> int:
    """Characters across, if headers have at most so many letters a line and cells of names are folded."""
    texts = ([*_words(header, letters), *(cell[:10] for cell in cells)] for header, cells in columns)
    return sum(1 + max(map(len, column)) for column in texts)


def _cell(value: Value | None, form: str = "") -> str:
    return NONE if value is None else f"{value:{form}}" if form else number(value)


def _percent(value: float) -> str:
    return NONE if math.isnan(value) else f"{100 * value:.2f}"
