"""Where MLflow keeps things: URIs of stores, a client, and its errors as ours."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hisem import storage
from hisem.errors import TrackingError
from hisem.object_store import has_secret, masked
from hisem.tracking import sqlite_store

RETRIES = 5
"""How often a request to a server is tried again, over about a minute; MLflow's own 7 are four minutes."""

SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(RETRIES),
}
"""MLflow's settings for this process, where the environment has none."""


def require_no_login(uri: str) -> None:
    """Raise `TrackingError` for a URI that holds a password or key: it would go into messages, tags and Ray's state."""
    if has_secret(uri):
        raise TrackingError(
            f"{masked(uri)}: the tracking URI holds a password or key; write it without, and set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, in the environment "
            "(for a database what its driver reads, such as PGPASSWORD)."
        )


def default_uri() -> str:
    """`$MLFLOW_TRACKING_URI`, else a SQLite file under the storage root (which must then be local)."""
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        require_no_login(uri)
        return uri
    root = storage.default_storage()
    if storage.is_remote(root):
        raise TrackingError(
            f"HISEM_STORAGE={masked(root)} is remote, where no SQLite file can live: name a tracking server with "
            "MLFLOW_TRACKING_URI or --tracking."
        )
    return sqlite_uri(root)


def sqlite_uri(folder: str) -> str:
    """Return the tracking URI of the SQLite store in a local folder, which is created if absent.

    Raises `ConfigError` for a folder whose path no such URI can hold, and `TrackingError` for one that is not writable.
    """
    path = Path(storage.absolute(folder))
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrackingError(f"{path}: the folder of the MLflow store cannot be created ({error}).") from error
    return sqlite_store.uri_of(path / "mlflow.db")


def client(uri: str) -> Any:
    """MLflow's client for the store and the registry at `uri`. Raises `TrackingError`."""
    require_no_login(uri)
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)  # the first use creates tables and reports each
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # prints the stack of what it raises
    with expected(uri):
        sqlite_store.prepare(uri)
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def expected(uri: str, sought: str | None = None) -> Iterator[None]:
    """What MLflow, its database and its artifact store raise as the `TrackingError` that people meet.

    `sought` is what is looked for in the store at `uri`, where it is that which may be missing.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:  # ImportError: a database's driver
        what = f"{sought} in {uri}: cannot be found" if sought else f"{uri}: cannot be used"
        line = _first_line(error)
        raise TrackingError(f"{what} by MLflow ({type(error).__name__}: {line}).{_remedy(line, sought)}") from error


def _remedy(line: str, sought: str | None) -> str:
    """Return what to do about an error of MLflow's, as a sentence after a space, or nothing."""
    if "malformed" in line or "not a database" in line:
        return " The database is damaged: restore its file from a copy, or move it aside."
    if sought is not None and re.search(r"not found|No such|does not exist", line):
        return " It may have been deleted: name another model or version, or another store with --tracking."
    return ""


def _first_line(error: Exception) -> str:
    """The line that says what happened: SQL and remarks of SQLAlchemy on its use come behind it, or before."""
    lines = str(error).strip().splitlines()
    return next((line for line in lines if not line.startswith("(raised as a result of ")), "")
