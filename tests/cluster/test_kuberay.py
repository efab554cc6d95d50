"""The files for Kubernetes: every field is one that exists, and what they say of each other and of HiSem is true."""

from __future__ import annotations

import copy
import importlib.util
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from hisem import cli
from hisem.distributed import budget
from hisem.training.options import parse_experiment
from tests.cluster.schemas import complaints, ray_start_flags

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "cluster" / "kuberay"
README = (ROOT / "README.md").read_text()
IN_IMAGE = "/home/ray/hisem/"

Object = dict[str, Any]

OBJECTS: dict[str, Object] = {
    f"{path.name}:{item['metadata']['name']}": item
    for path in sorted(FOLDER.iterdir())
    for item in yaml.safe_load_all(path.read_text())
}

VARIABLES = set(re.findall(r"\b[A-Z]+(?:_[A-Z0-9]+)+\b", README))
SIZES = {"cpu", "memory", "ephemeral-storage", "nvidia.com/gpu"}
NAMES = {
    "data": VARIABLES,
    "stringData": VARIABLES,
    "limits": SIZES,
    "requests": SIZES,
    "rayStartParams": {flag.removeprefix("--") for flag in ray_start_flags()},
    "nodeSelector": {"karpenter.sh/capacity-type"},
    "matchLabels": {"ray.io/is-ray-node", "kubernetes.io/metadata.name"},
}
"""Maps whose keys no schema knows, with the keys that they may have."""


def of_kind(*kinds: str) -> list[Object]:
    return [item for item in OBJECTS.values() if item["kind"] in kinds]


def walk(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every value below `node` with the way to it."""
    inside = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in inside:
        yield (*path, key), value
        yield from walk(value, (*path, key))


def values(node: Any, name: str) -> list[Any]:
    """The values of all fields of that name."""
    return [value for path, value in walk(node) if path[-1] == name]


def wrong(item: Object) -> list[str]:
    """Fields, variables, flags of Ray and labels in `item` that do not exist."""
    strangers = [
        f"{'.'.join(map(str, path))}: not one of {', '.join(sorted(NAMES[path[-2]]))}"
        for path, _ in walk(item)
        if len(path) > 1 and path[-2] in NAMES and path[-1] not in NAMES[path[-2]]
    ]
    return complaints(item) + strangers


def renamed(item: Object, path: tuple[Any, ...]) -> Object:
    """A copy of `item` in which the last key of `path` is misspelt."""
    copied = copy.deepcopy(item)
    parent = copied
    for key in path[:-1]:
        parent = parent[key]
    parent[f"{path[-1]}s"] = parent.pop(path[-1])
    return copied


@pytest.mark.parametrize("item", OBJECTS.values(), ids=OBJECTS)
def test_every_field_exists(item: Object) -> None:
    assert wrong(item) == []


@pytest.mark.parametrize("item", OBJECTS.values(), ids=OBJECTS)
def test_a_misspelt_key_is_refused_wherever_it_stands(item: Object) -> None:
    keys = [path for path, _ in walk(item) if isinstance(path[-1], str)]
    unseen = [".".join(map(str, path)) for path in keys if not wrong(renamed(item, path))]
    assert len(keys) > 5
    assert unseen == []


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("RayCluster", ("authOptions", "mode"), "tokens"),
        ("RayCluster", ("autoscalerOptions", "version"), "v3"),
        ("RayCluster", ("workerGroupSpecs", 0, "maxReplicas"), "8"),
        ("RayCluster", ("headGroupSpec", "rayStartParams", "num-cpus"), 0),
        ("RayJob", ("submissionMode",), "K8SJobMode"),
        ("RayJob", ("backoffLimit",), -1),
        ("CronJob", ("jobTemplate", "spec", "backoffLimit"), "4"),
        ("CronJob", ("jobTemplate", "spec", "template", "spec", "containers", 0, "args"), "python"),
    ],
)
def test_a_wrong_value_is_refused(kind: str, path: tuple[Any, ...], value: Any) -> None:
    item = copy.deepcopy(of_kind(kind)[0])
    parent = item["spec"]
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    assert any(str(path[-1]) in complaint or str(value) in complaint for complaint in complaints(item))


def test_a_missing_field_and_an_unknown_kind_are_refused() -> None:
    (cluster,) = of_kind("RayCluster")
    assert wrong({**cluster, "spec": {}}) == ["spec: 'headGroupSpec' is a required property"]
    assert wrong({**cluster, "apiVersion": "ray.io/v1alpha1"}) == [
        "ray.io/v1alpha1 RayCluster: Kubernetes 1.34.0 has no such kind."
    ]


def clusters() -> dict[str, Object]:
    """The spec of each Ray cluster, by the name of what holds it."""
    found = {item["metadata"]["name"]: item["spec"] for item in of_kind("RayCluster")}
    return found | {item["metadata"]["name"]: item["spec"]["rayClusterSpec"] for item in of_kind("RayJob")}


KINDS = {
    "jobTemplate": "submit",
    "submitterPodTemplate": "submit",
    "headGroupSpec": "head",
    "workerGroupSpecs": "worker",
}


def pods() -> list[tuple[str, Object]]:
    """Every pod's spec, wherever one stands, with what it is: head, worker or submit."""
    found = [
        (path, value) for path, value in walk(list(OBJECTS.values())) if path[-1] == "spec" and "containers" in value
    ]
    return [(next(KINDS[key] for key in path if key in KINDS), spec) for path, spec in found]


def containers() -> list[tuple[Object, Object]]:
    """Every container with the spec of its pod; the autoscaler's is one that KubeRay adds to the head's."""
    found = [(container, pod) for _, pod in pods() for container in pod["containers"]]
    return found + [
        (spec["autoscalerOptions"], spec["headGroupSpec"]["template"]["spec"]) for spec in clusters().values()
    ]


def test_what_is_referred_to_is_there() -> None:
    settings = {item["metadata"]["name"] for item in of_kind("ConfigMap")}
    secrets = {item["metadata"]["name"]: set(item["stringData"]) for item in of_kind("Secret")}
    everything = list(OBJECTS.values())
    assert {reference["name"] for reference in values(everything, "configMapRef")} == settings
    assert {reference["name"] for reference in values(everything, "secretRef")} == set(secrets)
    assert all(reference["optional"] for reference in values(everything, "secretRef"))
    # KubeRay's own Secret with the token has the name of the cluster.
    (cluster,) = of_kind("RayCluster")
    name = cluster["metadata"]["name"]
    assert values(everything, "secretKeyRef") == [{"name": name, "key": "auth_token"}]
    (night,) = of_kind("CronJob")
    assert {"name": "RAY_API_SERVER_ADDRESS", "value": f"http://{name}-head-svc:8265"} in values(night, "env")[0]
    for secret, keys in secrets.items():
        (command,) = re.findall(rf"create secret generic {secret} ((?:.*\\\n)*.*)", README)
        assert set(re.findall(r"--from-literal=(\w+)=", command)) == keys


def test_no_secret_has_a_value() -> None:
    assert {value for item in of_kind("Secret") for value in item["stringData"].values()} == {""}


def test_images_are_to_be_set_and_fit_the_node() -> None:
    for kind, pod in pods():
        (container,) = pod["containers"]
        gpu = "nvidia.com/gpu" in container["resources"]["limits"]
        assert container["image"] == ("HISEM_GPU_IMAGE" if gpu else "HISEM_IMAGE"), kind
        assert f"s|{container['image']}|" in README
    pinned = dict(re.findall(r"(?m)^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text()))
    assert {spec["rayVersion"] for spec in clusters().values()} == {pinned["ray"]}


def test_each_job_and_cluster_has_the_pods_that_it_makes() -> None:
    made = {
        "RayCluster": {"head": 1, "worker": 2},
        "RayJob": {"head": 1, "worker": 1, "submit": 1},
        "CronJob": {"submit": 1},
    }
    expected = sum((Counter(made.get(item["kind"], {})) for item in OBJECTS.values()), Counter())
    assert Counter(kind for kind, _ in pods()) == expected
    for job in of_kind("RayJob"):
        assert job["spec"]["submissionMode"] == "K8sJobMode"  # of another mode the template would not count


def test_containers_are_confined() -> None:
    for container, pod in containers():
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        limits, requests = container["resources"]["limits"], container["resources"]["requests"]
        for kind in ("memory", "ephemeral-storage"):
            assert limits[kind] == requests[kind]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert all(set(volume) == {"name", "emptyDir"} for volume in volumes.values())
        assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/tmp", "/home/ray/.cache"}
        assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)


def covers(rule: Object, address: str) -> bool:
    """True if a rule of egress lets packets to `address`, of no pod, pass."""
    blocks = [peer["ipBlock"] for peer in rule.get("to", [{"ipBlock": {"cidr": "0.0.0.0/0"}}]) if "ipBlock" in peer]
    wanted = ip_address(address)
    return any(
        wanted in ip_network(block["cidr"]) and not any(wanted in ip_network(hole) for hole in block.get("except", []))
        for block in blocks
        if ip_network(block["cidr"]).version == wanted.version
    )


def test_no_pod_reaches_the_metadata_service() -> None:
    (policy,) = (item["spec"] for item in of_kind("NetworkPolicy") if "Egress" in item["spec"]["policyTypes"])
    assert policy["podSelector"] == {}  # submitting pods, too
    for closed in ("169.254.169.254", "fd00:ec2::254", "fd20:ce::254"):
        assert not any(covers(rule, closed) for rule in policy["egress"]), closed
    for needed in ("52.219.0.1", "10.96.0.1", "169.254.170.23", "2600:1f00::1"):  # S3, a service, EKS Pod Identity
        assert any(covers(rule, needed) for rule in policy["egress"]), needed
    assert {"namespaceSelector": {}} in [peer for rule in policy["egress"] for peer in rule["to"]]  # DNS


def test_ports_of_training_are_open_to_nodes_of_ray_alone() -> None:
    (policy,) = (item["spec"] for item in of_kind("NetworkPolicy") if "Ingress" in item["spec"]["policyTypes"])
    assert policy["podSelector"] == {"matchLabels": {"ray.io/is-ray-node": "yes"}}
    everywhere = [peer for rule in policy["ingress"] if "ports" not in rule for peer in rule["from"]]
    assert everywhere == [{"podSelector": policy["podSelector"]}]
    rest = {port["port"] for rule in policy["ingress"] for port in rule.get("ports", [])}
    assert rest == {8265, 8080}


def test_pods_have_no_more_rights_than_they_need() -> None:
    assert {spec["authOptions"]["mode"] for spec in clusters().values()} == {"token"}
    for kind, pod in pods():
        (container,) = pod["containers"]
        assert pod["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "runAsGroup": 100,
            "fsGroup": 100,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        assert pod.get("automountServiceAccountToken", True) == (kind == "head")  # it reads the RayCluster
        sources = [source.get("secretRef", {}).get("name") for source in container.get("envFrom", [])]
        assert ("hisem-tracking" in sources) == (kind == "head")
        spot = pod.get("nodeSelector", {}).get("karpenter.sh/capacity-type")
        assert spot == {"head": "on-demand", "worker": "spot", "submit": None}[kind]


def command_of(item: Object) -> list[str]:
    """The command that a RayJob or the night runs."""
    if item["kind"] == "RayJob":
        return shlex.split(item["spec"]["entrypoint"])
    (container,) = item["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["command"] == [f"{IN_IMAGE}cluster/submit.sh", "$(NIGHT)"]
    return list(container["args"])


def parsed(command: list[str]) -> Any:
    """The options of a command `python SCRIPT FLAG...`, as the script's own parser reads them."""
    python, script, *flags = command
    assert python == "python"
    assert script.startswith(IN_IMAGE)
    path = ROOT / script.removeprefix(IN_IMAGE)
    spec = importlib.util.spec_from_file_location(f"entry_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where the types of its options are looked up
    spec.loader.exec_module(module)
    if "experiment" in module.Options.__dataclass_fields__:
        return parse_experiment(module.Options, "", flags)
    return cli.parse(module.Options, "", flags)


COMMANDS = {item["metadata"]["name"]: command_of(item) for item in of_kind("RayJob", "CronJob")}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_misspelt_flag_would_end_with_2(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = COMMANDS[name]
    flags = [place for place, word in enumerate(command) if word.startswith("--")]
    assert len(flags) > 4
    for place in flags:
        flag, equals, value = command[place].partition("=")
        with pytest.raises(SystemExit) as ended:
            parsed([*command[:place], f"{flag}x{equals}{value}", *command[place + 1 :]])
        assert ended.value.code == cli.Exit.USAGE


def most(spec: Object) -> dict[str, float]:
    """What HiSem, on the head, reads as the most that the cluster can have."""
    cluster = {"metadata": {"name": "hisem", "namespace": "night"}, "spec": spec}
    assert spec["enableInTreeAutoscaling"]
    return budget.maximum(_derive_autoscaling_config_from_ray_cr(cluster))


def test_clusters_can_grow_to_what_their_commands_ask_for() -> None:
    standing, training, sweeping = (most(clusters()[name]) for name in ("hisem", "hisem-train", "hisem-sweep"))
    assert standing == {"CPU": 8 * 8 + 4 * 8, "GPU": 4}
    assert training == sweeping == {"CPU": 4 * 8, "GPU": 4}
    run = parsed(COMMANDS["hisem-train"])
    assert run.execution.gpu
    assert run.execution.workers == training["GPU"]
    assert run.execution.least == 1
    assert run.name not in ("train", "sweep")  # a name of its own is what a retry resumes by
    sweep = parsed(COMMANDS["hisem-sweep"])
    assert sweep.search.concurrent * sweep.execution.workers == sweeping["GPU"]
    deadline = next(item for item in of_kind("RayJob") if item["metadata"]["name"] == "hisem-sweep")["spec"]
    assert sweep.search.time_budget * 60 < deadline["activeDeadlineSeconds"]
    night = parsed(COMMANDS["hisem-night"])
    assert night.captioning.gpu
    assert night.captioning.captioners == standing["GPU"]


def test_the_night_is_retried_for_what_a_retry_helps() -> None:
    (night,) = of_kind("CronJob")
    spec, job = night["spec"], night["spec"]["jobTemplate"]["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    ignored, final = job["podFailurePolicy"]["rules"]
    assert (ignored["action"], ignored["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
    assert final["action"] == "FailJob"
    assert set(final["onExitCodes"]["values"]) == {cli.Exit.USAGE, cli.Exit.FAILED_ROWS}
    pod = job["template"]["spec"]
    assert final["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
    assert pod["restartPolicy"] == "Never"
    # `--since yesterday`, in UTC, means one day from the first attempt to the last.
    assert spec["timeZone"] == "Etc/UTC"
    minute, hour, *daily = spec["schedule"].split()
    assert daily == ["*", "*", "*"]
    latest = int(hour) * 3600 + int(minute) * 60 + spec["startingDeadlineSeconds"] + job["activeDeadlineSeconds"]
    assert latest < 24 * 3600
    assert parsed(COMMANDS["hisem-night"]).pairing.since == "yesterday"
