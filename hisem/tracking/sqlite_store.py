"""MLflow's SQLite file: made whole or not at all, and checked before MLflow opens it.

MLflow creates its tables in some fifty migrations without a transaction around them, and a file that is left in the
midst of them never works again. Here the file is made under a temporary name and appears when it is complete.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shlex
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from hisem.errors import ConfigError, TrackingError

log = logging.getLogger(__name__)

LOCK_SECONDS = 180.0
"""Longest wait for another process that makes the file; it takes seconds, or a minute on a busy machine."""

QUIET_SECONDS = 5.0
"""A file with missing tables that changed within this time may be in the hands of `mlflow ui`, which is waited for."""

SETTLE_SECONDS = 60.0
"""Longest wait for such a file."""

POLL_SECONDS = 0.1

_ready: set[tuple[str, int, int]] = set()
"""Path, device and inode of the files that this process has checked."""


def uri_of(path: Path) -> str:
    """Return the tracking URI of the SQLite file at the absolute `path`.

    Raises `ConfigError` where no URI leads SQLAlchemy to this very path.
    """
    uri = f"sqlite:///{path}"
    if set("?%") & set(str(path)):
        # Written out with its driver, since MLflow creates the folder that `sqlite:///` names, as it is encoded.
        uri = f"sqlite+pysqlite:///{quote(str(path), errors='surrogateescape')}"
    if path_of(uri) != path or not _is_text(str(path)):
        raise ConfigError(
            f"{str(path)!r}: no MLflow database can be made there, since the path has characters that its URI cannot "
            "hold. Choose a --storage (or HISEM_STORAGE) of others, or name a tracking server with --tracking."
        )
    return uri


def path_of(uri: str) -> Path | None:
    """Return the file that a SQLite tracking URI names, None for other URIs and for databases in memory."""
    if not uri.startswith(("sqlite:", "sqlite+")):
        return None
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        database = make_url(uri).database
    except ArgumentError:
        return None  # MLflow refuses it
    if not database or database == ":memory:" or database.startswith("file:"):
        return None
    return Path(database)


def prepare(uri: str) -> None:
    """Make the SQLite file of `uri` where it is absent, and check it where it is there; other URIs are left alone.

    Raises `TrackingError` for a file that MLflow cannot use, with what to do, and `OSError` for an unusable folder.
    """
    path = path_of(uri)
    if path is None or _identity(path) in _ready:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        with _lock(path):
            if not path.exists():
                _build(path)
    _require_whole(path, uri)
    _ready.add(_identity(path))


def _identity(path: Path) -> tuple[str, int, int]:
    """Return what changes when another file takes the place of this one."""
    try:
        found = path.stat()
    except OSError:
        return str(path), 0, -1
    return str(path), found.st_dev, found.st_ino


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the lock file beside `path`. Raises `TrackingError` where another process holds it for LOCK_SECONDS."""
    file = path.with_name(f".{path.name}.lock")
    began, logged = time.monotonic(), False
    with file.open("ab") as held:
        while True:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waited = time.monotonic() - began
            except OSError as error:  # a file system without locks: `_publish` lets one of two win
                log.debug("%s cannot be locked: %s", file, error)
                break
            if waited > LOCK_SECONDS:
                raise TrackingError(
                    f"{path}: another process has been making this MLflow store for {LOCK_SECONDS:g} s. End it (it has "
                    f"{file} open), and run the command again."
                )
            if waited > 2 and not logged:
                logged = True
                log.info("waiting up to %g s for another command that makes the MLflow store %s", LOCK_SECONDS, path)
            time.sleep(POLL_SECONDS)
        yield


def _build(path: Path) -> None:
    """Create the file with all of MLflow's tables. The caller holds the lock."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    log.info("creating the MLflow store %s", path)
    for left in path.parent.glob(f".{_escaped(path.name)}.*.tmp*"):  # of killed processes
        with suppress(OSError):
            left.unlink()
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    uri = uri_of(temporary.absolute())
    try:
        store = SqlAlchemyStore(uri, (path.absolute().parent / "mlartifacts").as_uri())
        store._dispose_engine()
        SqlAlchemyStore._engine_map.pop(uri, None)
        _publish(temporary, path)
    finally:
        for left in (temporary, temporary.with_name(f"{temporary.name}-journal")):
            left.unlink(missing_ok=True)


def _escaped(name: str) -> str:
    """Return `name` as a glob pattern that matches itself alone."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)


def _publish(temporary: Path, path: Path) -> None:
    """Give the complete file its name, durably; a file that another process put there meanwhile stays."""
    _sync(temporary)
    try:
        os.link(temporary, path)  # never replaces a file, as a rename would
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        temporary.rename(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems cannot flush a folder
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _require_whole(path: Path, uri: str) -> None:
    """Raise `TrackingError` for a file that is not a complete MLflow store of this version's."""
    began, logged = time.monotonic(), False
    while (fault := _fault(path, uri)) is not None:
        message, may_change = fault
        recent = may_change and time.time() - path.stat().st_mtime < QUIET_SECONDS
        if not recent or time.monotonic() - began > SETTLE_SECONDS:
            raise TrackingError(message)
        if not logged:
            logged = True
            log.info("waiting up to %g s for the tables of the MLflow store %s", SETTLE_SECONDS, path)
        time.sleep(POLL_SECONDS)


def _fault(path: Path, uri: str) -> tuple[str, bool] | None:
    """Return why MLflow cannot use the file and what to do, and whether another may be making it; None if it can."""
    aside = f"Move {path} aside: the next command makes a new one"
    if not path.is_file():
        return f"{path}: not a file; an MLflow database is expected. Remove it, or name another --tracking.", False
    if not path.stat().st_size:
        return f"{path}: this MLflow store is empty (0 bytes); making it was interrupted. {aside}.", True
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=rw", uri=True, timeout=20)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            versions = (
                [version for (version,) in database.execute("SELECT version_num FROM alembic_version")]
                if "alembic_version" in tables
                else []
            )
            runs = database.execute("SELECT count(*) FROM runs").fetchone()[0] if "runs" in tables else 0
    except sqlite3.OperationalError as error:
        return (
            f"{path}: cannot be opened ({error}). Check that no other program holds it, and that you may write to it "
            "and to its folder.",
            False,
        )
    except sqlite3.DatabaseError as error:
        return f"{path}: not a usable SQLite database ({error}). Restore it from a copy, or: {aside}.", False
    held = f"It holds {runs} run(s)." if runs else "It holds no runs."
    head, known = _schema(versions[0] if versions else "")
    if not versions:
        return f"{path}: making or upgrading this MLflow store was interrupted. {held} {aside}.", True
    if not known:
        return (
            f"{path}: a newer MLflow made this store (schema {versions[0]}, {head} is known). Install that MLflow, or "
            "name another --tracking.",
            False,
        )
    if versions[0] != head:
        upgrade = f"mlflow db upgrade {shlex.quote(uri)}"
        return (
            f"{path}: an older MLflow made this store (schema {versions[0]}, {head} is needed), or making it was "
            f"interrupted. {held} Copy the file, then run: {upgrade}. Where that fails: {aside}.",
            True,
        )
    if missing := sorted(_tables() - tables):
        return f"{path}: tables of this MLflow store are missing ({', '.join(missing[:3])}). {held} {aside}.", True
    return None


def _schema(version: str) -> tuple[str, bool]:
    """Return the schema version of the installed MLflow, and whether it knows `version`."""
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError
    from mlflow.store.db.utils import _get_alembic_config

    scripts = ScriptDirectory.from_config(_get_alembic_config(db_url=""))
    head = scripts.get_current_head() or ""
    try:
        return head, bool(version) and scripts.get_revision(version) is not None
    except CommandError:
        return head, False


def _tables() -> set[str]:
    """Return the names of the tables that the installed MLflow uses."""
    import mlflow.store.db.utils  # noqa: F401 - it registers them all
    from mlflow.store.db.base_sql_model import Base

    return set(Base.metadata.tables)
