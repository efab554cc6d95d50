"""A run on a cluster that fails: what dies is replaced, and the run ends as it would have."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from hisem.archive.catalogue import read_catalogue
from hisem.archive.index import index_pair
from tests.conftest import S3Server
from tests.distributed.conftest import TILE
from tests.faults.conftest import Start
from tests.faults.kill_captioning import Kills, lose_node, make_inputs, rows_of
from tests.faults.processes import processes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
RUN = ("--training.epochs", "4", "--workers", "2")
AddNode = Callable[[], Any]


def train_workers(parent: int | None = None) -> list[int]:
    """Numbers of the processes that train, of all or of one parent."""
    return processes(r"RayTrainWorker", parent)


def node_with_worker(nodes: list[Any]) -> Any:
    """A node that runs a worker, which its raylet has started."""
    return next(node for node in nodes if train_workers(node.all_processes["raylet"][0].process.pid))


@pytest.fixture
def on_cluster(nodes: Cluster, start: Start) -> Start:
    """Start a run on the cluster."""
    return lambda name, *flags, **variables: start(
        name, *flags, RAY_ADDRESS=nodes.address, RAY_AUTH_MODE="disabled", **variables
    )


@pytest.mark.timeout(1800)  # seven starts of a run
def test_a_run_to_which_everything_happens_learns_as_an_undisturbed_one(
    nodes: Cluster, on_cluster: Start, add_node: AddNode, s3_server: S3Server, bucket: str
) -> None:
    """One run after the other, since most of its time a run starts: each failure is waited for before the next."""
    there = [add_node(), add_node()]
    # Steps enough for the next failure to come in time, and checkpoints inside epochs, too.
    steps = ("--training.epochs", "6", "--training.batch_size", "8", "--checkpoint-minutes", "0.03")
    flags = (*steps, "--workers", "2", "--cpus-per-worker", "1.5")
    whole = on_cluster("whole", *flags)
    whole.end()

    broken = on_cluster("broken", *flags, "--storage", f"{bucket}/runs")
    broken.wait_for("epoch 1 done")
    os.kill(train_workers()[0], signal.SIGKILL)
    anew = broken.wait_for(r"worker \d: .*start anew from the latest checkpoint \(failure 1 of at most 5")
    broken.wait_for("epoch 2 done", after=anew.end())
    broken.kill()

    driver = on_cluster("broken", *flags, "--storage", f"{bucket}/runs")
    driver.wait_for(r"2 worker.s. start (?:after step \d+ of|at) epoch 3")
    driver.wait_for("epoch 3 done")
    lost = node_with_worker(there)
    nodes.remove_node(lost, allow_graceful=False)
    there.remove(lost)
    told = driver.wait_for(r"waiting for 2 worker\(s\) of 1.5 CPUs each to start; free are \S+ of 3 CPUs")
    there += [add_node(), add_node()]  # one of them for the next failure
    driver.wait_for("epoch 4 done", after=told.end())

    driver.wait_for(r"epoch 5/6  step \d+/32")
    leaving = node_with_worker(there)
    drain(nodes, leaving)
    told = driver.wait_for("a node is about to be taken away: a checkpoint is written")
    gone_on = driver.wait_for(r"2 worker.s. start (?:after step (\d+) of|at) epoch (\d+)", after=told.end())
    nodes.remove_node(leaving, allow_graceful=False)
    made = re.findall(r"epoch (\d+)/6  step (\d+)/32", driver.log.read_text()[: told.start()])
    last = max((int(epoch), int(step)) for epoch, step in made)
    assert (int(gone_on[2]), int(gone_on[1] or 0)) >= last  # what was done is in the checkpoint
    driver.wait_for("epoch 5 done", after=gone_on.end())

    s3_server.fail("/runs/broken/", 503)
    driver.wait_for(r"s3://.*The server is failing: try again later\. Trying again in \d+ s, for \d+ s more")
    s3_server.work()
    text = driver.end()
    assert "epoch 1 done" not in text
    assert "start anew" not in text[gone_on.end() :]
    assert driver.losses() == pytest.approx(whole.losses(), abs=1e-4)
    assert len(driver.losses()) == 6
    client = mlflow.MlflowClient(tracking_uri=driver.tracking)
    experiment = client.get_experiment_by_name("hisem")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "attributes.run_name = 'broken'")
    assert [run.info.status for run in runs] == ["FINISHED"]


def drain(nodes: Cluster, leaving: Any) -> None:
    """Say that a node is taken away in two minutes."""
    accepted, refusal = GcsClient(address=nodes.address).drain_node(
        leaving.node_id,
        autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
        "spot capacity is reclaimed",
        int((time.time() + 120) * 1000),
    )
    assert accepted, refusal


def test_an_elastic_run_goes_on_with_the_nodes_that_are_left(
    nodes: Cluster, on_cluster: Start, add_node: AddNode
) -> None:
    lost = [add_node(), add_node()]
    driver = on_cluster("elastic", *RUN, "--min-workers", "1", "--cpus-per-worker", "1.5")
    driver.wait_for("2 worker.s. start")
    driver.wait_for("epoch 2 done")
    nodes.remove_node(node_with_worker(lost), allow_graceful=False)
    driver.wait_for("1 worker.s. start")
    driver.end()
    assert len(driver.losses()) == 4
    assert driver.losses()[-1] < driver.losses()[0]


def test_captioning_goes_on_without_a_node_that_is_lost(nodes: Cluster, add_node: AddNode, tmp_path: Path) -> None:
    catalogue, bundle = make_inputs(tmp_path, scenes=3)
    add_node()
    add_node()
    variables = {"RAY_ADDRESS": nodes.address, "RAY_AUTH_MODE": "disabled"}
    # Three of the five CPUs caption, and three are left.
    kills = Kills(catalogue, bundle, tmp_path, variables, lambda: lose_node(nodes), captioners=3)
    output = str(tmp_path / "out")
    kills.kill(output, "node", 0)
    assert kills.counts["node"] == 1
    opened = read_catalogue(catalogue).slice(1).to_pylist()
    tiles = [tile for pair in opened for tile in index_pair(pair, TILE).column("tile_id").to_pylist()]
    assert len(tiles) == 2 * 64
    missing = read_catalogue(catalogue).to_pylist()[0]["pair_id"]
    assert sorted(row["tile_id"] for row in rows_of(output)) == sorted([*tiles, f"{missing}/pair"])


TOO_LITTLE = {
    "place": (("--cpus-per-worker", "4"), "no node with 4 CPUs|needs 9 CPUs, the cluster has 5: 4 are missing"),
    "cpus": (("--workers", "12", "--cpus-per-worker", "1"), "needs 13 CPUs, the cluster has 5: 8 are missing"),
    "gpus": (("--gpu",), "needs 2 GPUs, the cluster has 0: 2 are missing"),
}


@pytest.mark.timeout(900)
def test_too_little_is_told_with_the_numbers(on_cluster: Start, add_node: AddNode, tmp_path: Path) -> None:
    add_node()
    add_node()
    for name, (flags, told) in TOO_LITTLE.items():  # one after another: three that start at once share two cores
        driver = on_cluster(name, *RUN, *flags, HISEM_STORAGE=str(tmp_path / "store"))
        assert driver.process.wait(120) == 1
        assert re.search(told, driver.log.read_text())
