"""The address of a Ray cluster that is to be joined: whether one answers there, before Ray itself tries for minutes."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from hisem.distributed import ray_folder
from hisem.errors import ResourceError

log = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
NODE_SECONDS = 15.0
"""How long a node of the cluster may take to start on this machine, beside which a driver runs."""

CURRENT = "ray_current_cluster"
"""File in Ray's folder that names the cluster that was last started on this machine."""

GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""How a client begins HTTP/2, and so gRPC; a server answers with a frame of type 4."""

UNSET = "Unset RAY_ADDRESS to run on this machine, or start the cluster."


def reachable(address: str) -> str:
    """What `address`, the value of RAY_ADDRESS, means to `ray.init`: HOST:PORT or ray://HOST:PORT.

    Raises `ResourceError` within half a minute where no cluster answers there, and where it is of another form.
    """
    if address == "auto":
        found, where = _current()
    else:
        found, where = address, ""
    client = found.startswith("ray://")
    host, port = _parts(found.removeprefix("ray://"), address)
    at = f"RAY_ADDRESS={address}: " + (f"{found}, {where}, is where a cluster was; " if where else "")
    try:
        answered = _answers(host, port)
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that no host can have
        raise ResourceError(f"{at}no Ray cluster answers there ({error or type(error).__name__}). {UNSET}") from error
    if not answered:
        raise ResourceError(
            f"{at}what listens there is no Ray cluster: it does not speak gRPC. RAY_ADDRESS takes the port of the "
            f"head's GCS (6379 by default), not that of the dashboard. {UNSET}"
        )
    if not client:
        _require_node(address)
    return found


def _parts(found: str, address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT, where an IPv6 address stands in brackets."""
    host, _, port = found.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not bare or not port.isdecimal() or not 0 < int(port) < 65536 or (":" in bare and host == bare):
        raise ResourceError(
            f"RAY_ADDRESS={address}: is not an address. auto, HOST:PORT or ray://HOST:PORT is needed, with an IPv6 "
            "address in brackets, as in [::1]:6379."
        )
    return bare, int(port)


def _answers(host: str, port: int) -> bool:
    """True if a server of gRPC answers at `host` and `port`. Raises `OSError` where nothing does."""
    with socket.create_connection((host, port), timeout=CONNECT_SECONDS) as connection:
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return True  # it answers to no greeting in plain text
        connection.sendall(GREETING)
        frame = connection.recv(9)
    return len(frame) > 3 and frame[3] == 4


def _current() -> tuple[str, str]:
    """The address that Ray takes for `auto`, and how it was found. Raises `ResourceError` where there is none."""
    running = sorted(set(_clusters()))
    file = Path(ray_folder.path()) / CURRENT
    try:
        named = file.read_text(encoding="utf-8").strip()
    except OSError:
        named = ""
    if named and len(running) != 1:
        return named, f"named in {file}"
    if running:
        return running[0], "of the node on this machine"
    raise ResourceError(f"RAY_ADDRESS=auto: no Ray runs on this machine, and there is no {file}. {UNSET}")


def _clusters() -> Iterator[str]:
    """The GCS addresses of Ray's nodes that run on this machine."""
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or [""]
        if Path(command[0]).name == "raylet":
            yield from (word.partition("=")[2] for word in command if word.startswith("--gcs-address="))


def _require_node(address: str) -> None:
    """Wait for a node on this machine, as Ray does, without a word, for a minute."""
    until = time.monotonic() + NODE_SECONDS
    while not any(_clusters()):
        if time.monotonic() > until:
            raise ResourceError(
                f"RAY_ADDRESS={address}: the cluster answers, but no node of it runs on this machine, as is needed "
                "beside a driver. Run the command on a node, or submit it as a job (cluster/submit.sh)."
            )
        if until - time.monotonic() > NODE_SECONDS - 1:
            log.info("waiting for a node of the cluster at RAY_ADDRESS=%s to start on this machine", address)
        time.sleep(1)
