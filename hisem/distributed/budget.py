"""What a cluster can give: now, and at most once its autoscaler has started all the nodes it may.

Ray tells its autoscaler's maximum nowhere in public (2.60): the GCS holds it on managed platforms only, and
otherwise it lies where the autoscaler itself reads it. What is private in Ray is called here, in `ray_output.py` and in
`deaths.py` alone.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ray
import yaml

log = logging.getLogger(__name__)

NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
"""Where a pod reads its namespace."""

KINDS = ("CPU", "GPU")


def present() -> dict[str, float]:
    """CPUs and GPUs of the nodes that the cluster has now."""
    return sizes(ray.cluster_resources())


def sizes(resources: Mapping[str, float]) -> dict[str, float]:
    """CPUs and GPUs of what Ray calls resources, 0 where it names none."""
    return {kind: float(resources.get(kind, 0)) for kind in KINDS}


def places_for(cpu: float, gpu: float) -> int:
    """How many processes of `cpu` and `gpu` each the nodes that are there could run at once."""
    nodes = [sizes(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    return sum(
        int(min(node[kind] / each + 1e-9 for kind, each in (("CPU", cpu), ("GPU", gpu)) if each)) for node in nodes
    )


def most() -> dict[str, float]:
    """CPUs and GPUs of the cluster with all nodes that its autoscaler may start; without one, `present()`.

    The autoscaler's limits are known to a driver on the head node, where a submitted job runs.
    """
    limits = _reported() or _configured() or {}
    return {kind: max(now, limits.get(kind, 0.0)) for kind, now in present().items()}


def _reported() -> dict[str, float] | None:
    """The maximum in the GCS, which Ray Train and Ray Data look up in the same way."""
    from ray._private.state import state

    return state.get_max_resources_from_cluster_config()


def _configured() -> dict[str, float] | None:
    """The maximum by the autoscaler's own configuration: a file beside the head, or the RayCluster of a pod."""
    config = _config_file() or _kuberay_config()
    return None if config is None else maximum(config)


def maximum(config: Mapping[str, Any]) -> dict[str, float]:
    """CPUs and GPUs of a cluster of this autoscaling configuration at its largest, for each kind by itself.

    That is the head, and of the workers, each type up to its own `max_workers`, as many as the whole cluster's
    `max_workers` allows, those with most of the kind first.
    """
    types, head, limit = config["available_node_types"], config["head_node_type"], config.get("max_workers", 0)
    whole = {}
    for kind in KINDS:
        amount = {name: float(node.get("resources", {}).get(kind, 0)) for name, node in types.items()}
        workers = [
            amount[name]
            for name, node in types.items()
            if name != head
            for _ in range(min(limit, node.get("max_workers", limit)))
        ]
        whole[kind] = amount[head] + sum(sorted(workers, reverse=True)[:limit])
    return whole


def _config_file() -> dict[str, Any] | None:
    """The file that the autoscaler of this cluster, if it runs on this machine, was started with."""
    import psutil  # type: ignore[import-untyped]  # Ray brings its own, once it is imported

    address = ray.get_runtime_context().gcs_address
    commands = (process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"]))
    path = _config_path(commands, address)
    if path is None:
        return None
    try:
        return yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        log.warning("%s: the autoscaler's configuration cannot be read (%s); the nodes of now count", path, error)
        return None


def _config_path(commands: Iterable[list[str]], address: str) -> str | None:
    """The `--autoscaling-config` of the monitor of the GCS at `address`, among command lines."""
    for command in commands:
        if f"--gcs-address={address}" in command and any(word.endswith("/monitor.py") for word in command):
            for word in command:
                if word.startswith("--autoscaling-config="):
                    return word.partition("=")[2]
    return None


def _kuberay_config() -> dict[str, Any] | None:
    """What the RayCluster that this pod is of means as an autoscaling configuration; None without autoscaler.

    KubeRay lets the head's service account read it where the cluster has an autoscaler.
    """
    name = os.environ.get("RAY_CLUSTER_NAME")
    if not name or not NAMESPACE.exists():
        return None
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient

    try:
        cluster = KubernetesHttpApiClient(NAMESPACE.read_text(encoding="utf-8").strip()).get(f"rayclusters/{name}")
    except (OSError, json.JSONDecodeError) as error:  # requests' errors are OSErrors
        log.warning("RayCluster %s cannot be read (%s); the nodes of now count", name, error)
        return None
    if not cluster["spec"].get("enableInTreeAutoscaling"):
        return None
    return _derive_autoscaling_config_from_ray_cr(cluster)
