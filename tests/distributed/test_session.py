"""The Ray that a command starts by itself: who may talk to it."""

from __future__ import annotations

import os
import re
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


SHORT = """
import hisem.distributed
import os, pyarrow as pa, ray.data, time
from hisem.distributed import session
def work(block):
    time.sleep(600)
    return block
print(os.environ["RAY_task_oom_retries"])
try:
    with session.cluster():
        ray.data.from_arrow(pa.table({"n": [1]})).map_batches(work, **session.BLOCKS).materialize()
except session.ResourceError as error:
    print(error)
"""


def test_a_node_that_is_short_of_memory_ends_the_run_with_the_reason():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    found = [sys.executable, "-c", SHORT.partition("try:")[0]]
    assert subprocess.run(found, env=environment, capture_output=True, text=True, timeout=60).stdout == "8\n"
    environment |= {"RAY_task_oom_retries": "1", "RAY_memory_usage_threshold": "0.01"}  # any memory is too much
    done = subprocess.run([*found[:2], SHORT], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout, done.stderr
    told = done.stdout.splitlines()[-1]  # after what Ray tells of each kill
    died = (
        r"a process died again and again on the same work \(\d+ worker\(s\) were killed due to the node running low on "
    )
    assert re.match(died, told), done.stderr
    assert told.endswith("RAY_task_oom_retries says how often work waits for them.")
    assert len(told) < 600


def test_a_ray_that_was_imported_first_is_left_its_own_authentication():
    found = "import os, ray, hisem.distributed; print(*(name for name in os.environ if name.startswith('RAY_AUTH')))"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    for code, names in ((found, ""), (found.replace(" ray,", ""), "RAY_AUTH_MODE RAY_AUTH_TOKEN")):
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
        )
        assert done.stdout.strip() == names
