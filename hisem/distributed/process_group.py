"""The process group of training's workers, whose ports are open at the addresses by which they reach each other alone.

Ray Train's own set-up lets torch's store listen on all addresses of a node. Neither has a password: what can reach
these ports can end a training run or change its numbers, but run no code, as no pickle goes through the group.
"""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address
from typing import Any

import psutil
import ray
import ray.exceptions
import torch
import torch.distributed as dist
from ray.train.backend import Backend
from ray.train.torch import TorchConfig

log = logging.getLogger(__name__)

LEAVE_SECONDS = 30.0
"""How long workers may take to leave the group."""


@dataclass
class BoundTorchConfig(TorchConfig):
    """Ray Train's configuration for torch, with a process group that listens on the workers' addresses alone."""

    @property
    def backend_cls(self) -> type[Backend]:
        """Sets the group up, and ends it."""
        return _BoundBackend


class _BoundBackend(Backend):
    """Has the workers form a group. A single worker needs none, and opens no port."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: BoundTorchConfig) -> None:
        """Called by Ray Train's controller once the workers are there."""
        count = len(worker_group)
        if count == 1:
            return
        backend = backend_config.backend or ("nccl" if worker_group.get_resources_per_worker().get("GPU") else "gloo")
        addresses = worker_group.execute(ray.util.get_node_ip_address)
        if len(set(addresses)) == 1:
            addresses = ["127.0.0.1"] * count
        port = worker_group.execute_single(0, open_store, addresses[0], count, backend_config.timeout_s)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank, join, backend, rank, count, address, (addresses[0], port), backend_config.timeout_s
                )
                for rank, address in enumerate(addresses)
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: BoundTorchConfig) -> None:
        """Called before the workers end."""
        try:
            ray.get(worker_group.execute_async(leave), timeout=LEAVE_SECONDS)
        except ray.exceptions.GetTimeoutError:
            log.warning("the workers have not left their process group in %.0f s: they are ended", LEAVE_SECONDS)


_store: Any = None
"""The store that this process serves, until the group has it."""


def open_store(address: str, count: int, seconds: float) -> int:
    """Serve the store of a group of `count` workers at `address`; its port. For rank 0.

    Behind a translation of addresses no interface has it: the store then listens on all, and logs so.
    """
    global _store
    family = socket.AF_INET6 if ip_address(address).version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        if interface_of(address) is None:
            log.warning("no network interface has this node's address %s: torch's store listens on all", address)
        listener.bind((address if interface_of(address) else "", 0))
        listener.listen(max(64, 2 * count))
        port: int = listener.getsockname()[1]
        _store = dist.TCPStore(  # type: ignore[attr-defined]
            address,
            port,
            count,
            is_master=True,
            timeout=timedelta(seconds=seconds),
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )
    return port


def join(backend: str, rank: int, count: int, address: str, store_at: tuple[str, int], seconds: float) -> None:
    """Make this process rank `rank` of the group, reachable at `address`."""
    global _store
    timeout = timedelta(seconds=seconds)
    store = _store if rank == 0 else None
    if store is None:
        store = dist.TCPStore(*store_at, count, is_master=False, timeout=timeout)  # type: ignore[attr-defined]
    _store = None
    interface = interface_of(address)
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")
    if backend == "nccl":
        os.environ.setdefault(
            "TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"
        )  # as Ray Train has it: a lost worker ends the rest
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=timeout)


def interface_of(address: str) -> str | None:
    """The network interface that has `address`; None where none has, as behind a translation of addresses."""
    wanted = ip_address(address)
    for name, entries in psutil.net_if_addrs().items():
        for entry in entries:
            if entry.family in (socket.AF_INET, socket.AF_INET6) and ip_address(entry.address) == wanted:
                return name
    return None


def leave() -> None:
    """Leave the group, if this process is in one, and give memory of its GPU back."""
    if dist.is_initialized():
        dist.destroy_process_group()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
