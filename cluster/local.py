"""A Ray cluster on this machine: a head without CPUs and workers, each a node of its own, with token authentication.

    eval "$(python cluster/local.py start --workers 2)"
    ray job submit --working-dir . -- python pipelines/train.py
    python cluster/local.py stop

`start` and `status` print on stdout what a shell needs to submit jobs, and everything else on stderr. The nodes are
given the environment that `start` has, and so are the jobs.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import psutil
import tyro

from hisem import cli
from hisem.config import from_dict
from hisem.errors import ConfigError, ResourceError
from hisem.ranges import Cpus, Range, require_ranges

log = logging.getLogger(__name__)

STATE, TOKEN = "state.json", "token"
DASHBOARD_PORT = 8265
"""Where Ray's dashboard usually is."""
START_SECONDS, STOP_SECONDS = 120.0, 20.0
"""How long a node may take to start, and to end before it is killed."""
STARTED, TOO_SLOW = "Ray runtime started.", "timed out during startup"
"""What `ray start` says of a node that is part of the cluster, and of one that was not within 30 s."""
ATTEMPTS = 3
"""How often a node that was too slow is started: on a busy machine 30 s are few."""
FREE_PORTS = ("min-worker-port", "max-worker-port", "dashboard-agent-listen-port")
"""What must not have its usual value where several nodes share a machine; 0 is any that is free."""
Port = Annotated[int, Range(1, 65_535)]
NOT_OURS = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN")
"""Variables of another cluster, which the nodes must not be given."""


@dataclass(frozen=True, kw_only=True)
class Options(cli.Common):
    """Options of this command."""

    action: tyro.conf.Positional[Literal["start", "status", "stop"]]
    """What to do."""
    workers: Annotated[int, Range(1, 100)] = 2
    """Nodes that work, 1 or more."""
    cpus_per_worker: Cpus | None = None
    """CPUs that each of them offers (default: the machine's, divided among them)."""
    object_store: Annotated[int, Range(100, 10_000_000)] = 200
    """MiB of shared memory for the objects of each node, 100 or more; what exceeds it goes to the disk."""
    dashboard_port: Port | None = None
    """Port of dashboard and job server on 127.0.0.1 (default: 8265, else one that is free)."""
    folder: str = "~/.hisem/cluster"
    """Folder for the cluster's state and token; one cluster each."""

    @property
    def home(self) -> Path:
        """The folder, absolute."""
        return Path(self.folder).expanduser().absolute()

    @property
    def cpus(self) -> int:
        """CPUs that each worker offers."""
        return self.cpus_per_worker or max(1, (os.cpu_count() or 1) // self.workers)


@dataclass(frozen=True)
class Cluster:
    """What is written down of a cluster, before its first process starts."""

    home: str
    files: str
    """Folder for Ray's own files, a new one for each cluster; the path is short, since sockets lie in it."""
    port: Port
    """Of the head's control store."""
    dashboard: Port
    workers: Annotated[int, Range(1, 100)]

    def __post_init__(self) -> None:
        require_ranges(self)

    @staticmethod
    def read(home: Path) -> Cluster | None:
        """The cluster of this folder, running or not. Raises `ResourceError` where its state is damaged."""
        path = home / STATE
        try:
            cluster = from_dict(Cluster, json.loads(path.read_text(encoding="utf-8")), str(path))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, AttributeError, RecursionError, ConfigError) as error:
            raise ResourceError(
                f"{path}: damaged ({error}). End its processes by hand, and delete the file."
            ) from error
        # `stop` deletes this folder: it must be one that `start` has made.
        if not Path(cluster.files).is_absolute() or not re.fullmatch(r"hisem-\w+", Path(cluster.files).name):
            raise ResourceError(f"{path}: damaged, {cluster.files!r} is not a folder of a cluster; delete the file.")
        return cluster

    def write(self) -> None:
        """Write it down."""
        path = Path(self.home) / STATE
        path.with_suffix(".new").write_text(json.dumps(asdict(self)), encoding="utf-8")
        path.with_suffix(".new").replace(path)  # whole or not at all

    @property
    def names(self) -> list[str]:
        """Names of its nodes, the head first."""
        return ["head", *(f"worker-{number + 1}" for number in range(self.workers))]

    def place(self, name: str) -> str:
        """Folder of a node: Ray names sockets by what is there already, so that nodes that start at once need two."""
        return f"{self.files}/{name}"

    def processes(self, name: str) -> list[psutil.Process]:
        """The processes of a node that name its folder: no others on this machine can."""
        flag = f"--temp-dir={self.place(name)}"
        return [process for process in psutil.process_iter(["cmdline"]) if flag in (process.info["cmdline"] or [])]

    def exports(self) -> str:
        """What a shell needs to submit jobs."""
        variables = {
            # Not RAY_ADDRESS, which a pipeline that is started by hand would take for its own.
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{self.dashboard}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(Path(self.home) / TOKEN),
        }
        lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
        lines.append('export no_proxy="127.0.0.1${no_proxy:+,$no_proxy}"')  # which would be told the token
        return "\n".join(["unset RAY_AUTH_TOKEN", *lines])  # it would go before the file


def start(options: Options) -> Cluster:
    """Start a head, then its workers; where one fails, or on Ctrl-C, all that was started ends again.

    Raises `ResourceError` where a cluster is running, and with what Ray said where a node does not start.
    """
    home = options.home
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    if there := Cluster.read(home):
        if any(there.processes(name) for name in there.names):
            raise ResourceError(
                f"{home}: its cluster is running already. End it first (stop), or give another --folder."
            )
        stop(there)
    token = home / TOKEN
    token.unlink(missing_ok=True)
    with open(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(secrets.token_hex(32))
    files = tempfile.mkdtemp(prefix="hisem-")
    dashboard = options.dashboard_port or (DASHBOARD_PORT if is_free(DASHBOARD_PORT) else free_port())
    cluster = Cluster(str(home), files, free_port(), dashboard, options.workers)
    cluster.write()
    try:
        memory = f"--object-store-memory={options.object_store * 2**20}"
        head, *workers = cluster.names
        port, address = f"--port={cluster.port}", f"--address=127.0.0.1:{cluster.port}"
        start_node(cluster, head, "--head", port, *head_flags(cluster), memory)
        await_jobs(cluster)
        flags = [address, f"--num-cpus={options.cpus}", memory]
        for name in workers:  # one by one, as several at once are slower
            # Each would count the machine's GPUs as its own: the first has them.
            gpus = [] if name == workers[0] else ["--num-gpus=0"]
            start_node(cluster, name, *flags, *gpus)
    except BaseException:
        stop(cluster)
        raise
    return cluster


def head_flags(cluster: Cluster) -> list[str]:
    """The head serves jobs and dashboard to this machine alone, and works on nothing."""
    return [
        "--num-cpus=0",
        "--num-gpus=0",
        f"--ray-client-server-port={free_port()}",
        "--include-dashboard=true",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={cluster.dashboard}",
    ]


def launch(cluster: Cluster, name: str, *flags: str) -> subprocess.Popen[bytes]:
    """Start a node, which lives as long as its `ray start`, whatever becomes of this process."""
    folder = Path(cluster.place(name))
    shutil.rmtree(folder, ignore_errors=True)  # of an attempt before
    folder.mkdir()
    flags = (*flags, *(f"--{port}=0" for port in FREE_PORTS), f"--temp-dir={folder}", f"--node-name={name}")
    bin_folder = str(Path(sys.executable).parent)
    environment = {
        "RAY_task_oom_retries": "8",  # as drivers have it (hisem/distributed/__init__.py), unless told otherwise
        **{key: value for key, value in os.environ.items() if key not in NOT_OURS},
        "PATH": os.pathsep.join([bin_folder, os.environ.get("PATH", "")]),  # jobs say `python`
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(Path(cluster.home) / TOKEN),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # a node that is stopped waits for nothing
        "RAY_JOB_STOP_WAIT_TIME_S": "30",  # for a job to close its MLflow run; Ray's own 3 s are few on a busy machine
    }
    with log_file(cluster, name).open("wb") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *flags],
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )


def log_file(cluster: Cluster, name: str) -> Path:
    """What `ray start` of a node prints."""
    return Path(cluster.files, f"{name}.log")


def start_node(cluster: Cluster, name: str, *flags: str) -> None:
    """Return when the node is part of the cluster. Raises `ResourceError` where it ends or takes too long."""
    printed = log_file(cluster, name)
    for left in reversed(range(ATTEMPTS)):
        process = launch(cluster, name, *flags)
        started = await_true(lambda: STARTED in printed.read_text(encoding="utf-8") or process.poll() is not None)  # noqa: B023
        if started and process.poll() is None:
            log.info("%s is up", name)
            return
        if not (left and TOO_SLOW in printed.read_text(encoding="utf-8")):
            break
        log.info("%s did not start within Ray's 30 s: once more", name)
    how = f"ended with {process.returncode}" if process.returncode is not None else "did not answer in time"
    tail = " | ".join(line.strip() for line in printed.read_text(encoding="utf-8").splitlines()[-15:] if line.strip())
    raise ResourceError(f"node {name} {how}; everything that was started is ended. Ray said: {tail}")


def await_jobs(cluster: Cluster) -> None:
    """Return when the job server takes jobs."""
    token = (Path(cluster.home) / TOKEN).read_text(encoding="utf-8")
    request = urllib.request.Request(
        f"http://127.0.0.1:{cluster.dashboard}/api/jobs/", headers={"Authorization": f"Bearer {token}"}
    )

    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy would be told the token

    def answers() -> bool:
        try:
            direct.open(request, timeout=5).close()
        except OSError:
            return False
        return True

    if not await_true(answers):
        raise ResourceError(f"the job server at 127.0.0.1:{cluster.dashboard} does not answer; everything is ended.")


def await_true(happened: Callable[[], bool], seconds: float = START_SECONDS) -> bool:
    """Whether it did within the time."""
    until = time.monotonic() + seconds
    while not (done := happened()) and time.monotonic() < until:
        time.sleep(0.1)
    return done


def is_free(port: int) -> bool:
    """Whether nothing listens there on this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def stop(cluster: Cluster, seconds: float = STOP_SECONDS) -> None:
    """End the processes of this cluster and no others, and remove Ray's files and the token.

    What has not ended by itself after `seconds` is killed.
    """
    nodes = [process for name in reversed(cluster.names) for process in cluster.processes(name)]
    everything = {process for node in nodes for process in (node, *descendants(node))}
    for node in nodes:
        with suppress(psutil.NoSuchProcess):  # it has ended by now
            node.terminate()
    _, left = psutil.wait_procs(everything, timeout=seconds)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=STOP_SECONDS)
    shutil.rmtree(cluster.files, ignore_errors=True)
    for name in (TOKEN, STATE):
        (Path(cluster.home) / name).unlink(missing_ok=True)


def descendants(process: psutil.Process) -> list[psutil.Process]:
    """All below a process; none where it has ended."""
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def main(options: Options) -> int:
    """Do what is asked; the exit code of `status` is 1 unless all nodes are up."""
    if options.action == "start":
        cluster = start(options)
        print(cluster.exports())
        log.info(
            "dashboard: http://127.0.0.1:%d  drivers join with RAY_ADDRESS=127.0.0.1:%d",
            cluster.dashboard,
            cluster.port,
        )
        return cli.Exit.DONE
    there = Cluster.read(options.home)
    if there is None:
        log.info("%s: no cluster", options.home)
        return cli.Exit.FAILED if options.action == "status" else cli.Exit.DONE
    if options.action == "stop":
        stop(there)
        log.info("the cluster has ended")
        return cli.Exit.DONE
    up = {name: bool(there.processes(name)) for name in there.names}
    for name, running in up.items():
        log.info("%s is %s", name, "up" if running else "gone")
    print(there.exports())
    return cli.Exit.DONE if all(up.values()) else cli.Exit.FAILED


if __name__ == "__main__":
    cli.run(main, lambda: cli.parse(Options, __doc__ or ""))
