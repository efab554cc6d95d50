"""Conditional writes to the files of one folder: create what is absent, replace what was read, and nothing else.

Object stores check the condition themselves (`If-None-Match`, `If-Match`, generations). On a local file system each
write takes the folder's guard, a `flock`, and holds it over the check and the rename: a process that is suspended in
between keeps the guard. What is written locally is on the disk when the call returns.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hisem import storage
from hisem.errors import BusyError, ConflictError, StorageError

log = logging.getLogger(__name__)

LOCKS = "_locks"
GUARD = f"{LOCKS}/.guard"
"""File that is locked while a local file is replaced; never removed, as others may hold it open."""
GUARD_SECONDS = 60.0
"""How long the guard is waited for: it is held for a rename."""
NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")
"""Name of a file that was being written, by `storage.write_bytes` or here."""


@dataclass(frozen=True)
class Version:
    """State of a file at one moment, which every later write changes."""

    etag: str
    generation: str | None = None


@dataclass(frozen=True)
class Read:
    """Content of a file and the version that it is of."""

    content: bytes
    version: Version


Check = Callable[[], None]
"""Raises where the write must not happen; called as late as the storage allows."""


def unchecked() -> None:
    """Allow the write."""


class Files(Protocol):
    """Files of one folder. Names are relative to it.

    `put` and `remove` raise `ConflictError` where the file is not of the version `expected` (None: absent).
    """

    conditional: bool
    """Whether the storage holds to the conditions; False leaves a moment between the check and the write."""

    def read(self, name: str) -> Read | None:
        """Return the file, None where it is absent."""

    def put(self, name: str, content: bytes, expected: Version | None, check: Check = unchecked) -> Version:
        """Write the file. A file of the same content counts as written, so that an attempt can be repeated."""

    def remove(self, name: str, expected: Version, instead: bytes, check: Check = unchecked) -> None:
        """Remove the file, or write `instead`: object stores have no conditional deletion that all of them share."""

    def clear(self, folders: Iterable[str]) -> None:
        """Remove what killed processes left of files that they were writing, in `folders` and below."""


def files_of(folder: str) -> Files:
    """Return the files of a folder, by its URI. Raises `StorageError` for one that cannot be opened."""
    fs, path = storage.filesystem(folder)
    if fs.type_name == "local":
        return LocalFiles(path)
    if fs.type_name in storage.OBJECT_STORES:
        from hisem.object_files import ObjectFiles

        return ObjectFiles(storage.absolute(folder), fs.type_name, path)
    return PlainFiles(folder)


class LocalFiles:
    """Files of a local folder."""

    def __init__(self, root: str) -> None:
        self.root = Path(root)
        self.conditional = True

    def read(self, name: str) -> Read | None:
        """Return the file, None where it is absent."""
        path = self.root / name
        try:
            with path.open("rb") as file:
                return Read(file.read(), _version(os.fstat(file.fileno())))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"{path}: cannot be read ({error}).") from error

    def put(self, name: str, content: bytes, expected: Version | None, check: Check = unchecked) -> Version:
        """Write the file durably: content, then name."""
        path = self.root / name
        try:
            make_folder(path.parent)
            if name.startswith(f"{LOCKS}/"):  # others may clear this folder meanwhile, and nothing in it need last
                with self._guarded():
                    return self._replace(path, write_temporary(path, content, sync=False), content, expected, check)
            temporary = write_temporary(path, content)
            try:
                with self._guarded():  # held as shortly as can be: who is suspended with it blocks all others
                    version = self._replace(path, temporary, content, expected, check)
            finally:
                temporary.unlink(missing_ok=True)
            sync_folder(path.parent)
            return version
        except OSError as error:
            raise StorageError(f"{path}: cannot be written ({error}).") from error

    def _replace(self, path: Path, temporary: Path, content: bytes, expected: Version | None, check: Check) -> Version:
        """Rename `temporary` to `path`, under the guard."""
        try:
            check()
            there = self._version_of(path)
            if there != expected and (there is None or path.read_bytes() != content):
                raise ConflictError(f"{path}: another process wrote it meanwhile.")
            temporary.rename(path)
            return _version(path.stat())
        finally:
            temporary.unlink(missing_ok=True)

    def remove(self, name: str, expected: Version, instead: bytes, check: Check = unchecked) -> None:
        """Remove the file durably."""
        path = self.root / name
        try:
            with self._guarded():
                check()
                if self._version_of(path) != expected:
                    raise ConflictError(f"{path}: another process wrote it meanwhile.")
                path.unlink()
            sync_folder(path.parent)
        except OSError as error:
            raise StorageError(f"{path}: cannot be removed ({error}).") from error

    def clear(self, folders: Iterable[str]) -> None:
        """Remove temporary files of killed processes, with the lock held; those of lock files lie under the guard."""
        for folder in folders:
            found = (self.root / folder).glob(".*.tmp") if folder in ("", ".") else (self.root / folder).rglob(".*.tmp")
            for path in found:
                if TEMPORARY.fullmatch(path.name) and path.is_file():
                    with suppress(OSError), self._guarded():
                        path.unlink(missing_ok=True)

    @staticmethod
    def _version_of(path: Path) -> Version | None:
        try:
            return _version(path.stat())
        except FileNotFoundError:
            return None

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Hold the guard. Raises `BusyError` where another process keeps it, as one does that is suspended."""
        path = self.root / GUARD
        make_folder(path.parent)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            locked = self._flock(descriptor, path)
            try:
                yield
            finally:
                if locked:
                    fcntl.flock(descriptor, fcntl.LOCK_UN)  # for forks, too, which have it open
        finally:
            os.close(descriptor)

    def _flock(self, descriptor: int, path: Path) -> bool:
        """Lock the guard; False on a file system that has no locks."""
        began, logged = time.monotonic(), False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                waited = time.monotonic() - began
                if waited > GUARD_SECONDS:
                    raise BusyError(
                        f"{path}: a process holds it for more than {GUARD_SECONDS:g} s: it is suspended, or stuck, in "
                        "the middle of a write. Continue or end that process."
                    ) from None
                if waited > 5 and not logged:
                    log.info("waiting up to %g s for %s, which another process holds", GUARD_SECONDS, path)
                    logged = True
                time.sleep(0.01)
            except OSError as error:
                if error.errno not in NO_FLOCK:
                    raise
                if self.conditional:
                    log.warning("%s: the file system has no locks (%s): let one run at a time write there", path, error)
                self.conditional = False
                return False


class PlainFiles:
    """Files of a storage without conditions: each is checked right before it is written."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.conditional = False

    def read(self, name: str) -> Read | None:
        """Return the file, None where it is absent."""
        uri = storage.join(self.folder, name)
        if not storage.exists(uri):
            return None
        content = storage.read_bytes(uri)
        return Read(content, Version(hashlib.sha256(content).hexdigest()))

    def put(self, name: str, content: bytes, expected: Version | None, check: Check = unchecked) -> Version:
        """Write the file."""
        self._require(name, expected, content)
        check()
        storage.write_bytes(storage.join(self.folder, name), content)
        return Version(hashlib.sha256(content).hexdigest())

    def remove(self, name: str, expected: Version, instead: bytes, check: Check = unchecked) -> None:
        """Remove the file."""
        self._require(name, expected)
        check()
        storage.delete(storage.join(self.folder, name))

    def clear(self, folders: Iterable[str]) -> None:
        """Do nothing: whose a temporary file is cannot be known."""

    def _require(self, name: str, expected: Version | None, content: bytes | None = None) -> None:
        there = self.read(name)
        if (there.version if there else None) != expected and (there is None or there.content != content):
            raise ConflictError(f"{storage.join(self.folder, name)}: another process wrote it meanwhile.")


def write_durably(uri: str, content: bytes) -> None:
    """Write one file as `storage.write_bytes` does, so that it is on the disk when this returns."""
    if storage.is_remote(uri):
        storage.write_bytes(uri, content)
        return
    path = Path(storage.absolute(uri))
    try:
        make_folder(path.parent)
        temporary = write_temporary(path, content)
        try:
            temporary.rename(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error}).") from error


def write_temporary(path: Path, content: bytes, sync: bool = True) -> Path:
    """Write content for `path` under a hidden name beside it, with `sync` on the disk when this returns."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    return temporary


def make_folder(path: Path) -> None:
    """Create a folder and its parents, on the disk when this returns."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(path: Path) -> None:
    """Bring the names in a folder to the disk, where the file system can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # some network file systems have no such call
            raise
    finally:
        os.close(descriptor)


def _version(status: os.stat_result) -> Version:
    return Version(f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}")
