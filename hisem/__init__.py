"""HiSem: change captions for archives of remote-sensing scene pairs (arXiv 2605.15024), on Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hisem.model.hisem import HiSem

__all__ = ["HiSem"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Lazy, so that the archive and text rooms load without torch.
    if name == "HiSem":
        from hisem.model.hisem import HiSem

        return HiSem
    raise AttributeError(f"module 'hisem' has no attribute {name!r}")
