"""Processes of this machine, by what they call themselves."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path


def processes(pattern: bytes, parent: int | None = None) -> list[int]:
    """Numbers of the processes whose command line has the pattern, of all or of one parent."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            if re.search(pattern, (path / "cmdline").read_bytes()):
                parents = (path / "stat").read_text().rpartition(")")[2].split()[1]
                if parent in (None, int(parents)):
                    found.append(int(path.name))
    return found
