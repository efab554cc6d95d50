"""RAY_ADDRESS: what is joined, and that what cannot be joined is refused at once, with a reason."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from hisem.distributed import address
from hisem.distributed.address import reachable
from hisem.errors import ResourceError

GRPC = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""An empty frame of settings, with which a server of HTTP/2 begins."""


@contextmanager
def server(answer: bytes | None, host: str = "127.0.0.1") -> Iterator[int]:
    """A server that answers each client with `answer`, or with None not at all; its port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    kept = []
    with socket.socket(family) as listener:
        listener.bind((host, 0))
        listener.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                kept.append(connection)
                if answer is not None:
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    for connection in kept:
        connection.close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Short patience, a node on this machine, and no cluster that another test left in Ray's folder."""
    monkeypatch.setattr(address, "CONNECT_SECONDS", 0.5)
    monkeypatch.setattr(address, "NODE_SECONDS", 0.5)
    monkeypatch.setattr(address, "_clusters", lambda: iter(["127.0.0.1:1"]))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_USE_TLS", raising=False)


def current(tmp_path: Path, text: str) -> None:
    """What a cluster that was started here has left."""
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(text)


@pytest.mark.parametrize("form", ["{}:{}", "ray://{}:{}"])
@pytest.mark.parametrize(
    ("host", "written"), [("127.0.0.1", "127.0.0.1"), ("127.0.0.1", "localhost"), ("::1", "[::1]")]
)
def test_a_server_of_grpc_is_joined(form: str, host: str, written: str) -> None:
    with server(GRPC, host) as port:
        assert reachable(form.format(written, port)) == form.format(written, port)


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "[::1]:{}", "ray://127.0.0.1:{}", "ray://[::1]:{}", "auto"])
@pytest.mark.parametrize("answer", ["closed", None, b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9"])
def test_anything_else_is_refused_with_what_was_tried(
    form: str, answer: bytes | str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(address, "_clusters", lambda: iter(()))
    with ExitStack() as stack:
        sent = answer if isinstance(answer, bytes) else None
        port = stack.enter_context(server(sent, "::1" if "[" in form else "127.0.0.1"))
        if answer == "closed":
            stack.close()
        current(tmp_path, f"127.0.0.1:{port}")
        with pytest.raises(ResourceError, match="RAY_ADDRESS") as caught:
            reachable(form.format(port))
    assert str(port) in str(caught.value)
    assert "Unset RAY_ADDRESS" in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    ["nonsense", "host", "host:", ":6379", "host:port", "host:0", "host:65536", "host:-1", "::1:6379", "::1", "ray://"],
)
def test_other_forms_are_refused(wrong: str) -> None:
    with pytest.raises(ResourceError, match="is not an address"):
        reachable(wrong)


def test_auto_is_the_cluster_of_the_one_node_here_else_what_was_started_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server(GRPC) as first, server(GRPC) as second:
        one, two = f"127.0.0.1:{first}", f"127.0.0.1:{second}"
        current(tmp_path, one)
        for running, expected in (([two], two), ([two, two], two), ([one, two], one)):
            monkeypatch.setattr(address, "_clusters", lambda found=running: iter(found))
            assert reachable("auto") == expected


def test_auto_without_any_cluster_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "_clusters", lambda: iter(()))
    with pytest.raises(ResourceError, match="no Ray runs on this machine"):
        reachable("auto")


def test_a_driver_beside_no_node_is_refused_unless_it_is_a_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "_clusters", lambda: iter(()))
    with server(GRPC) as port:
        assert reachable(f"ray://127.0.0.1:{port}") == f"ray://127.0.0.1:{port}"
        with pytest.raises(ResourceError, match="no node of it runs on this machine"):
            reachable(f"127.0.0.1:{port}")


JOIN = """
from hisem.distributed import address, session
address._require_node = lambda address: None
try:
    with session.cluster():
        pass
except session.ResourceError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.timeout(60)  # Ray's own patience is nine minutes
def test_a_cluster_that_answers_no_more_ends_the_command() -> None:
    with server(GRPC) as port:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        command = [sys.executable, "-c", JOIN]
        done = subprocess.run(
            command, env=environment | {"RAY_ADDRESS": f"127.0.0.1:{port}"}, capture_output=True, text=True, timeout=50
        )
    assert f"RAY_ADDRESS=127.0.0.1:{port}" in done.stdout, done.stderr
