"""The process group of training's workers: where it listens, and that no pickle goes through it."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections import Counter
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psutil
import pytest

import hisem
from hisem.distributed.process_group import interface_of
from tests.distributed.conftest import Port

WORKER = """
import json, sys
from pathlib import Path
import psutil, torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from hisem.distributed import process_group
from hisem.training.exchange import gathered, of_first

def refuse(*_, **__):
    raise AssertionError("a pickle")
distributed_c10d._tensor_to_object = distributed_c10d._object_to_tensor = refuse

rank, folder, values = int(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
if rank == 0:
    port = process_group.open_store("127.0.0.1", 2, 60)
    (folder / "port.new").write_text(str(port))
    (folder / "port.new").rename(folder / "port")
else:
    port = int((folder / "port").read_text())
process_group.join("gloo", rank, 2, "127.0.0.1", ("127.0.0.1", port), 60)
total = torch.ones(3)
dist.all_reduce(total)
found = {
    "total": total.tolist(),
    "gathered": [gathered(value) for value in values],
    "first": [of_first(value) for value in values],
    "listening": [c.laddr.ip for c in psutil.Process().net_connections("inet") if c.status == "LISTEN"],
}
dist.barrier()
process_group.leave()
(folder / f"{rank}.json").write_text(json.dumps(found))
"""

VALUES: list[list[Any]] = [
    [[], None, {"a": [1, 2.5]}, "x" * 100_000, [float("inf"), 0.1]],
    [["ä\u2028\U0001f30d", True], {"b": None}, 0, "", [-1e-300, 1e300]],
]
"""What each of two workers has to say."""


def test_workers_exchange_json_over_loopback_alone(tmp_path: Path) -> None:
    workers = []
    for rank, values in enumerate(VALUES):
        command = [sys.executable, "-c", WORKER, str(rank), str(tmp_path), json.dumps(values)]
        workers.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        while not (tmp_path / "port").exists() and workers[0].poll() is None:
            try:
                workers[0].wait(0.1)
            except subprocess.TimeoutExpired:
                continue
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["total"] == [2.0] * 3
        assert found["gathered"] == [list(pair) for pair in zip(*VALUES, strict=True)]
        assert found["first"] == VALUES[0]
        assert found["listening"]
        assert all(ip_address(address).is_loopback for address in found["listening"])


def test_workers_of_a_training_run_listen_on_loopback_alone(ports_of_training: set[Port]) -> None:
    """On one machine; on several, at the address that Ray gives each node. Ray's own port asks for a token."""
    workers = [port for port in ports_of_training if port.of_worker]
    assert len({port.process for port in workers}) == 2
    open_to_others = Counter(port.process for port in workers if not ip_address(port.address).is_loopback)
    assert set(open_to_others.values()) == {1}
    assert len(workers) > len(open_to_others)


def test_an_address_is_found_by_its_interface() -> None:
    assert interface_of("127.0.0.1") == next(name for name in psutil.net_if_addrs() if name in ("lo", "lo0"))
    assert interface_of("192.0.2.1") is None
    assert interface_of("2001:db8::1") is None


def names(path: Path) -> set[str]:
    """Every name and attribute in a module."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    found = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return found | {node.id for node in nodes if isinstance(node, ast.Name)}


@pytest.mark.parametrize("path", sorted(Path(hisem.__file__).parent.rglob("*.py")), ids=lambda path: path.stem)
def test_no_collective_of_objects_is_used(path: Path) -> None:
    """They unpickle what any process sends that reaches the group's port."""
    assert not {name for name in names(path) if name.endswith(("_object", "_object_list"))}
