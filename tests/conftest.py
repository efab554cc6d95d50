"""Fixtures of all tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest

import hisem.distributed  # noqa: F401 - it sets what Ray reads when it is imported, and so comes before Ray


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks for groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where two processes share the tests, those of a file stay together, and all that use the one local Ray do.

    So do those that break clusters and jobs, and those that sweep: no more than two Rays share the cores at a time.
    """
    kinds = {"test_cluster.py": "break", "test_jobs.py": "break", "test_nightly.py": "break"}
    for item in items:
        file, room = item.nodeid.partition("::")[0], item.path.parent.name
        group = "ray" if room == "distributed" else kinds.get(item.path.name, "ray") if room == "faults" else file
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real scene pairs, which the repository does not hold: beside it, or where HISEM_SHARED_DATA says."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("HISEM_SHARED_DATA") or beside)
    if not folder.is_dir():
        pytest.skip(f"real scene pairs are not at {folder}; set HISEM_SHARED_DATA to their folder")
    return folder


@dataclass(frozen=True)
class S3Server:
    """A server of `s3_server.py`."""

    address: str
    """http://HOST:PORT, which also serves objects to plain requests."""

    def requests(self) -> list[dict[str, Any]]:
        """What it was asked since the last call: `method`, `path` and `range` of each request."""
        with urllib.request.urlopen(f"{self.address}/_log") as answer:
            found: list[dict[str, Any]] = json.load(answer)
        return found

    def fail(self, path: str, status: int, times: int | None = None, seconds: float = 0) -> None:
        """Answer `times` requests of each method for `path` (None: all) with `status`."""
        self._set([{"path": path, "status": status, "times": times, "seconds": seconds}])

    def work(self) -> None:
        """Fail no more."""
        self._set([])

    def _set(self, faults: list[dict[str, Any]]) -> None:
        urllib.request.urlopen(f"{self.address}/_faults", json.dumps(faults).encode()).close()


@contextmanager
def serve_s3() -> Iterator[S3Server]:
    """An S3-compatible server that the environment names meanwhile, for this process and those it starts."""
    script = Path(__file__).with_name("s3_server.py")
    process = subprocess.Popen([sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    server = S3Server(process.stdout.readline().strip())
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-tests")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", server.address)
        patch.setenv("GDAL_HTTP_RETRY_DELAY", "0.02")
        yield server
    process.stdin.close()
    process.wait(timeout=30)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """The S3-compatible server of all tests."""
    with serve_s3() as server:
        yield server


def make_bucket(server: S3Server, name: str) -> str:
    """The URI of a new bucket."""
    pafs.S3FileSystem(endpoint_override=server.address, allow_bucket_creation=True).create_dir(name)
    return f"s3://{name}"


@pytest.fixture
def bucket(s3_server: S3Server) -> Iterator[str]:
    """The URI of a bucket of this test's own; GDAL remembers what it has read from others."""
    uri = make_bucket(s3_server, f"bucket-{uuid.uuid4().hex[:12]}")
    s3_server.requests()
    yield uri
    s3_server.work()
