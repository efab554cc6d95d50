"""The cluster launcher's file: Ray's own validator and EC2's own model take it, and refuse what is misspelt."""

from __future__ import annotations

import copy
import json
import shlex
from pathlib import Path
from typing import Any

import botocore.session
import jsonschema
import pytest
import ray.autoscaler
import yaml
from botocore.validate import ParamValidator
from ray.autoscaler._private.util import prepare_config, validate_config

from hisem.distributed import budget
from tests.cluster.schemas import ray_start_flags

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "cluster" / "aws.yaml").read_text())
    return loaded


@pytest.fixture(scope="module")
def launch() -> Any:
    """What EC2 takes to start a node."""
    return botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape


def test_ray_takes_the_file(config: dict[str, Any]) -> None:
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    types = {name: node["resources"] for name, node in prepared["available_node_types"].items()}
    assert types == {"head": {"CPU": 0}, "cpu": {"CPU": 8}, "gpu": {"CPU": 8, "GPU": 1}}
    # HiSem reads the same file on the head.
    assert budget.maximum(prepared) == {"CPU": 8 * 8 + 4 * 8, "GPU": 4}


@pytest.mark.parametrize(
    "path",
    [
        ("idle_timeout_minutes",),
        ("auth", "ssh_proxy_command"),
        ("docker", "run_options"),
        ("available_node_types", "cpu", "max_workers"),
        ("available_node_types", "gpu", "docker", "worker_image"),
        ("head_start_ray_commands",),
    ],
)
def test_ray_refuses_a_misspelt_field(config: dict[str, Any], path: tuple[str, ...]) -> None:
    parent = config
    for key in path[:-1]:
        parent = parent[key]
    parent[f"{path[-1]}s"] = parent.pop(path[-1])
    with pytest.raises(jsonschema.ValidationError, match=f"{path[-1]}s"):
        validate_config(prepare_config(config))


def test_fields_that_rays_validator_lets_pass_are_known(config: dict[str, Any]) -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    assert set(config["provider"]) <= set(schema["properties"]["provider"]["properties"])


def complaints(node: dict[str, Any], launch: Any) -> str:
    """What EC2's model says of a node's configuration, in which Ray replaces SubnetIds by one of them."""
    wanted = {**node, "MinCount": 1, "MaxCount": 1}
    wanted.pop("SubnetIds", None)
    return str(ParamValidator().validate(wanted, launch).generate_report())


def test_ec2_knows_all_that_is_said_of_nodes(config: dict[str, Any], launch: Any) -> None:
    for node in config["available_node_types"].values():
        wanted = node["node_config"]
        assert complaints(wanted, launch) == ""
        for field in wanted:
            misspelt = {f"{name}x" if name == field else name: value for name, value in wanted.items()}
            assert f"{field}x" in complaints(misspelt, launch)


def test_commands_that_start_ray_have_its_flags(config: dict[str, Any]) -> None:
    head, worker = config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]
    for command in (head, worker):
        ray_, start_, *flags = shlex.split(command)
        assert (ray_, start_) == ("ray", "start")
        assert {flag.partition("=")[0] for flag in flags} <= ray_start_flags()
    # Where budget looks for the limits, and the number that they have for the head.
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head.split()
    assert "--num-cpus=0" in head.split()


def test_nothing_is_open(config: dict[str, Any]) -> None:
    assert config["provider"]["use_internal_ips"] is True
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1].split()
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    nodes = {name: node["node_config"] for name, node in config["available_node_types"].items()}
    for node in nodes.values():
        assert node["SecurityGroupIds"] == ["sg-SET"]
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert all(device["Ebs"]["Encrypted"] for device in node["BlockDeviceMappings"])
    roles = {name: node["IamInstanceProfile"]["Name"] for name, node in nodes.items()}
    assert roles == {"head": "hisem-head", "cpu": "hisem-worker", "gpu": "hisem-worker"}
    spot = {name for name, node in nodes.items() if "InstanceMarketOptions" in node}
    assert spot == {"cpu", "gpu"}
    assert not {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} & set(json.dumps(config).replace("=", '"').split('"'))
