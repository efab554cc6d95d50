"""The image holds what constraints.txt says, and nothing that the repository does not give it."""

from __future__ import annotations

import asyncio
import fnmatch
import re
import subprocess
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = (ROOT / "constraints.txt").read_text()
PINS: dict[str, str] = {canonicalize_name(name): pin for name, pin in re.findall(r"(?m)^(\S+?)==(\S+)$", CONSTRAINTS)}


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with their arguments, continued lines joined."""
    text = re.sub(r"(?m)^\s*#.*\n", "", (ROOT / "cluster" / "Dockerfile").read_text())
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def arguments(name: str) -> list[str]:
    return [rest for instruction, rest in instructions() if instruction == name]


def test_every_pip_install_takes_the_pins() -> None:
    installs = [part for run in arguments("RUN") for part in run.split("&&") if "pip install" in part]
    assert len(installs) == 2
    assert all("-c constraints.txt" in install for install in installs)
    assert installs[-1].split()[-1] == "."


def test_the_base_image_has_the_same_ray_and_a_python_that_fits() -> None:
    (base,) = arguments("FROM")
    found = re.fullmatch(r"rayproject/ray:(\d+\.\d+\.\d+)-py(3)(\d+)-\$\{PLATFORM\}", base)
    assert found is not None
    assert found[1] == PINS["ray"]
    assert SpecifierSet(PROJECT["requires-python"]).contains(f"{found[2]}.{found[3]}")
    assert "PLATFORM=cpu" in arguments("ARG")


EXTRAS = PROJECT["optional-dependencies"]
ALL = [Requirement(line) for line in [*PROJECT["dependencies"], *EXTRAS["stac"], *EXTRAS["dev"]]]


@pytest.mark.parametrize("requirement", [one for one in ALL if one.name != "hisem"], ids=lambda one: one.name)
def test_pins_are_within_the_ranges_of_the_project(requirement: Requirement) -> None:
    pin = PINS[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pin), f"{pin} is not {requirement.specifier}"


def test_a_pin_of_torch_holds_for_its_builds() -> None:
    pin = SpecifierSet(f"=={PINS['torch']}")
    assert pin.contains(Version(f"{PINS['torch']}+cpu"))
    assert "+" not in PINS["torch"]


def test_it_does_not_run_as_root() -> None:
    assert arguments("USER") == ["0", "1000:100"]  # as the securityContext of all pods has it
    last = max(place for place, (name, _) in enumerate(instructions()) if name == "USER")
    assert "apt-get" not in " ".join(rest for _, rest in instructions()[last:])


def hosts_of_the_head(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hosts that the head of a cluster, whose usage statistics are off, asks when it starts."""
    from ray.dashboard.modules.usage_stats.usage_stats_head import UsageStatsHead

    async def nothing() -> None:
        pass

    def refuse(url: str, **_: Any) -> None:
        hosts.append(str(urlsplit(url).hostname))
        raise requests.exceptions.ConnectTimeout

    hosts: list[str] = []
    monkeypatch.setattr(requests, "get", refuse)
    head = SimpleNamespace(usage_stats_enabled=False, _report_disabled_usage_async=nothing)
    asyncio.run(UsageStatsHead.run(head))
    return hosts


def test_a_head_asks_no_metadata_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    metadata = {"169.254.169.254", "metadata.google.internal"}
    assert set(hosts_of_the_head(monkeypatch)) == metadata  # where nothing is done; else what is done could go
    (command,) = [run for run in arguments("RUN") if "ray_bootstrap_config" in run]
    subprocess.run(command.replace("/home/ray", str(tmp_path)), shell=True, check=True)
    assert hosts_of_the_head(monkeypatch) == []


def test_what_is_copied_is_there_and_let_in() -> None:
    ignored, *let_in = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")
    ]
    assert ignored == "*"
    sources = {word for copied in arguments("COPY") for word in copied.split()[:-1] if not word.startswith("--")}
    assert {"constraints.txt", "hisem", "pipelines", "tune"} <= sources
    assert all((ROOT / source).exists() for source in sources)
    assert {f"!{source}" for source in sources} == {line for line in let_in if line.startswith("!")}
    # What the project's build needs.
    assert {PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml"} <= sources
    assert fnmatch.fnmatch("hisem/__pycache__", let_in[-1])
