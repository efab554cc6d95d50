"""What runs tell while they work, as metrics that Prometheus fetches from each node beside Ray's own.

Ray puts `ray_` before each name, and takes what a process has recorded to the agent of its node every ten seconds.
Counters stay; a gauge that was not set again for two such intervals is dropped, so who has one sets it over and over.
Labels have few values each: a label of a tile, a pair or a message would make a series of it.
"""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
from ray.util.metrics import Counter, Gauge

from hisem.schemas import FAILED, STATUSES

TRIAL_STATES = {
    "PENDING": "waiting",
    "PAUSED": "waiting",
    "RUNNING": "running",
    "TERMINATED": "over",
    "ERROR": "failed",
}
"""Ray Tune's states of a trial, and ours."""


class CaptionMetrics:
    """Of a captioning run, recorded by its driver as rows are put aside: no tile that is tried again counts twice."""

    def __init__(self, run: str) -> None:
        labels = {"run": run}
        self._tiles = Counter(
            "hisem_tiles_total",
            "Rows of the captions table that a run has made, by status and, of failed ones, kind of failure.",
            ("run", "status", "failure"),
        ).set_default_tags(labels)
        self._rate = Gauge(
            "hisem_tiles_per_second", "Tiles that a run captions in a second, on average until now.", ("run",)
        ).set_default_tags(labels)

    def made(self, rows: pa.Table, failures: Mapping[str, int]) -> None:
        """Count rows by `status`; `failures` are the failed ones among them, by kind."""
        for status in STATUSES:
            count = pc.sum(pc.equal(rows.column("status"), status)).as_py() or 0
            kinds = failures if status == FAILED else {"": count}
            for kind, number in kinds.items():
                if number:
                    self._tiles.inc(number, {"status": status, "failure": kind})

    def rate(self, tiles_per_second: float) -> None:
        """Set how fast the run is."""
        self._rate.set(tiles_per_second)


class TrainingMetrics:
    """Of a training run, recorded by each of its workers; what is of all of them together, by the `first` alone.

    What is done again after an interruption counts again.
    """

    def __init__(self, run: str, first: bool) -> None:
        labels, self._first = {"run": run}, first
        self._steps, self._pairs, self._wait = (
            Counter(f"hisem_training_{name}_total", told, ("run",)).set_default_tags(labels)
            for name, told in (
                ("steps", "Steps that a training run has made."),
                ("pairs", "Pairs that the workers have trained on; the sum over them is the run's."),
                ("data_wait_seconds", "Seconds that the workers have waited for data; the sum over them is the run's."),
            )
        )
        self._rate = Gauge(
            "hisem_training_pairs_per_second", "Pairs a second of all workers, in the epoch until now.", ("run",)
        ).set_default_tags(labels)

    def step(self, pairs: int, waited: float) -> None:
        """Count a step with this worker's `pairs`, before which it has waited so many seconds."""
        if self._first:
            self._steps.inc()
        for counter, value in ((self._pairs, pairs), (self._wait, waited)):
            if value > 0:
                counter.inc(value)

    def rate(self, pairs_per_second: float) -> None:
        """Set how fast the run is."""
        if self._first:
            self._rate.set(pairs_per_second)


class SweepMetrics:
    """Of a sweep, recorded by its driver."""

    def __init__(self, run: str, total: int) -> None:
        self._total = total
        self._trials = Gauge(
            "hisem_trials", "Trials of a sweep by state; those that are not drawn yet are waiting.", ("run", "state")
        ).set_default_tags({"run": run})

    def trials(self, states: Sequence[str]) -> None:
        """Set how many trials are in each state; `states` are Ray Tune's, of those that it has drawn."""
        counts = Counts(TRIAL_STATES[state] for state in states)
        counts["waiting"] += self._total - len(states)
        for state in dict.fromkeys(TRIAL_STATES.values()):
            self._trials.set(counts[state], {"state": state})
