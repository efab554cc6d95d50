"""A bundle's way to workers that do not see the driver's disk: through the object store."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from hisem.model import bundle
from hisem.model.hisem import HiSem


@dataclass(frozen=True)
class Shipped:
    """A bundle's files in the object store. Who shipped it keeps this until the last worker has loaded it."""

    files: Any


def ship(folder: Path) -> Shipped:
    """Put a bundle into the object store; hand the result to `unpack` on any node."""
    names = (bundle.WEIGHTS, bundle.CONFIG, bundle.VOCABULARY, bundle.PREPROCESSING)
    return Shipped(ray.put({name: (folder / name).read_bytes() for name in names}))


def unpack(shipped: Shipped) -> HiSem:
    """The model of a shipped bundle, in eval mode on the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in ray.get(shipped.files).items():
            Path(folder, name).write_bytes(content)
        return HiSem.from_pretrained(folder)
