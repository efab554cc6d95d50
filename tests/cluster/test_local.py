"""The cluster on this machine: what it writes down, what it ends, and what is left where it does not start."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.local import Cluster, Options, free_port, is_free, stop
from hisem.errors import ConfigError, ResourceError

SCRIPT = Path(__file__).parents[2] / "cluster" / "local.py"
SLEEP = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); {}"


def sleeper(*flags: str) -> subprocess.Popen[bytes]:
    """A process with one below it, and these words in its command line."""
    code = SLEEP.format("print(); sys.stdout.flush(); time.sleep(60)")
    process = subprocess.Popen([sys.executable, "-c", code, *flags], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_stop_ends_the_processes_of_its_own_cluster_and_no_others(tmp_path: Path) -> None:
    files = tmp_path / "hisem-files"
    files.mkdir()
    cluster = Cluster(str(tmp_path), str(files), 1, 2, workers=1)
    cluster.write()
    assert Cluster.read(tmp_path) == cluster
    (tmp_path / "token").write_text("secret")
    ours = [sleeper(f"--temp-dir={files}/{name}") for name in ("head", "worker-1")]
    below = [psutil.Process(process.pid).children()[0] for process in ours]
    others = [sleeper(f"--temp-dir={files}/worker-10"), sleeper("tail", f"{files}/head")]
    try:
        assert [found.pid for found in cluster.processes("head")] == [ours[0].pid]
        stop(cluster, seconds=1)  # what is below them does not end with them
        assert [process.poll() is None for process in (*ours, *others)] == [False, False, True, True]
        assert not any(process.is_running() for process in below)
        assert not files.exists()
        assert not list(tmp_path.iterdir())
    finally:
        for process in others:
            for child in psutil.Process(process.pid).children():
                child.kill()
            process.kill()
            process.wait()


def test_a_port_is_free_or_not() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert not is_free(taken.getsockname()[1])
    assert is_free(free_port())


@pytest.mark.parametrize("flag", ["workers", "cpus_per_worker", "object_store", "dashboard_port"])
def test_numbers_that_cannot_be_are_refused(flag: str) -> None:
    with pytest.raises(ConfigError, match=f"{flag} is 0"):
        Options(action="start", **{flag: 0})  # type: ignore[arg-type]


def test_cpus_are_divided_among_the_workers() -> None:
    assert Options(action="start", workers=1).cpus == os.cpu_count()
    assert Options(action="start", workers=100).cpus == max(1, (os.cpu_count() or 1) // 100)
    assert Options(action="start", workers=3, cpus_per_worker=7).cpus == 7


def test_what_the_shell_is_given_names_the_token_and_does_not_hold_it(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")
    exports = Cluster(str(tmp_path), "/tmp/x", 1, 8299, workers=1).exports()
    code = f"{exports}\nenv -0 | tr '\\0' '\\n' | grep -E '^(RAY_|no_proxy)'"
    environment = {"PATH": os.environ["PATH"], "RAY_AUTH_TOKEN": "another", "no_proxy": "example.org"}
    told = subprocess.run(["sh", "-c", code], capture_output=True, text=True, env=environment)
    assert set(told.stdout.split("\n")) - {""} == {
        "RAY_API_SERVER_ADDRESS=http://127.0.0.1:8299",
        "RAY_AUTH_MODE=token",
        f"RAY_AUTH_TOKEN_PATH={tmp_path}/token",
        "no_proxy=127.0.0.1,example.org",
    }


def test_no_cluster_is_told(tmp_path: Path) -> None:
    for action, code in (("status", 1), ("stop", 0)):
        done = subprocess.run(
            [sys.executable, SCRIPT, action, "--folder", str(tmp_path)], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (code, "")
        assert f"{tmp_path}: no cluster" in done.stderr


@pytest.mark.slow
def test_a_cluster_that_starts_by_half_is_ended_whole(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        flags = ["--folder", str(tmp_path), "--dashboard-port", str(taken.getsockname()[1])]
        process = subprocess.Popen([sys.executable, SCRIPT, "start", *flags], stderr=subprocess.PIPE, text=True)
        seen: set[psutil.Process] = set()
        while process.poll() is None:
            seen.update(psutil.Process(process.pid).children(recursive=True))
            state = Cluster.read(tmp_path)
            with suppress(FileNotFoundError):  # it is removed in the end
                assert not state or stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
            time.sleep(0.05)
        assert process.stderr is not None
        told = process.stderr.read()
    assert process.returncode == 1
    assert "node head" in told
    assert "already occupied" in told or "Failed to bind" in told
    assert len(seen) > 1  # more than `ray start` was there
    assert not any(one.is_running() for one in seen)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        "",
        "{",
        "[]",
        "null",
        "[" * 100_000,
        {"files": "/"},
        {"files": "/tmp/hisem-x/.."},
        {"files": "hisem-relative"},
        {"files": None},
        {"port": "1"},
        {"port": 0},
        {"workers": 10**20},
        {"extra": 1},
        {"home": None},
    ],
    ids=range(14),
)
def test_a_damaged_state_is_named_and_deletes_nothing(tmp_path: Path, change: str | dict[str, Any]) -> None:
    files = tmp_path / "hisem-abc123"
    files.mkdir()
    sound = {"home": str(tmp_path), "files": str(files), "port": 1, "dashboard": 2, "workers": 1}
    (tmp_path / "state.json").write_text(json.dumps(sound))
    assert Cluster.read(tmp_path) == Cluster(**sound)  # type: ignore[arg-type]
    (tmp_path / "state.json").write_text(change if isinstance(change, str) else json.dumps(sound | change))
    with pytest.raises(ResourceError, match=r"state\.json: damaged"):
        Cluster.read(tmp_path)
    assert files.is_dir()
