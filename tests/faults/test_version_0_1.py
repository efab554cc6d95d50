"""Outputs of version 0.1 (tests/fixtures/version_0_1) are read and continued by the commands of this version."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures" / "version_0_1"
OLD = Path("/tmp/hisem-old")
"""The paths in the outputs begin with this one, and a job of other paths would be another job."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TINY = """
model:
  backbone: {image_size: [32, 32], options: {channels: [8, 16, 24, 32], stem_width: 8}}
  bdam: {heads: 2}
  hasd: {hidden: 32, moe: {hidden: 16}}
  decoder: {heads: 2, max_length: 20}
training: {batch_size: 16, learning_rate: 0.001, label_routing_epochs: 1, warmup_steps: 2}
"""


def run(script: str, *flags: str) -> str:
    """Run a command as a user does, and return what it printed; it has to end with 0."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HISEM_STORAGE": str(OLD / "storage")}
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *flags],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def old() -> Iterator[Path]:
    """The outputs, where they were written, with archive and shards made again."""
    with open(f"{OLD}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may test them
        shutil.rmtree(OLD, ignore_errors=True)  # of a test that was killed
        OLD.mkdir()
        for name in ("table", "runs", "sweeps"):
            with tarfile.open(FIXTURES / f"{name}.tar.xz") as archive:
                archive.extractall(OLD, filter="data")
        (OLD / "tiny.yaml").write_text(TINY)
        archive_flags = ("--scenes", "12", "--tile-size", "32", "--scene-tiles", "4")
        run("pipelines/synthesize.py", "--output", str(OLD / "archive"), *archive_flags)
        catalog, references = (str(OLD / "archive" / f"{name}.parquet") for name in ("catalogue", "references"))
        shards = ("--tile-size", "32", "--output", str(OLD / "shards"))
        run("pipelines/tile.py", "--catalog", catalog, "--references", references, *shards)
        yield OLD
        shutil.rmtree(OLD)


def caption(output: Path) -> None:
    catalog, model = OLD / "archive" / "catalogue.parquet", OLD / "storage" / "old" / "bundle"
    flags = ("--catalog", str(catalog), "--model", str(model), "--output", str(output), "--tile-size", "32")
    run("pipelines/caption.py", *flags)


def captions(output: Path) -> dict[str, tuple[object, ...]]:
    """Caption and time of each tile, which is there once."""
    rows = [
        row
        for path in (output / "captions").rglob("*.parquet")
        for row in pq.read_table(path, partitioning=None).to_pylist()
    ]
    by_tile: dict[str, tuple[object, ...]] = {row["tile_id"]: (row["caption"], row["captioned_at"]) for row in rows}
    assert len(by_tile) == len(rows)
    return by_tile


def test_a_finished_table_has_nothing_to_do(old: Path) -> None:
    before = captions(old / "table")
    assert len(before) == 192
    caption(old / "table")
    assert captions(old / "table") == before


def test_an_interrupted_table_is_finished(old: Path) -> None:
    staged = [pq.read_table(path) for path in sorted((old / "stoppedtable" / "_staging").rglob("*.parquet"))]
    times = {row["tile_id"]: row["captioned_at"] for rows in staged for row in rows.to_pylist()}
    assert len(times) == 100
    caption(old / "stoppedtable")
    done, whole = captions(old / "stoppedtable"), captions(old / "table")
    assert {tile: text for tile, (text, _) in done.items()} == {tile: text for tile, (text, _) in whole.items()}
    assert {tile: done[tile][1] for tile in times} == times  # not captioned again


def test_an_interrupted_run_is_finished(old: Path) -> None:
    known = json.loads((old / "storage" / "stopped" / "hisem_run.json").read_text())["run_id"]
    flags = ("--config", str(old / "tiny.yaml"), "--training.epochs", "4", "--workers", "1")
    text = run("pipelines/train.py", "--data", str(old / "shards"), "--preset", "demo", "--name", "stopped", *flags)
    assert "epoch 2 done" not in text
    assert "epoch 4 done" in text
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{old / 'storage' / 'mlflow.db'}")
    assert client.get_run(known).info.status == "FINISHED"
    steps = {point.step for point in client.get_metric_history(known, "train_loss")}
    assert steps >= {3, 4}  # the epochs that were left, numbered from 1; version 0.1 numbered the others from 0
    assert (old / "storage" / "stopped" / "bundle" / "model.safetensors").exists()


def test_an_interrupted_sweep_is_finished(old: Path) -> None:
    flags = ("--config", str(old / "tiny.yaml"), "--samples", "2", "--epochs", "4", "--concurrent", "1")
    shards = ("--data", str(old / "shards"), "--preset", "demo")
    run("tune/sweep.py", *shards, "--name", "stoppedsweep", *flags)
    trials = pq.read_table(old / "storage" / "stoppedsweep" / "trials.parquet")
    assert len(trials) == 2
    assert "b582d38f" in trials.column("name").to_pylist()  # the trial that had begun
    assert pc.all(pc.is_in(trials.column("status"), value_set=pc.cast(["finished", "stopped"], "string"))).as_py()
