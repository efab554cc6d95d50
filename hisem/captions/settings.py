"""How the tiles of a captions table were read: `OUT/_settings.json`, which keeps the table to one way."""

from __future__ import annotations

import json
from typing import Any

from hisem import storage
from hisem.captions.lock import Lock, held
from hisem.captions.staging import open_job
from hisem.captions.table import published_files
from hisem.errors import StorageError

SETTINGS = "_settings.json"
OWNER = "written_by"
"""Key beside the settings: the lock under which they were written, so that each writing gives another file."""


def require_settings(output: str, settings: dict[str, Any], lock: Lock | None = None) -> None:
    """Keep a table to one way of making pixels: its rows would hide tiles that were to be read otherwise.

    `settings` are those that are not the default; an output without rows takes them. Raises `StorageError`
    as `refuse_other_settings` does.
    """
    refuse_other_settings(output, settings)
    if not _has_rows(output):
        with held(output, "begin of a table", lock) as lock:
            lock.update(SETTINGS, json.dumps(settings | {OWNER: lock.token}, indent=1).encode())


def refuse_other_settings(output: str, settings: dict[str, Any]) -> None:
    """Raise `StorageError` where the rows of an output were made with other settings, or its file is damaged."""
    known = _settings(output)
    if known != settings and _has_rows(output):
        raise StorageError(
            f"{output}: its tiles were read with {known or 'the defaults'}, not {settings or 'the defaults'} "
            f"({SETTINGS}). Choose another --output, or the same settings."
        )


def _has_rows(output: str) -> bool:
    return bool(published_files(output)) or open_job(output) is not None


def _settings(output: str) -> dict[str, Any]:
    path = storage.join(output, SETTINGS)
    if not storage.exists(path):
        return {}
    try:
        data = json.loads(storage.read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    if not isinstance(data, dict):
        raise _damaged(path, f"{type(data).__name__} instead of a mapping")
    return {name: value for name, value in data.items() if name != OWNER}


def _damaged(path: str, what: str) -> StorageError:
    return StorageError(
        f"{path}: damaged ({what}). Write the settings into it with which the table's tiles were read, {{}} for the "
        "defaults, or choose another --output. Nothing was changed."
    )
