"""One local Ray for all tests of this room, and a small archive and model to work on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest

from hisem import storage
from hisem.archive.synthetic import SyntheticConfig, generate
from hisem.config import merge
from hisem.distributed.session import cluster
from hisem.training.presets import preset
from hisem.training.recipe import Experiment

TILE = 32

TINY: dict[str, Any] = {
    "model": {
        "backbone": {
            "image_size": [TILE, TILE],
            "options": {"channels": [8, 16, 24, 32], "stem_width": 8},
        },
        "bdam": {"heads": 2},
        "hasd": {"hidden": 32, "moe": {"hidden": 16}},
        "decoder": {"heads": 2, "max_length": 20},
    },
    "training": {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3, "label_routing_epochs": 1, "warmup_steps": 2},
}


def tiny(**training: Any) -> Experiment:
    """An experiment that runs in seconds."""
    return preset("demo", merge(TINY, {"training": training}))


@pytest.fixture(scope="session")
def ray_cluster(s3_server):
    """A local Ray on two CPUs, started once; its workers inherit the environment that names the S3 server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_metrics_report_interval_ms", "2000")  # else tests of metrics wait for ten seconds
        with cluster():
            yield


@pytest.fixture(scope="session")
def archive(tmp_path_factory) -> str:
    """A synthetic archive of 6 scene pairs of 4 x 4 tiles, and a seventh pair whose rasters are missing."""
    folder = str(tmp_path_factory.mktemp("archive"))
    generate(SyntheticConfig(scenes=6, tile_size=TILE, scene_tiles=4, val_share=0.17, test_share=0.17), folder)
    catalogue = storage.read_parquet(storage.join(folder, "catalogue.parquet"))
    gone = {**catalogue.slice(0, 1).to_pylist()[0], "pair_id": "gone", "after": [f"{folder}/nowhere.tif"]}
    both = pa.concat_tables([catalogue, pa.Table.from_pylist([gone], schema=catalogue.schema)])
    storage.write_parquet(both.replace_schema_metadata(None), storage.join(folder, "with_gone.parquet"))
    return folder


@pytest.fixture(scope="session")
def shards(archive, tmp_path_factory, ray_cluster) -> str:
    """Shards of the archive without the missing pair."""
    from hisem.distributed.archive import shard_archive

    folder = str(tmp_path_factory.mktemp("shards") / "shards")
    shard_archive(storage.join(archive, "catalogue.parquet"), folder, TILE, storage.join(archive, "references.parquet"))
    return folder


@dataclass(frozen=True)
class Port:
    """An open port of a process that this one started."""

    process: int
    of_worker: bool
    """Of a worker of training."""
    address: str
    number: int


TRAINING_PORTS: set[Port] = set()
"""What was open while `trained` was trained."""


@contextmanager
def watched_ports(seen: set[Port]) -> Iterator[None]:
    """Add to `seen` what the processes below this one listen at meanwhile."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            for process in psutil.Process().children(recursive=True):
                try:
                    of_worker = "TrainWorker" in " ".join(process.cmdline())
                    found = [c for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
                except psutil.Error:  # it has ended
                    continue
                seen.update(Port(process.pid, of_worker, c.laddr.ip, c.laddr.port) for c in found)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.fixture(scope="session")
def ports_of_training(trained) -> set[Port]:
    """What was open while `trained` was trained."""
    return TRAINING_PORTS


@pytest.fixture(scope="session")
def trained(shards, tmp_path_factory):
    """A run of two epochs on two workers: its options and summary."""
    from hisem import tracking
    from hisem.distributed.trainer import TrainOptions, train

    root = str(tmp_path_factory.mktemp("runs"))
    options = TrainOptions(shards, storage.join(root, "runs"), "tiny", tracking.sqlite_uri(root))
    with watched_ports(TRAINING_PORTS):
        return options, train(tiny(), options)


@pytest.fixture
def bundle(trained) -> Path:
    """The best bundle of that run."""
    return Path(trained[1].bundle)
