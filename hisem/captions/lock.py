"""One writer at a time on a folder, on any storage, whose writes fail once another run took the folder over.

`OUT/_locks/writer.json` names the holder. It is created where it is absent, and replaced only in the version that was
read: of two runs that want it, one gets it. The holder rewrites it every BEAT seconds. One that has not done so for
STALE seconds, on the clock of the run that waits, is taken over. It may wake up later: all that it writes goes through
`Lock.write`, which fails then.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace

import pyarrow.fs as pafs

from hisem import storage
from hisem.captions.holder import UNKNOWN, Entry, born, clock, holder_in, is_here, is_stopped, myself, parsed
from hisem.conditional import LOCKS, Read, Version, files_of
from hisem.errors import BusyError, ConflictError, StorageError, TakenOverError

log = logging.getLogger(__name__)

WRITER = f"{LOCKS}/writer.json"
BEAT = 10.0
"""Seconds between two heartbeats."""
STALE = 60.0
"""Seconds without a heartbeat after which a holder is taken over."""
LOOK = 0.5
"""Seconds between two looks at the holder."""
ATTEMPTS = 5
"""How often a write is tried again on what another process wrote meanwhile."""


class Lock:
    """A held lock; see `exclusive`."""

    def __init__(self, folder: str, entry: Entry) -> None:
        self.folder, self.token = folder, entry.token
        self._files = files_of(folder)
        self._entry = entry
        self._version: Version | None = None
        self._taken_by: Entry | None = None
        self._over = threading.Event()
        self._heartbeat: threading.Thread | None = None
        self._written = clock()

    def require(self) -> None:
        """Raise `TakenOverError` where another run took the folder over."""
        if self._taken_by is None:
            there = self._files.read(WRITER)
            if there is None or self.token.encode() not in there.content:  # quickly, as it is checked under the guard
                self._taken_by = parsed(there.content) if there else UNKNOWN
            elif not self._files.conditional and clock() - self._written > STALE - BEAT:
                self._taken_by = UNKNOWN  # it may be: on such a storage the silence itself ends the right to write
        if self._taken_by is not None:
            other = "one that has ended" if self._taken_by is UNKNOWN else self._taken_by.name()
            raise TakenOverError(
                f"{self.folder}: this run stood still for more than {STALE:g} s, and another one took over: {other}. "
                "This run wrote nothing since; what it had put aside is the other's. Wait for its end, then run the "
                "command again."
            )

    def is_taken_over(self) -> bool:
        """True if another run is known to have taken the folder over."""
        with suppress(StorageError):
            self.require()
        return self._taken_by is not None

    def read(self, name: str) -> Read | None:
        """Return a file of the folder, by its name relative to that; None where it is absent."""
        return self._files.read(name)

    def write(self, name: str, content: bytes, expected: Version | None) -> None:
        """Write a file durably if this run still holds the folder.

        `expected` is the version that was read, None to create the file. Raises `TakenOverError`, and `ConflictError`
        where the file is of another version: what was planned from it is to be planned again.
        """
        try:
            self._files.put(name, content, expected, self.require)
        except ConflictError:
            self.require()
            raise

    def remove(self, name: str, expected: Version, instead: bytes) -> None:
        """Remove a file as `write` writes it; on object stores it becomes `instead`."""
        try:
            self._files.remove(name, expected, instead, self.require)
        except ConflictError:
            self.require()
            raise

    def update(self, name: str, content: bytes) -> None:
        """Write a file whose earlier content does not matter, as `write` does."""
        for attempt in range(ATTEMPTS):
            there = self._files.read(name)
            try:
                return self.write(name, content, there.version if there else None)
            except ConflictError:  # a write of the run that was taken over came in between: it has one at most
                if attempt == ATTEMPTS - 1:
                    raise
        return None

    def clear(self, *folders: str) -> None:
        """Remove temporary files that killed runs left in folders of the folder."""
        self._files.clear(folders)

    def acquire(self) -> None:
        """Wait as long as it is unclear whether another run holds the folder: about STALE seconds at most."""
        try:
            self._take()
            self._require_conditions()
            self._heartbeat = threading.Thread(target=self._beat_often, daemon=True)
            self._heartbeat.start()
            self._clear_earlier()
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Give the folder back."""
        self._over.set()
        if self._heartbeat:
            self._heartbeat.join()
        if self._version and not self._taken_by:
            gone = json.dumps(asdict(replace(self._entry, released=True))).encode()
            with suppress(StorageError, BusyError):  # then it counts as dead after STALE seconds
                self._files.remove(WRITER, self._version, gone)

    def _take(self) -> None:
        """Become the holder. Raises `BusyError` with the name of the one that lives."""
        lost = 0
        watched: tuple[Version, float] | None = None
        while True:
            there = self._files.read(WRITER)
            holder = holder_in(there) if there else None
            silent = time.monotonic() - watched[1] if watched and there and watched[0] == there.version else None
            dead = holder is not None and is_here(holder) and born(holder.pid) != holder.born
            if holder is None or dead or (silent is not None and silent > STALE):
                if holder:
                    log.warning("%s is %s: taking over", holder.name(), "dead" if dead else "silent")
                try:
                    self._put(there.version if there else None)
                    return
                except ConflictError:
                    watched, lost = None, lost + 1
                except BusyError as error:
                    raise BusyError(
                        f"{self.folder}: held by {(holder or UNKNOWN).name()}, which stands still. {error}"
                    ) from error
            elif (is_here(holder) and not is_stopped(holder.pid)) or (watched and silent is None):
                raise BusyError(f"{self.folder}: held by {holder.name()}. Wait for its end, or end it.")
            elif watched is None and there:
                watched = there.version, time.monotonic()
                log.info("waiting up to %g s to see whether %s is alive", STALE, holder.name())
            if lost == ATTEMPTS:
                raise BusyError(f"{self.folder}: wanted by several runs at the same moment. Try again.")
            time.sleep(LOOK)

    def _put(self, expected: Version | None) -> None:
        self._version = self._files.put(WRITER, json.dumps(asdict(self._entry)).encode(), expected)
        self._written = clock()

    def _require_conditions(self) -> None:
        """Notice a storage that ignores conditions: create the file once more, and replace a version of it twice."""
        first = self._version
        if self._files.conditional:
            self._beat()
        for outdated in (None, first):
            if self._files.conditional:
                self._entry = replace(self._entry, beat=self._entry.beat + 1)
                with suppress(ConflictError):
                    self._put(outdated)
                    self._files.conditional = False
        if not self._files.conditional:
            log.warning(
                "%s: the storage has no conditional writes: let one run at a time write there. A run that stands "
                "still for a minute and continues could write over another one's files",
                self.folder,
            )
            time.sleep(4 * LOOK)  # of two that came at once the later one is seen
            there = self._files.read(WRITER)
            entry = holder_in(there) if there else None
            if entry is None or entry.token != self.token:
                self._version = None
                raise BusyError(f"{self.folder}: wanted by {(entry or UNKNOWN).name()} at the same moment. Try again.")

    def _clear_earlier(self) -> None:
        """Remove locks of dead runs of earlier versions, which had a file each; `BusyError` where one lives."""
        began, first = time.monotonic(), self._earlier()
        others = first
        if others:
            log.info("waiting up to %g s to see whether a run of an earlier version is alive", STALE)
        while others:
            for name, written in others.items():
                uri = storage.join(self.folder, LOCKS, name)
                entry = parsed(storage.read_bytes(uri)) if storage.exists(uri) else UNKNOWN
                dead = is_here(entry) and born(entry.pid) != entry.born
                if (is_here(entry) and not dead and not is_stopped(entry.pid)) or first.get(name) != written:
                    raise BusyError(f"{self.folder}: held by {entry.name()}. Wait for its end, or end it.")
                if dead or time.monotonic() - began > STALE:
                    log.warning("%s is dead: its lock is removed", entry.name())
                    storage.delete(uri)
            others = self._earlier()
            time.sleep(LOOK if others else 0)

    def _earlier(self) -> dict[str, int]:
        """Return the lock files of earlier versions, and when each was written in the storage's time."""
        fs, folder = storage.filesystem(storage.join(self.folder, LOCKS))
        try:
            infos = fs.get_file_info(pafs.FileSelector(folder, allow_not_found=True))
        except OSError as error:
            raise StorageError(f"{self.folder}: its locks cannot be listed ({error}).") from error
        names = {info.base_name: info.mtime_ns for info in infos if info.base_name.endswith(".json")}
        return {name: at for name, at in names.items() if f"{LOCKS}/{name}" != WRITER and not name.startswith(".")}

    def _beat_often(self) -> None:
        while not self._over.wait(BEAT) and self._taken_by is None:
            try:
                self._beat()
            except TakenOverError as error:
                log.error("%s", error)
            except (StorageError, BusyError) as error:
                log.warning("no heartbeat could be written: %s", error)

    def _beat(self) -> None:
        self._entry = replace(self._entry, beat=self._entry.beat + 1)
        try:
            self._put(self._version)
        except ConflictError:
            self.require()
            there = self._files.read(WRITER)  # an attempt whose answer was lost
            self._version = there.version if there else self._version


@contextmanager
def exclusive(folder: str, what: str) -> Iterator[Lock]:
    """Hold a folder for `what`. Raises `BusyError` with the holder's name where another run does.

    An error of a run that was taken over meanwhile becomes a `TakenOverError`.
    """
    lock = Lock(folder, myself(what))
    lock.acquire()
    try:
        yield lock
    except TakenOverError:
        raise
    except Exception as error:
        if lock.is_taken_over():
            try:
                lock.require()
            except TakenOverError as taken:
                raise taken from error
        raise
    finally:
        lock.release()


@contextmanager
def held(folder: str, what: str, lock: Lock | None) -> Iterator[Lock]:
    """Use `lock`, else hold the folder for the block."""
    if lock is not None:
        yield lock
        return
    with exclusive(folder, what) as mine:
        yield mine
