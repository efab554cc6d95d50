"""What early stopping saves, and what a trial costs beyond its training. One table; half an hour on two cores.

    python tests/benchmarks/bench_sweep.py --output DIR

The default sweep of the demo archive with ASHA, and the same trials trained to the end. The overhead of a trial is its
share of the wall time beyond the seconds of its epochs and validations; that of a bare run of `train.py` likewise.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from hisem import storage, tracking
from hisem.config import merge
from hisem.distributed.demo import demo_shards
from hisem.distributed.session import cluster, cpus
from hisem.distributed.sweep import SweepOptions, SweepSummary, sweep
from hisem.distributed.trainer import TrainOptions, train
from hisem.training.execution import Execution
from hisem.training.presets import PRESETS, preset
from hisem.training.search import Search
from hisem.training.space import Space

SPACE = Path(__file__).parents[2] / "tune" / "space.py"


@dataclass(frozen=True)
class Options:
    """Measure sweeps."""

    output: str
    """Folder for archive, runs and MLflow."""
    samples: int = 6
    """Trials."""
    epochs: int = 3
    """Of a trial that is not stopped."""


def main(options: Options) -> None:
    """Print one table."""
    base = preset("demo", merge(PRESETS["demo"], {"training": {"epochs": options.epochs}}))
    uri = tracking.sqlite_uri(options.output)
    with cluster():
        shards = demo_shards(options.output)
        at_once = min(options.samples, int(cpus()))
        space = Space.read(str(SPACE), base)
        done = {
            name: _sweep(SweepOptions(space, shards, options.output, name, uri, Search(options.samples, asha=asha)))
            for name, asha in (("stopped-early", True), ("to-the-end", False))
        }
        execution = Execution(workers=1, cpus_per_worker=cpus() / 2)
        bare = train(base, TrainOptions(shards, storage.join(options.output, "bare"), "bare", uri, execution=execution))
    drawn = [sorted(str(trial.parameters) for trial in one.trials) for one, _ in done.values()]
    assert drawn[0] == drawn[1], "the sweeps drew different trials"
    table = Table(title=f"{options.samples} trials of {options.epochs} epochs, {at_once} at once, demo archive")
    for header in ("", "wall time", "epochs", "best BLEU-4", "overhead of a trial"):
        table.add_column(header, justify="right")
    for name, (one, seconds) in done.items():
        over = (at_once * seconds - sum(trial.seconds for trial in one.trials)) / len(one.trials)
        best = max(trial.metrics.get("bleu_4", -math.inf) for trial in one.trials)
        epochs = sum(trial.epochs for trial in one.trials)
        table.add_row(name, f"{seconds:.0f} s", f"{epochs}", f"{100 * best:.2f}", f"{over:.1f} s")
    spent = sum(report["train_seconds"] + report["val_seconds"] for report in bare.history)
    table.add_row("train.py", f"{bare.seconds:.0f} s", f"{len(bare.history)}", "", f"{bare.seconds - spent:.1f} s")
    Console(width=120).print(table)


def _sweep(options: SweepOptions) -> tuple[SweepSummary, float]:
    began = time.perf_counter()
    return sweep(options), time.perf_counter() - began


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
