"""A small archive, drivers in processes of their own, and a Ray cluster of several nodes to break."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pytest

from hisem.archive.synthetic import SyntheticConfig, generate
from tests.conftest import S3Server

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

ROOT = Path(__file__).parents[2]
SETTINGS = """
model:
  backbone: {image_size: [32, 32], options: {channels: [8, 16, 24, 32], stem_width: 8}}
  bdam: {heads: 2}
  hasd: {hidden: 32, dropout: 0.1, moe: {hidden: 16}}
  decoder: {heads: 2, dropout: 0.1}
training: {batch_size: 16, warmup_steps: 4}
"""


def command(script: str, *arguments: str) -> list[str]:
    """The command line of a pipeline, or of another script named from the project's root."""
    path = ROOT / script if "/" in script else ROOT / "pipelines" / script
    return [sys.executable, str(path), *arguments]


@dataclass
class Driver:
    """A training run in a process of its own."""

    process: subprocess.Popen[bytes]
    log: Path
    name: str
    tracking: str

    def wait_for(self, pattern: str, seconds: float = 240, after: int = 0) -> re.Match[str]:
        """Wait until the output, from character `after` on, matches."""
        until = time.monotonic() + seconds
        while not (found := re.compile(pattern).search(self.log.read_text(), after)):
            assert self.process.poll() is None, f"ended early:\n{self.log.read_text()}"
            assert time.monotonic() < until, f"{pattern} not seen:\n{self.log.read_text()}"
            time.sleep(0.1)
        return found

    def end(self, seconds: float = 400) -> str:
        """Wait for a good end; what it printed."""
        code = self.process.wait(timeout=seconds)
        text = self.log.read_text()
        assert code == 0, text
        return text

    def kill(self) -> None:
        """SIGKILL to the driver and all that it started itself."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def losses(self) -> list[float]:
        """The training loss of each epoch, as MLflow has it."""
        client = mlflow.MlflowClient(tracking_uri=self.tracking)
        experiment = client.get_experiment_by_name("hisem")
        assert experiment is not None
        (run,) = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{self.name}'")
        points = {point.step: point.value for point in client.get_metric_history(run.info.run_id, "train_loss")}
        assert sorted(points) == list(range(1, len(points) + 1))
        return [points[step] for step in sorted(points)]


Start = Callable[..., Driver]


@pytest.fixture(scope="session")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Shards of 6 synthetic scene pairs of 8 x 8 tiles of 32 pixels, 256 of them to train on."""
    folder = tmp_path_factory.mktemp("tiles")
    generate(
        SyntheticConfig(scenes=6, tile_size=32, scene_tiles=8, val_share=0.17, test_share=0.17), folder / "archive"
    )
    catalogue, references = (str(folder / "archive" / f"{name}.parquet") for name in ("catalogue", "references"))
    shards = str(folder / "shards")
    flags = ["--catalog", catalogue, "--references", references, "--output", shards, "--tile-size", "32"]
    subprocess.run(command("tile.py", *flags), check=True)
    return shards


@pytest.fixture
def start(tiles: str, tmp_path: Path) -> Iterator[Start]:
    """Start `train.py` or another script with more flags and variables; what still runs at the end is killed."""
    started: list[Driver] = []
    (tmp_path / "settings.yaml").write_text(SETTINGS)
    environment = {**os.environ, "HISEM_STORAGE": str(tmp_path / "storage"), "PYTHONPATH": str(ROOT)}

    def go(name: str, *flags: str, script: str = "train.py", **variables: str) -> Driver:
        log = tmp_path / f"{len(started)}.log"
        arguments = ["--data", tiles, "--config", str(tmp_path / "settings.yaml"), "--name", name, *flags]
        with log.open("wb") as out:
            process = subprocess.Popen(
                command(script, *arguments),
                env={**environment, **variables},
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        started.append(Driver(process, log, name, f"sqlite:///{tmp_path / 'storage' / 'mlflow.db'}"))
        return started[-1]

    yield go
    for driver in started:
        if driver.process.poll() is None:
            driver.kill()


@pytest.fixture(scope="module")
def nodes(s3_server: S3Server) -> Iterator[Cluster]:
    """A cluster of a head with one CPU, whose nodes know the S3 server; each test adds the nodes that it needs."""
    variables = {
        "RAY_AUTH_MODE": "disabled",
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_failure_threshold": "3",
    }
    from ray.cluster_utils import Cluster

    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    head = {"num_cpus": 1, "object_store_memory": 150 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    cluster.shutdown()
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@pytest.fixture
def add_node(nodes: Cluster) -> Iterator[Callable[[], Any]]:
    """Add a node of two CPUs; all are gone after the test."""
    added: list[Any] = []

    def add() -> Any:
        added.append(nodes.add_node(num_cpus=2, object_store_memory=150 * 2**20))
        return added[-1]

    yield add
    for node in added:
        if node in nodes.worker_nodes:
            nodes.remove_node(node)
