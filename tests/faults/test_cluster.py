"""A run on a cluster that fails: what dies is replaced, and the run ends as it would have."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from hisem.archive.catalogue import read_catalogue
from hisem.archive.index import index_pair
from tests.conftest import S3Server
from tests.distributed.conftest import TILE
from tests.faults.conftest import Driver, Start
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


def require_all_epochs(driver: Driver, count: int = 4) -> None:
    assert len(driver.losses()) == count
    assert driver.losses()[-1] < driver.losses()[0]


def test_a_killed_worker_changes_nothing(on_cluster: Start, add_node: AddNode) -> None:
    add_node()
    add_node()
    inside = ("--checkpoint-minutes", "0.03")  # checkpoints inside epochs, too
    whole = on_cluster("whole", *RUN, *inside)
    whole.end()
    broken = on_cluster("broken", *RUN, *inside)
    broken.wait_for("epoch 2 done")
    os.kill(train_workers()[0], signal.SIGKILL)
    broken.wait_for(r"worker \d: .*start anew from the latest checkpoint \(failure 1 of at most 5")
    broken.end()
    assert broken.losses() == pytest.approx(whole.losses(), abs=1e-4)


def test_a_lost_node_is_waited_for_and_replaced(nodes: Cluster, on_cluster: Start, add_node: AddNode) -> None:
    lost = [add_node(), add_node()]
    driver = on_cluster("fixed", *RUN, "--cpus-per-worker", "1.5")
    driver.wait_for("epoch 2 done")
    nodes.remove_node(node_with_worker(lost), allow_graceful=False)
    driver.wait_for(r"waiting for 2 worker\(s\) of 1.5 CPUs each to start; free are \S+ of 3 CPUs")
    add_node()
    driver.end()
    require_all_epochs(driver)


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
    require_all_epochs(driver)


def test_a_drained_node_is_left_with_a_checkpoint(nodes: Cluster, on_cluster: Start, add_node: AddNode) -> None:
    there = [add_node(), add_node()]
    driver = on_cluster("drained", *RUN, "--cpus-per-worker", "1.5", "--training.batch_size", "4")
    driver.wait_for("epoch 1 done")
    driver.wait_for(r"epoch 2/4  step \d+/64")
    leaving = node_with_worker(there)
    accepted, refusal = GcsClient(address=nodes.address).drain_node(
        leaving.node_id,
        autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
        "spot capacity is reclaimed",
        int((time.time() + 120) * 1000),
    )
    assert accepted, refusal
    add_node()
    told = driver.wait_for("a node is about to be taken away: a checkpoint is written")
    gone_on = driver.wait_for(r"2 worker.s. start (?:after step (\d+) of|at) epoch (\d+)", after=told.end())
    nodes.remove_node(leaving, allow_graceful=False)
    steps = re.findall(r"epoch (\d+)/4  step (\d+)/64", driver.log.read_text()[: told.start()])
    last = max((int(epoch), int(step)) for epoch, step in steps)
    assert (int(gone_on[2]), int(gone_on[1] or 0)) >= last  # what was done is in the checkpoint
    driver.end()
    require_all_epochs(driver)


def test_a_storage_that_refuses_for_a_while_is_tried_again(
    on_cluster: Start, add_node: AddNode, s3_server: S3Server, bucket: str
) -> None:
    add_node()
    add_node()
    driver = on_cluster("patient", *RUN, "--storage", f"{bucket}/runs")
    driver.wait_for("epoch 2 done")
    s3_server.fail("/runs/patient/", 503)
    driver.wait_for(r"s3://.*The server is failing: try again later\. Trying again in \d+ s, for \d+ s more")
    s3_server.work()
    text = driver.end()
    assert "start anew" not in text
    require_all_epochs(driver)


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


def test_too_little_is_told_with_the_numbers(on_cluster: Start, add_node: AddNode, tmp_path: Path) -> None:
    add_node()
    add_node()
    drivers = {  # each with an MLflow store of its own: one that two drivers make at once is damaged
        name: on_cluster(name, *RUN, *flags, HISEM_STORAGE=str(tmp_path / name))
        for name, (flags, _) in TOO_LITTLE.items()
    }
    for name, (_, told) in TOO_LITTLE.items():
        # One alone says so in 20 s; these share two cores.
        assert drivers[name].process.wait(120) == 1
        assert re.search(told, drivers[name].log.read_text())
