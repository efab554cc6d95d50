"""What it costs to spread the same work over more workers, and how long a submitted job takes to its first step.

    python tests/benchmarks/bench_cluster.py --output DIR

Workers: the demo preset is trained on a synthetic archive with 1, 2 and 4 workers on the same cores, with the same
global batch; threads are divided among the workers, one each at least. Pairs/s are medians over epochs but the first,
of runs that take turns. Captioners likewise, with as many as there are cores at most: tiles/s of the whole call in a
Ray that is there. Ratios are to one worker.

Submission: `cluster/local.py` starts a cluster of two workers, and `train.py` is submitted to it so often. Times are
when the job's log on the head's disk says so, looked at every 20 ms; the driver hears its workers every half second.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.table import Table

from hisem import storage, tracking
from hisem.archive.catalogue import read_catalogue
from hisem.archive.synthetic import SyntheticConfig, generate
from hisem.captions.options import Captioning
from hisem.config import merge
from hisem.distributed.archive import shard_archive
from hisem.distributed.captioner import CaptionOptions
from hisem.distributed.fit import worker_cpus
from hisem.distributed.nightly import caption_archive
from hisem.distributed.session import cluster, cpus
from hisem.distributed.trainer import TrainOptions, train
from hisem.training.execution import Execution
from hisem.training.presets import PRESETS, preset

ROOT = Path(__file__).parents[2]
TILE = SyntheticConfig().tile_size
MOMENTS = {
    "submit to the driver's start": "Running entrypoint for job",
    "driver's start to the workers' start": "worker(s) start ",
    "workers' start to the first step": "  step ",
}
"""The stretches from `ray job submit` on, and what the job's log says at the end of each."""


@dataclass(frozen=True)
class Options:
    """Measure a cluster."""

    output: str
    """Folder for archive, runs, tables and the cluster's state."""
    parts: tuple[Literal["workers", "captioners", "submit"], ...] = ("workers", "captioners", "submit")
    """What to measure."""
    scenes: int = 40
    """Scene pairs of the archive, of 64 tiles each."""
    counts: tuple[int, ...] = (1, 2, 4)
    """Workers, and captioners."""
    epochs: int = 3
    """Of each training run; the first does not count."""
    turns: int = 2
    """Runs of each number of workers."""
    submissions: int = 3
    """Jobs that are submitted."""


def main(options: Options) -> None:
    """Print the tables that are asked for."""
    measures = {"workers": workers, "captioners": captioners, "submit": submit}
    for part in options.parts:
        Console(width=120).print(measures[part](options))


def workers(options: Options) -> Table:
    """Pairs/s with each number of workers."""
    experiment = preset("demo", merge(PRESETS["demo"], {"training": {"epochs": options.epochs}}))
    root, tag = storage.absolute(options.output), int(time.time())
    rates: dict[int, list[float]] = {count: [] for count in options.counts}
    threads = {}
    with cluster():
        shards = made(options)[1]
        for turn in range(options.turns):
            for count in options.counts:
                threads[count] = max(1, int(2 * worker_cpus(count)))
                asked = TrainOptions(
                    data=shards,
                    storage=storage.join(root, "runs"),
                    name=f"workers-{count}-{turn}-{tag}",
                    tracking=tracking.sqlite_uri(root),
                    register="",
                    execution=Execution(workers=count),
                )
                history = train(experiment, asked).history
                rates[count] += [report["train_pairs"] / report["train_seconds"] for report in history[1:]]
        title = f"demo preset, batches of {experiment.training.batch_size} pairs, {cpus():g} CPUs"
    return rates_table(title, "pairs/s", rates, threads)


def captioners(options: Options) -> Table:
    """Tiles/s with each number of captioners."""
    root, tag = storage.absolute(options.output), int(time.time())
    rates: dict[int, list[float]] = {}
    threads = {}
    with cluster():
        path, shards = made(options)
        catalogue, bundle = read_catalogue(path), one_epoch(root, shards)
        for turn in range(options.turns):
            for count in (count for count in options.counts if count <= cpus()):
                threads[count] = int(cpus()) // count
                asked = CaptionOptions(
                    storage.join(root, f"tables-{tag}", f"{count}-{turn}"),
                    bundle,
                    "demo",
                    "1",
                    TILE,
                    captioning=Captioning(captioners=count, cpus=threads[count]),
                )
                night = caption_archive(catalogue, asked).night
                assert night.statuses["failed"] == 0, "tiles failed"
                rates.setdefault(count, []).append(night.tiles / night.seconds)
        title = f"demo preset, {night.tiles} tiles of {TILE} pixels, {cpus():g} CPUs"
    return rates_table(title, "tiles/s", rates, threads)


def made(options: Options) -> tuple[str, str]:
    """The archive's catalogue and shards, made if absent."""
    root = storage.join(storage.absolute(options.output), f"scenes-{options.scenes}")
    generate(SyntheticConfig(scenes=options.scenes), storage.join(root, "archive"))
    catalogue, references = (storage.join(root, "archive", f"{name}.parquet") for name in ("catalogue", "references"))
    shard_archive(catalogue, storage.join(root, "shards"), TILE, references)
    return catalogue, storage.join(root, "shards")


def one_epoch(root: str, shards: str) -> Path:
    """A model that says something."""
    experiment = preset("demo", merge(PRESETS["demo"], {"training": {"epochs": 1}}))
    execution = Execution(workers=1)
    name = f"one-epoch-{int(time.time())}"
    asked = TrainOptions(shards, storage.join(root, "runs"), name, tracking.sqlite_uri(root), None, "", execution)
    return Path(train(experiment, asked).bundle)


def rates_table(title: str, unit: str, rates: dict[int, list[float]], threads: dict[int, int]) -> Table:
    """Medians, and their ratios to the first."""
    table = Table(title=title)
    for column in ("workers", "threads each", unit, "/ one", "all"):
        table.add_column(column, justify="right")
    medians = {count: statistics.median(found) for count, found in rates.items()}
    for count, median in medians.items():
        every = ", ".join(f"{rate:.1f}" for rate in rates[count])
        ratio = median / next(iter(medians.values()))
        table.add_row(f"{count}", f"{threads[count]}", f"{median:.1f}", f"{ratio:.3f}", every)
    return table


def submit(options: Options) -> Table:
    """Seconds of each stretch from submission to the first step."""
    root = storage.absolute(options.output)
    with cluster():
        shards = made(options)[1]
    local = [sys.executable, str(ROOT / "cluster" / "local.py")]
    folder = ["--folder", f"{root}/cluster"]
    # Importing hisem has made a token for a Ray of our own, which would go before the cluster's.
    environment = {**os.environ, "HISEM_STORAGE": root}
    environment.pop("RAY_AUTH_TOKEN", None)
    told = subprocess.run(
        [*local, "start", "--workers", "2", *folder], env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    try:
        exports = dict(line.removeprefix("export ").split("=", 1) for line in told.splitlines() if "=" in line)
        state = json.loads(Path(root, "cluster", "state.json").read_text())
        logs = Path(state["files"], "head", "session_latest", "logs")
        names = [f"job-{number}" for number in range(options.submissions)]
        found = [one_submission(shards, name, logs, environment | exports) for name in names]
    finally:
        subprocess.run([*local, "stop", *folder], check=True)
    table = Table(title=f"ray job submit of train.py on two workers, {os.cpu_count()} CPUs, {len(found)} times")
    table.add_column("from")
    for column in ("median", "all"):
        table.add_column(column, justify="right")
    for name in (*MOMENTS, "together"):
        seconds = [one[name] for one in found]
        table.add_row(name, f"{statistics.median(seconds):.1f} s", ", ".join(f"{value:.1f}" for value in seconds))
    return table


def one_submission(shards: str, name: str, logs: Path, environment: dict[str, str]) -> dict[str, float]:
    """Seconds of each stretch, and of all together, of one job, which is stopped at its first step."""
    ray = [sys.executable, "-m", "ray.scripts.scripts", "job"]
    train_command = ["python", "pipelines/train.py", "--data", shards, "--name", f"{name}-{int(time.time())}"]
    began = before = time.perf_counter()
    submission = subprocess.Popen(
        [*ray, "submit", "--no-wait", "--submission-id", name, "--working-dir", ".", "--", *train_command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    log, seconds = logs / f"job-driver-{name}.log", {}
    for stretch, words in MOMENTS.items():
        while not (log.exists() and words in log.read_text()):
            assert submission.poll() in (None, 0), "the job was not taken"
            time.sleep(0.02)
        now = time.perf_counter()
        seconds[stretch], before = now - before, now
    submission.wait()
    subprocess.run([*ray, "stop", name], env=environment, check=True, stdout=subprocess.DEVNULL)
    return {**seconds, "together": before - began}


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
