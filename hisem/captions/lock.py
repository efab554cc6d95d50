"""One writer at a time on a captions table, on any storage that lists what was written.

Who wants the table puts an entry of its own into `OUT/_locks/` and holds it while it is alone there. Object stores have
no exclusive creation that all of them and Arrow know, but each lists an object once it is written: of two that
write, then list, at least one sees the other. A holder writes its entry anew every BEAT seconds; one that has stopped
is told by the storage's own clock, on which both entries are.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pyarrow.fs as pafs

from hisem import storage
from hisem.errors import BusyError, StorageError

log = logging.getLogger(__name__)

LOCKS = "_locks"
BEAT = 10.0
"""Seconds between two signs of life."""
STALE = 60.0
"""Seconds without one after which a holder counts as dead."""
LOOK = 0.5
"""Seconds between two looks at the others."""


@dataclass(frozen=True)
class Entry:
    """Who wants or holds the table."""

    host: str
    machine: str
    """This start of this machine, and the namespace of its processes; empty where that cannot be told."""
    pid: int
    born: str
    """When the process started, by which another one of the same number is told apart."""
    since: str
    what: str
    holds: bool = False

    def name(self) -> str:
        """What a person is told."""
        return f"{self.what} (process {self.pid} on {self.host}, since {self.since})"


class Lock:
    """A held lock; see `exclusive`."""

    def __init__(self, output: str, entry: Entry) -> None:
        self._output = output
        self._uri = storage.join(output, LOCKS, f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{uuid4().hex[:8]}.json")
        self._entry = entry
        self._over = threading.Event()
        self._beats_given: threading.Thread | None = None
        self._written = _clock()

    def require(self) -> None:
        """Raise `StorageError` where another run took the table over, or may have, as it thought this one dead."""
        silent = _clock() - self._written > STALE - BEAT
        if silent or not storage.exists(self._uri) or any(other.holds for _, other, _ in self._others()):
            raise StorageError(
                f"{self._output}: this run was without a sign of life for more than {STALE:g} s, and another one took "
                "the table over. What was captioned is kept aside; nothing was published. Run the command again."
            )

    def acquire(self) -> None:
        """Wait for the table as long as it is unclear whether another holds it."""
        self._write()
        try:
            told: str | None = None
            while others := self._others():
                name, other, beat = others[0]
                if other.holds and (_here(other) or self._beats(name, beat)):
                    raise BusyError(f"{self._output}: held by {other.name()}. Wait for its end, or end it.")
                if not other.holds and name < self._uri.rpartition("/")[2]:  # and one that came later will go
                    raise BusyError(f"{self._output}: wanted by {other.name()} at the same moment. Try again.")
                if told != name:
                    log.info("waiting up to %g s to see whether %s is alive", STALE, other.name())
                    told = name
                time.sleep(LOOK)
            if _clock() - self._written > STALE - BEAT:
                raise BusyError(f"{self._output}: this process stood still on its way to the table. Try again.")
            self._entry = replace(self._entry, holds=True)
            self._write()
        except BaseException:
            self.release()
            raise
        self._beats_given = threading.Thread(target=self._beat, daemon=True)
        self._beats_given.start()

    def release(self) -> None:
        """Give the table back."""
        self._over.set()
        if self._beats_given:
            self._beats_given.join()  # a beat on its way would bring the entry back
        with suppress(StorageError):
            storage.delete(self._uri)

    def _write(self) -> None:
        storage.write_bytes(self._uri, json.dumps(asdict(self._entry)).encode())
        self._written = _clock()

    def _beat(self) -> None:
        while not self._over.wait(BEAT) and _clock() - self._written <= STALE - BEAT:
            try:
                if storage.exists(self._uri):  # else it was taken over, and writing it would hide that
                    self._write()
            except StorageError as error:
                log.warning("no sign of life could be written: %s", error)

    def _others(self) -> list[tuple[str, Entry, float]]:
        """The entries of others that may live, holders first, with the storage's time of their last sign of life.

        Those that are surely dead are removed.
        """
        fs, folder = storage.filesystem(storage.join(self._output, LOCKS))
        mine = self._uri.rpartition("/")[2]
        self._refresh()
        try:
            listed = fs.get_file_info(pafs.FileSelector(folder, allow_not_found=True))
        except OSError as error:
            raise StorageError(f"{self._output}: its locks cannot be listed ({error}).") from error
        infos = {
            info.base_name: info.mtime_ns / 1e9
            for info in listed
            if info.base_name.endswith(".json") and not info.base_name.startswith(".")
        }
        now = infos.get(mine)
        found = []
        for name, beat in infos.items():
            if name == mine:
                continue
            uri = storage.join(self._output, LOCKS, name)
            try:
                entry = Entry(**json.loads(storage.read_bytes(uri)))
            except (StorageError, ValueError, TypeError):
                entry = Entry("an unknown host", "", 0, "", "an unknown time", "a run that left no name", holds=True)
            if (_here(entry) and _born(entry.pid) != entry.born) or (now is not None and now - beat > STALE):
                log.warning("%s is dead: its lock is removed", entry.name())
                storage.delete(uri)
            else:
                found.append((name, entry, beat))
        return sorted(found, key=lambda one: (not one[1].holds, one[0]))

    def _refresh(self) -> None:
        """Bring the own entry's time up to the storage's clock, while it waits; a holder's is kept by its beats."""
        if not self._entry.holds and _clock() - self._written > 1:
            self._write()

    def _beats(self, name: str, first: float) -> bool:
        """Whether the holder `name` gives a sign of life within two beats; False where it has gone or may be dead."""
        until = time.monotonic() + 2 * BEAT
        while time.monotonic() < until:
            there = {other: beat for other, _, beat in self._others()}
            if name not in there:
                return False
            if there[name] > first:
                return True
            time.sleep(LOOK)
        return False


@contextmanager
def exclusive(output: str, what: str) -> Iterator[Lock]:
    """Hold the table at `output` for `what`. Raises `BusyError` with the holder's name where another run does."""
    lock = Lock(output, _myself(what))
    lock.acquire()
    try:
        yield lock
    finally:
        lock.release()


def _myself(what: str) -> Entry:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Entry(socket.gethostname(), _machine(), os.getpid(), _born(os.getpid()), now, what)


def _here(entry: Entry) -> bool:
    """Whether it is a process that this one can look for."""
    return bool(entry.machine) and entry.machine == _machine()


def _clock() -> float:
    """Seconds that also pass while the machine sleeps, where the system tells them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.time()


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _born(pid: int) -> str:
    """When a process of this machine started, in its clock's ticks; empty where it runs no more."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
