"""Everything that runs on Ray, and the only room that imports it.

Ray reads its environment when it is imported, so what we decide for it is set here, first.
"""

import os
import secrets
import sys

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Threads of one process that wait for one another sleep instead of spinning: readers, workers and captioners
# share the cores, and a spinning thread would hold the one that it waits for.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A task that Ray kills because its node is short of memory runs again eight times, after pauses that double and make
# three minutes in all; by default for ever. Of tasks that workers begin, the nodes' environment decides.
os.environ.setdefault("RAY_task_oom_retries", "8")
if not sys.stderr.isatty():
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
if os.environ.get("RAY_ADDRESS", "") not in ("", "local"):
    # Tries to reach a cluster, and the seconds of each; Ray's own are nine minutes, without a word.
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
    os.environ.setdefault("RAY_py_gcs_connect_timeout_s", "10")
# Where Ray is imported already it has read its mode, and turns its own authentication on unless a mode is set.
if (
    "ray" not in sys.modules
    and os.environ.get("RAY_ADDRESS", "") in ("", "local")
    and os.environ.setdefault("RAY_AUTH_MODE", "token") == "token"
):
    # A Ray that we start ourselves lives as long as this process, and so does its token. A cluster that we
    # join has its own, in the environment or in ~/.ray/auth_token.
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
