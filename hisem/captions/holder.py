"""Who holds a folder: a process, as the lock file names it, and whether it runs on this machine."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from hisem.conditional import Read
from hisem.config import from_dict
from hisem.errors import ConfigError


@dataclass(frozen=True)
class Entry:
    """Content of the lock file: who holds the folder."""

    host: str
    machine: str
    """Boot of the machine and namespace of its processes; empty where they cannot be found out."""
    pid: int
    born: str
    """Start time of the process, which differs for another one of the same number."""
    since: str
    what: str
    token: str = ""
    """Random, one for each time that the lock is taken."""
    beat: int = 0
    """Number of heartbeats."""
    released: bool = False
    """Left in the place of the file on object stores, which have no conditional deletion."""
    holds: bool = True
    """False in a file of an earlier version that waited."""

    def name(self) -> str:
        """Return the holder as messages name it."""
        return f"{self.what} (process {self.pid} on {self.host}, since {self.since})"


UNKNOWN = Entry("an unknown host", "", 0, "", "an unknown time", "a run that left no name")


def holder_in(there: Read) -> Entry | None:
    """Return the holder that a lock file names, None for one that was released."""
    entry = parsed(there.content)
    return None if entry.released else entry


def parsed(content: bytes) -> Entry:
    """Return what a lock file holds, UNKNOWN for one that is damaged."""
    try:
        data = json.loads(content)
        return from_dict(Entry, data, "lock") if isinstance(data, dict) else UNKNOWN
    except (ConfigError, ValueError, RecursionError):
        return UNKNOWN


def myself(what: str) -> Entry:
    """Return this process as a new holder."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Entry(socket.gethostname(), _machine(), os.getpid(), born(os.getpid()), now, what, uuid4().hex)


def is_here(entry: Entry) -> bool:
    """True if it is a process that this one can look for."""
    return bool(entry.machine) and entry.machine == _machine()


def clock() -> float:
    """Return seconds that also pass while the machine sleeps, where the system counts them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.time()


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _status(pid: int) -> list[str]:
    """Return what Linux knows of a process of this machine, from its state on; nothing where it has exited."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
    return [] if fields[0] in "ZX" else fields


def born(pid: int) -> str:
    """Return when a process of this machine started, in its clock's ticks; empty where it has exited."""
    fields = _status(pid)
    return fields[19] if fields else ""


def is_stopped(pid: int) -> bool:
    """True if a process of this machine is suspended by a signal or a debugger."""
    return _status(pid)[:1] in (["T"], ["t"])
