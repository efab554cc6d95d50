"""What a user does on a cluster: start it, submit the jobs, follow their logs; and a node is killed on the way."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from cluster.local import Cluster, descendants
from hisem import HiSem
from hisem.archive.catalogue import read_catalogue, write_catalogue
from tests.faults.conftest import ROOT, SETTINGS, Driver

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]


@dataclass
class Local:
    """A cluster that `cluster/local.py` has started: a head, and two workers of one CPU each."""

    folder: Path
    """Of its state, the storage of the jobs, and their logs."""
    variables: dict[str, str]
    """What it told the shell."""

    @property
    def state(self) -> Cluster:
        found = Cluster.read(self.folder / "cluster")
        assert found is not None
        return found

    def environment(self) -> dict[str, str]:
        return {**{key: value for key, value in os.environ.items() if key != "RAY_AUTH_TOKEN"}, **self.variables}

    def submit(self, name: str, *entrypoint: str) -> Driver:
        """`ray job submit`, which follows the logs of the job."""
        log = self.folder / f"{name}.log"
        command = [*RAY, "job", "submit", "--submission-id", name, "--working-dir", ".", "--", *entrypoint]
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, cwd=ROOT, env=self.environment(), stdout=out, stderr=out, start_new_session=True
            )
        return Driver(process, log, name, f"sqlite:///{self.folder}/storage/mlflow.db")

    def ask(self, path: str, token: str | None = None, body: bytes | None = None) -> Any:
        """What the job server answers; with the right token unless another is given. With a body it is a POST."""
        known = Path(self.variables["RAY_AUTH_TOKEN_PATH"]).read_text()
        headers = {"Authorization": f"Bearer {known if token is None else token}"} if token != "" else {}
        request = urllib.request.Request(self.variables["RAY_API_SERVER_ADDRESS"] + path, body, headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def job(self, name: str) -> tuple[str, int | None]:
        """Its status and exit code."""
        told = self.ask(f"/api/jobs/{name}")
        return told["status"], told["driver_exit_code"]

    def client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(tracking_uri=f"sqlite:///{self.folder}/storage/mlflow.db")

    def runs(self) -> dict[str, Any]:
        """All MLflow runs by name."""
        client = self.client()
        experiment = client.get_experiment_by_name("hisem")
        assert experiment is not None
        return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def local_command(action: str, folder: Path, *flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "cluster/local.py", action, "--folder", str(folder / "cluster"), *flags]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, check=False, timeout=500
    )


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    folder = tmp_path_factory.mktemp("local")
    (folder / "settings.yaml").write_text(SETTINGS)
    flags = ("--workers", "2", "--cpus-per-worker", "1")
    quick = {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3"}
    everything: set[psutil.Process] = set()
    try:
        done = local_command("start", folder, *flags, HISEM_STORAGE=str(folder / "storage"), **quick)
        assert done.returncode == 0, done.stderr
        told = dict(re.findall(r"^export (RAY_\w+)=(.*)$", done.stdout, re.MULTILINE))
        cluster = Local(folder, {name: shlex.split(value)[0] for name, value in told.items()})
        nodes = [process for name in cluster.state.names for process in cluster.state.processes(name)]
        everything = {below for node in nodes for below in (node, *descendants(node))}
        files = Path(cluster.state.files)
        yield cluster
    finally:
        ended = local_command("stop", folder)
    assert ended.returncode == 0, ended.stderr
    assert len(everything) > 10
    assert not [process for process in everything if process.is_running()]
    assert not files.exists()


@pytest.fixture(scope="module")
def trained(local: Local, tiles: str) -> Driver:
    """A training job that was stopped, and then the same command again, which has ended."""
    first = local.submit("stopped", *train(local, tiles, "first"))
    first.wait_for("epoch 1 done")  # its log comes while it works
    # What `ray job stop` sends: starting that command takes as long as the epochs that are left.
    assert local.ask("/api/jobs/stopped/stop", body=b"") == {"stopped": True}
    first.process.wait(60)
    assert local.job("stopped")[0] == "STOPPED"
    assert local.runs()["first"].info.status == "KILLED"
    job = local.submit("train", *train(local, tiles, "first"))
    assert "epoch 1 done" not in job.end()
    return job


def titled(process: psutil.Process) -> str:
    """A process's command line; empty where it has ended."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def train(local: Local, tiles: str, name: str, *flags: str) -> list[str]:
    given = ["--data", tiles, "--config", f"{local.folder}/settings.yaml", "--name", name]
    return ["python", "pipelines/train.py", *given, "--training.epochs", "3", *flags]


def test_status_tells_the_nodes_and_nobody_gets_in_without_the_token(local: Local) -> None:
    told = local_command("status", local.folder)
    assert told.returncode == 0
    assert told.stderr.split("\n")[:3] == ["head is up", "worker-1 is up", "worker-2 is up"]
    assert f"RAY_AUTH_TOKEN_PATH={local.folder}/cluster/token" in told.stdout
    again = local_command("start", local.folder)
    assert again.returncode == 1
    assert "running already" in again.stderr
    for wrong, code in (("", 401), ("0" * 64, 403)):
        with pytest.raises(urllib.error.HTTPError, match=str(code)):
            local.ask("/api/jobs/", token=wrong)
    assert isinstance(local.ask("/api/jobs/"), list)


def test_a_training_job(local: Local, trained: Driver) -> None:
    assert local.job("train") == ("SUCCEEDED", 0)
    model = HiSem.from_pretrained(local.folder / "storage" / "first" / "bundle")
    assert model.config.hasd.moe.experts > 1
    run = local.runs()["first"]
    assert run.info.status == "FINISHED"
    assert 0 <= run.data.metrics["val_bleu_4"] <= 1
    assert {point.step for point in local.client().get_metric_history(run.info.run_id, "train_loss")} == {1, 2, 3}


def test_a_sweep(local: Local, tiles: str, trained: Driver) -> None:
    flags = ["--data", tiles, "--config", f"{local.folder}/settings.yaml", "--samples", "1", "--epochs", "1"]
    local.submit("sweep", "python", "tune/sweep.py", *flags).end()
    assert local.job("sweep") == ("SUCCEEDED", 0)
    rows = pq.read_table(local.folder / "storage" / "sweep" / "trials.parquet").to_pylist()
    assert [row["status"] for row in rows] == ["finished"]
    assert (rows[0]["metrics"].get("s_m") is not None) == (shutil.which("java") is not None)
    assert (local.folder / "storage" / "sweep" / "best.yaml").exists()
    assert {run.info.status for run in local.runs().values()} == {"FINISHED"}


def test_a_folder_that_another_node_does_not_see_is_refused(local: Local, tiles: str, tmp_path: Path) -> None:
    private = ["unshare", "-m", "mount", "-t", "tmpfs", "none", str(tmp_path)]
    if not shutil.which("unshare") or subprocess.run(private, capture_output=True, check=False).returncode:
        pytest.skip("a node with a mount of its own takes `unshare -m`, for which this user has no right")
    hidden = local.folder / "hidden"
    hidden.mkdir()
    state = local.state
    flags = [
        f"--address=127.0.0.1:{state.port}",
        "--num-cpus=1",
        f"--temp-dir={state.files}/blind",
        "--node-name=blind",
    ]
    flags += ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
    start = shlex.join([*RAY, "start", "--block", "--object-store-memory=100000000", *flags])
    log = tmp_path / "blind.log"
    with log.open("wb") as out:
        blind = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", f"mount -t tmpfs none {hidden} && exec {start}"],
            env={**local.environment(), "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"},
            stdout=out,
            stderr=out,
        )
    try:
        Driver(blind, log, "blind", "").wait_for("Ray runtime started", 60)
        job = local.submit("unseen", *train(local, tiles, "unseen", "--storage", str(hidden)))
        assert job.process.wait(120) == 1
    finally:
        below = psutil.Process(blind.pid).children(recursive=True)
        blind.terminate()
        blind.wait(30)
        psutil.wait_procs(below, timeout=10)
    text = job.log.read_text()
    assert local.job("unseen") == ("FAILED", 1)
    assert f"error: {hidden}/unseen: this node sees it, but blind (" in text
    assert "worker-" not in text.partition("error: ")[2].partition("\n")[0]
    assert "epoch 1" not in text
    assert not list(hidden.rglob("*.marker"))
    assert local.runs()["unseen"].info.status == "FAILED"


def test_a_night_whose_node_is_killed(local: Local, tiles: str, trained: Driver) -> None:
    catalogue = read_catalogue(str(Path(tiles).parent / "archive" / "catalogue.parquet"))
    rows = catalogue.to_pylist()
    rows[0]["after"] = [str(local.folder / "nowhere.tif")]
    path = f"{local.folder}/catalogue.parquet"
    write_catalogue(catalogue.from_pylist(rows, schema=catalogue.schema), path)
    flags = ["--catalog", path, "--model", "models:/hisem-demo@champion", "--tile-size", "32", "--beam", "3"]
    job = local.submit("night", "python", "pipelines/caption.py", *flags, "--batch-size", "1")
    (start,) = local.state.processes("worker-2")[:1]
    raylet = next(below for below in start.children() if "raylet" in below.name())
    until = time.monotonic() + 120
    while not any("ReadingActor" in titled(below) for below in raylet.children()):
        assert time.monotonic() < until, job.log.read_text()
        time.sleep(0.2)
    raylet.kill()
    assert job.process.wait(200) == 1  # of `ray job submit` for any job that fails
    assert local.job("night") == ("FAILED", 3), job.log.read_text()  # done, with failed rows
    table = ds.dataset(local.folder / "storage" / "table" / "captions", partitioning="hive").to_table()
    tiles_of = Counter(table.column("tile_id").to_pylist())
    assert set(tiles_of.values()) == {1}
    assert len(tiles_of) == 5 * 64 + 1
    statuses = Counter(table.column("status").to_pylist())
    assert statuses["failed"] == 1
    assert statuses["ok"] > 5 * 64 - 10  # a few are nodata, and skipped
    (night,) = [run for name, run in local.runs().items() if name.startswith("captions ")]
    assert night.info.status == "FINISHED"
    assert night.data.metrics["rows_ok"] == statuses["ok"]
    assert local_command("status", local.folder).returncode == 1
