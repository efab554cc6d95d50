"""How an archive is captioned, as a person says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Captioning:
    """How captions are made, and with what; `distributed.captioner.CaptionOptions` checks it."""

    beam: int = 1
    """Beam width; 1 is greedy."""
    batch_size: int = 32
    """Tiles per forward pass."""
    captioners: int = 1
    """Captioning actors; on CPUs they share the cores."""
    gpu: bool = False
    """Give each captioner one GPU."""
    precision: Literal["float32", "bf16"] = "float32"
    """Arithmetic: bf16 for a GPU."""
    compile: bool = False
    """Compile the model: faster after a first batch that takes minutes."""


GREEDY = Captioning()
