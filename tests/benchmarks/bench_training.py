"""What training through Ray costs beside a plain torch loop, and how long a run stands still after a kill.

    python tests/benchmarks/bench_training.py --output DIR

The loop trains the same model on the same tiles, held in memory, with the same threads and batches, in this process.
Both sides train the demo preset for the same epochs, the loop first and last; pairs/s are medians over epochs but the
first. The kill is a SIGKILL to the one worker of a run, from which the time to its next step is taken.
"""

from __future__ import annotations

import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import tyro
from rich.console import Console
from rich.table import Table

from hisem import storage, tracking
from hisem.config import merge
from hisem.distributed.dataset import Split, decode, read_splits
from hisem.distributed.demo import demo_shards
from hisem.distributed.fit import worker_cpus
from hisem.distributed.session import cluster
from hisem.distributed.trainer import TrainOptions, train
from hisem.model.hisem import HiSem
from hisem.text.vocabulary import Vocabulary
from hisem.training.batches import Batch, Collate
from hisem.training.epoch import make_optimizer, train_epoch
from hisem.training.execution import Execution
from hisem.training.presets import PRESETS, preset
from hisem.training.recipe import Experiment

TRAIN = Path(__file__).parents[2] / "pipelines" / "train.py"


@dataclass(frozen=True)
class Options:
    """Measure training."""

    output: str
    """Folder for archive, runs and MLflow."""
    epochs: int = 3
    """Epochs of each side; the first does not count."""


def main(options: Options) -> None:
    """Print one table."""
    experiment = preset("demo", merge(PRESETS["demo"], {"training": {"epochs": options.epochs}}))
    with cluster():
        shards = demo_shards(options.output)
        threads = max(1, int(2 * worker_cpus(1)))
    split = read_splits(shards, ("train",))["train"]
    loop = plain_loop(experiment, split, threads)
    name = f"measured-{int(time.time())}"
    run = train(
        experiment,
        TrainOptions(
            data=shards,
            storage=storage.join(options.output, "runs"),
            name=name,
            tracking=tracking.sqlite_uri(options.output),
            execution=Execution(workers=1),
        ),
    )
    loop += plain_loop(experiment, split, threads)
    ray = [report["train_pairs"] / report["train_seconds"] for report in run.history[1:]]
    waiting = sum(report["train_waiting"] for report in run.history[1:])
    seconds = sum(report["train_seconds"] for report in run.history[1:])
    table = Table(title=f"demo preset, one worker, {threads} threads, {len(split)} pairs an epoch")
    table.add_column("what")
    table.add_column("figure", justify="right")
    table.add_row("plain torch loop", f"{statistics.median(loop):.1f} pairs/s")
    table.add_row("through Ray", f"{statistics.median(ray):.1f} pairs/s")
    table.add_row("ratio", f"{statistics.median(ray) / statistics.median(loop):.3f}")
    table.add_row("waiting for data", f"{100 * waiting / seconds:.1f} %")
    table.add_row("from the kill of the worker to the next step", f"{kill_to_step(options.output, shards):.1f} s")
    Console(width=120).print(table)


def plain_loop(experiment: Experiment, split: Split, threads: int) -> list[float]:
    """Pairs/s of each epoch but the first."""
    recipe = experiment.training
    fs, _ = storage.filesystem(split.folder)
    files = sorted(set(split.rows.column("file").to_pylist()))
    table = pq.read_table(files, filesystem=fs, partitioning=None)
    wanted = set(split.rows.column("tile_id").to_pylist())
    columns = decode(table.filter(pa.array([tile in wanted for tile in table["tile_id"].to_pylist()])), split.tile_size)
    vocabulary = Vocabulary.build([s for said in split.references for s in said], recipe.vocabulary_min_count)
    torch.set_num_threads(threads)
    torch.manual_seed(recipe.seed)
    model = HiSem(experiment.model, vocabulary)
    optimizer = make_optimizer(model, recipe)
    steps = -(-len(split) // recipe.batch_size)
    rates = []
    for epoch in range(recipe.epochs):
        collate = Collate(vocabulary, experiment.model.decoder.max_length, recipe.seed, epoch)
        order = np.random.default_rng(epoch).permutation(len(split))

        def batches(collate: Collate = collate, order: np.ndarray = order) -> Iterator[Batch]:
            for start in range(0, len(order), recipe.batch_size):
                rows = order[start : start + recipe.batch_size]
                yield collate({name: values[rows] for name, values in columns.items()})

        done = train_epoch(model, model, batches(), optimizer, recipe, epoch, steps)
        rates.append(done.pairs / done.seconds)
    return rates[1:]


def kill_to_step(output: str, shards: str) -> float:
    """Seconds from a SIGKILL to the worker of a run until the run tells of a step again."""
    log = Path(output) / "killed.log"
    command = [sys.executable, str(TRAIN), "--data", shards, "--storage", f"{output}/runs", "--workers", "1"]
    command += ["--tracking", tracking.sqlite_uri(output), "--name", f"killed-{int(time.time())}", "--register", ""]
    with log.open("wb") as out:
        driver = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
    try:
        _wait(log, r"step [2-9]\d/", 0)
        os.kill(_worker(), signal.SIGKILL)
        killed, seen = time.perf_counter(), log.stat().st_size
        _wait(log, r"  step \d+/", seen)
        return time.perf_counter() - killed
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()


def _worker() -> int:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if b"RayTrainWorker" in path.read_bytes():
                return int(path.parent.name)
    raise RuntimeError("no worker is running")


def _wait(log: Path, pattern: str, after: int) -> None:
    while not re.search(pattern, log.read_text()[after:]):
        time.sleep(0.05)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
