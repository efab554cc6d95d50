"""The paper's ablations on the demo archive, each with several seeds. Prints one table; takes an hour on two cores.

    python tests/benchmarks/bench_ablations.py --output DIR

The model and recipe are those of the preset `demo`; `baseline`, `bdam-only` and `hasd-only` take out what the paper's
presets of that name take out. What was trained already under DIR is not trained again.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from hisem import storage, tracking
from hisem.config import merge
from hisem.distributed.demo import demo_shards
from hisem.distributed.evaluator import Evaluation, evaluate
from hisem.distributed.session import cluster
from hisem.distributed.trainer import TrainOptions, train
from hisem.training.execution import Execution
from hisem.training.presets import PRESETS, preset

VARIANTS = {
    "HiSem": {},
    "BDAM only": PRESETS["bdam-only"],
    "HASD only": PRESETS["hasd-only"],
    "baseline": PRESETS["baseline"],
}


@dataclass(frozen=True)
class Options:
    """Measure the ablations."""

    output: str
    """Folder for archive, runs and MLflow."""
    seeds: int = 3
    """Runs of each variant."""
    workers: int = 2
    """Training processes."""


def main(options: Options) -> None:
    """Train and score all, then print mean and standard deviation (x 100) on the held-out scenes."""
    scores: dict[str, list[Evaluation]] = {name: [] for name in VARIANTS}
    with cluster():
        shards = demo_shards(options.output)
        for seed in range(options.seeds):  # by seed first, so that an interrupted benchmark has seen all variants
            for name, over in VARIANTS.items():
                scores[name].append(_run(options, shards, name, seed, over))
    table = Table(title=f"held-out scenes of the demo archive, {options.seeds} seeds")
    for header in ("", "BLEU-4", "BLEU-4, changed tiles", "ROUGE-L", "CIDEr-D", "change accuracy"):
        table.add_column(header, justify="right")
    for name, runs in scores.items():
        columns = [
            [run.all_tiles.captions.bleu_4 for run in runs],
            [run.changed_tiles.captions.bleu_4 for run in runs if run.changed_tiles],
            [run.all_tiles.captions.rouge_l for run in runs],
            [run.all_tiles.captions.cider_d for run in runs],
            [run.all_tiles.change.accuracy for run in runs],
        ]
        table.add_row(name, *(f"{100 * statistics.mean(c):.2f} ± {100 * statistics.stdev(c):.2f}" for c in columns))
    Console(width=120).print(table)


def _run(options: Options, shards: str, name: str, seed: int, over: dict[str, Any]) -> Evaluation:
    run = f"{name.lower().replace(' ', '-')}-{seed}"
    experiment = preset("demo", merge(over, {"training": {"seed": seed}}))
    done = train(
        experiment,
        TrainOptions(
            data=shards,
            storage=storage.join(options.output, "runs"),
            name=run,
            tracking=tracking.sqlite_uri(options.output),
            execution=Execution(options.workers),
        ),
    )
    scored = evaluate(shards, Path(done.bundle))
    Console().print(f"{run}: BLEU-4 {scored.all_tiles.captions.bleu_4:.4f}")
    return scored


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
