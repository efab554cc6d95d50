"""What workers exchange beside tensors: JSON, as bytes in tensors. torch's own collectives of objects unpickle."""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gathered(value: Any) -> list[Any]:
    """The `value` of every worker, by rank, as JSON brings it back: tuples as lists, keys as text."""
    mine = _packed(value)
    if not dist.is_initialized():
        return [_unpacked(mine)]
    count, device = dist.get_world_size(), _device()
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(count)]
    dist.all_gather(sizes, torch.tensor([len(mine)], device=device))
    longest = max(int(size) for size in sizes)
    padded = torch.zeros(longest, dtype=torch.uint8, device=device)
    padded[: len(mine)] = mine.to(device)
    parts = [torch.zeros_like(padded) for _ in range(count)]
    dist.all_gather(parts, padded)
    return [_unpacked(part[: int(size)]) for part, size in zip(parts, sizes, strict=True)]


def of_first(value: Any) -> Any:
    """The `value` of rank 0, as JSON brings it back; the others' does not count."""
    mine = _packed(value)
    if not dist.is_initialized():
        return _unpacked(mine)
    device = _device()
    size = torch.tensor([len(mine)], device=device)
    dist.broadcast(size, 0)
    sent = mine.to(device) if dist.get_rank() == 0 else torch.zeros(int(size), dtype=torch.uint8, device=device)
    dist.broadcast(sent, 0)
    return _unpacked(sent)


def _packed(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _unpacked(content: Tensor) -> Any:
    return json.loads(content.cpu().numpy().tobytes())


def _device() -> torch.device:
    """Where the group's tensors must be."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
