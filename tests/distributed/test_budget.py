"""What a cluster can give at most, from what its autoscaler is configured with."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from hisem.distributed import budget, session
from hisem.errors import ResourceError

CONFIG: dict[str, Any] = {
    "max_workers": 5,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 1}, "max_workers": 0},
        "small": {"resources": {"CPU": 4}, "max_workers": 4},
        "large": {"resources": {"CPU": 16, "GPU": 2}, "max_workers": 2},
    },
}

COMMANDS = ("setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray", "initialization")
FAKE_CLUSTER: dict[str, Any] = {
    "cluster_name": "fake",
    "provider": {"type": "fake_multinode"},
    "max_workers": 3,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 4},
    },
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": 1,
    "file_mounts_sync_continuously": False,
    "file_mounts": {},
    "auth": {},
    "cluster_synced_files": [],
    "rsync_exclude": [],
    "rsync_filter": [],
    **{f"{name}_commands": [] for name in COMMANDS},
}


def test_the_maximum_counts_as_many_workers_as_the_whole_cluster_allows() -> None:
    assert budget.maximum(CONFIG) == {"CPU": 1 + 2 * 16 + 3 * 4, "GPU": 2 * 2}
    assert budget.maximum({**CONFIG, "max_workers": 1}) == {"CPU": 17, "GPU": 2}
    unlimited = {**CONFIG["available_node_types"], "small": {"resources": {"CPU": 4}}}
    assert budget.maximum({**CONFIG, "available_node_types": unlimited})["CPU"] == 1 + 2 * 16 + 3 * 4


def test_the_configuration_is_that_of_the_monitor_of_this_cluster() -> None:
    monitor = ["python", "-u", "/ray/autoscaler/_private/monitor.py", "--gcs-address=10.0.0.1:6379"]
    other = ["python", "/ray/autoscaler/v2/monitor.py", "--gcs-address=10.0.0.1:1", "--autoscaling-config=/no.yaml"]
    mine = [*monitor, "--autoscaling-config=~/my=own.yaml"]
    assert budget._config_path([[], other, mine], "10.0.0.1:6379") == "~/my=own.yaml"
    assert budget._config_path([other, monitor, ["cat", "monitor.py"]], "10.0.0.1:6379") is None


def group(cpus: str, **fields: Any) -> dict[str, Any]:
    """A group of a RayCluster whose pods have so many CPUs."""
    container = {"name": "ray", "resources": {"limits": {"cpu": cpus, "memory": "4Gi"}}}
    return {"rayStartParams": {}, "template": {"spec": {"containers": [container]}}, **fields}


CLUSTER: dict[str, Any] = {
    "metadata": {"name": "archive", "namespace": "night"},
    "spec": {
        "enableInTreeAutoscaling": True,
        "headGroupSpec": {**group("2"), "rayStartParams": {"num-cpus": "0"}},
        "workerGroupSpecs": [group("8", groupName="spot", replicas=0, minReplicas=0, maxReplicas=6)],
    },
}


@pytest.mark.parametrize(
    ("autoscaling", "status", "expected"), [(True, 200, 48.0), (False, 200, None), (True, 403, None)]
)
def test_a_pod_reads_the_limits_of_its_ray_cluster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, autoscaling: bool, status: int, expected: float | None
) -> None:
    asked = []

    def get(url: str, **_: Any) -> requests.Response:
        asked.append(url)
        answer = requests.Response()
        answer.status_code = status
        spec = {**CLUSTER["spec"], "enableInTreeAutoscaling": autoscaling}
        answer._content = json.dumps({**CLUSTER, "spec": spec}).encode()
        return answer

    (tmp_path / "namespace").write_text("night\n")
    monkeypatch.setattr(budget, "NAMESPACE", tmp_path / "namespace")
    monkeypatch.setenv("RAY_CLUSTER_NAME", "archive")
    monkeypatch.setattr("ray.autoscaler._private.kuberay.node_provider.load_k8s_secrets", lambda: ({}, "", None))
    monkeypatch.setattr(requests, "get", get)
    config = budget._kuberay_config()
    assert asked[0].endswith("/namespaces/night/rayclusters/archive")
    assert (None if config is None else budget.maximum(config)["CPU"]) == expected
    monkeypatch.delenv("RAY_CLUSTER_NAME")
    assert budget._kuberay_config() is None


@pytest.mark.parametrize(("now", "told"), [(2.0, "has 2: 4 are missing"), (0.0, "may start 2: 4 are missing")])
def test_what_would_hang_ends_with_the_missing_numbers(monkeypatch: pytest.MonkeyPatch, now: float, told: str) -> None:
    monkeypatch.setattr(budget, "present", lambda: {"CPU": now, "GPU": 0.0})
    monkeypatch.setattr(budget, "most", lambda: {"CPU": 2.0, "GPU": 0.0})
    session.require(2, 0, "tiling", "Grow.")
    with pytest.raises(ResourceError, match=rf"^tiling needs 6 CPUs, .*{told}\. Grow\.$"):
        session.require(6, 0, "tiling", "Grow.")


@pytest.fixture
def autoscaling_head(tmp_path: Path) -> Iterator[str]:
    """The address of a Ray with one CPU and an autoscaler that may start three nodes of two."""
    (tmp_path / "cluster.json").write_text(json.dumps(FAKE_CLUSTER))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    flags = f"--head --block --port={port} --num-cpus=1 --object-store-memory=100000000 --include-dashboard=false"
    command = [
        str(Path(sys.executable).with_name("ray")),
        "start",
        *flags.split(),
        f"--autoscaling-config={tmp_path}/cluster.json",
    ]
    environment = {**os.environ, "RAY_FAKE_CLUSTER": "1", "RAY_AUTH_MODE": "disabled"}
    with (tmp_path / "log").open("wb") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        head.terminate()
        head.wait(timeout=60)


ASK = """
import json, time
from hisem.distributed import budget, session
from hisem.errors import ResourceError
until = time.monotonic() + 60
while True:
    try:
        with session.cluster():
            print(json.dumps([budget.present()["CPU"], budget.most()["CPU"]]))
        break
    except ResourceError:
        if time.monotonic() > until:
            raise
        time.sleep(1)
"""


@pytest.mark.slow
def test_a_real_autoscaler_counts_with_what_it_may_start(autoscaling_head: str) -> None:
    environment = {**os.environ, "RAY_ADDRESS": autoscaling_head, "RAY_AUTH_MODE": "disabled"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [1.0, 7.0]
