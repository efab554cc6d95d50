"""The folder in which a local Ray keeps its logs and sockets: whether one can start there."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from pathlib import Path

from hisem.errors import ResourceError

NEEDED = 64 * 2**20
"""Bytes that must be free: logs, and what does not fit into the object store. Ray starts with less, and dies soon."""

SOCKET = "session_2000-01-01_00-00-00_000000_{}/sockets/plasma_store"
"""The longest path that Ray makes in the folder; {} is the driver's process id."""

LONGEST = 103 if sys.platform == "darwin" else 107
"""Bytes that the path of a socket may have."""

OTHER = "Set RAY_TMPDIR to {} folder, as in RAY_TMPDIR=/var/tmp."


def path() -> str:
    """The folder, which Ray puts into RAY_TMPDIR, else TMPDIR, else /tmp."""
    root = os.environ.get("RAY_TMPDIR") or (sys.platform == "linux" and os.environ.get("TMPDIR")) or "/tmp"
    return str(Path(root) / "ray")


def require_usable() -> None:
    """Raise `ResourceError` where a local Ray cannot start in its folder: full, read-only, or of too long a path."""
    folder = path()
    longest = len(os.fsencode(f"{folder}/{SOCKET.format(os.getpid())}"))
    if longest > LONGEST:
        raise ResourceError(
            f"{folder}: Ray's sockets there would have paths of {longest} bytes, {longest - LONGEST} more than the "
            f"system allows. {OTHER.format('a shorter')}"
        )
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b"0" * 4096)
            file.flush()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(folder, 0) from error
        raise ResourceError(
            f"{folder}: Ray cannot write its logs and sockets there ({error}). {OTHER.format('another')}"
        ) from error
    if free < NEEDED:
        raise _full(folder, free)


def _full(folder: str, free: int) -> ResourceError:
    return ResourceError(
        f"{folder}: the disk is full ({free / 2**20:.0f} MiB are free, Ray's logs and sockets need "
        f"{NEEDED / 2**20:.0f}). Make room (old sessions of Ray lie there, too), or: {OTHER.format('another')}"
    )
