"""The Ray that a command starts by itself: who may talk to it."""

from __future__ import annotations

import os
import subprocess
import sys

import ray

ASK = "import sys; from ray._raylet import GcsClient; print(len(GcsClient(address=sys.argv[1]).get_all_node_info()))"


def ask(address: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Ask a Ray for its nodes, in a process that has nothing of this one's but `variables`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, "-c", ASK, address], env=environment | variables, capture_output=True, text=True, timeout=60
    )


def test_a_local_ray_lets_nobody_in_without_its_token(ray_cluster):
    address = ray.get_runtime_context().gcs_address
    known = ask(address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=os.environ["RAY_AUTH_TOKEN"])
    assert known.stdout == "1\n", known.stderr
    for stranger in (
        ask(address, RAY_AUTH_MODE="disabled"),
        ask(address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64),
    ):
        assert stranger.returncode != 0
        assert "token" in stranger.stderr.lower()
    url = ray.worker.get_dashboard_url()
    assert not url or url.startswith("127.0.0.1:")


SLOW = """
import sys, ray
from hisem.distributed import session
start, tries = ray.init, []
def init(**given):
    tries.append(given)
    if len(tries) <= int(sys.argv[1]):
        raise Exception("The current node timed out during startup.")
    start(**given)
ray.init = init
try:
    with session.cluster():
        print(len(tries), session.cpus() > 0)
except session.ResourceError as error:
    print(len(tries), error)
"""


def test_a_ray_that_does_not_start_in_time_is_tried_once_more():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    for late, told in (
        (1, "2 True\n"),
        (2, "2 Ray cannot be started here: The current node timed out during startup.\n"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", SLOW, str(late)], env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.stdout == told, done.stderr


def test_a_ray_that_was_imported_first_is_left_its_own_authentication():
    found = "import os, ray, hisem.distributed; print(*(name for name in os.environ if name.startswith('RAY_AUTH')))"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    for code, names in ((found, ""), (found.replace(" ray,", ""), "RAY_AUTH_MODE RAY_AUTH_TOKEN")):
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
        )
        assert done.stdout.strip() == names
