"""Outputs that cannot be written to, found before any work is done for them."""

from __future__ import annotations

import uuid
from contextlib import suppress

import pyarrow.fs as pafs

from hisem import storage
from hisem.errors import StorageError

REMEDY = "Choose another --output, or make it writable."


def require_writable(uri: str, *, folder: bool = True, remedy: str = REMEDY) -> None:
    """Raise `StorageError` where nothing could be written at `uri`: a folder, else a file.

    A file is written in it, or in the nearest folder above it that exists, and deleted again; no folder is made.
    """
    fs, path = storage.filesystem(uri)
    kind = _kind(fs, path, uri, remedy)
    if kind == pafs.FileType.File and folder:
        raise StorageError(f"{uri}: a file, where a folder is needed. {remedy}")
    if kind == pafs.FileType.Directory and not folder:
        raise StorageError(f"{uri}: a folder, where a file is needed. {remedy}")
    where = path if folder else _above(path)
    if fs.type_name in storage.OBJECT_STORES:  # where folders are names only, and a bucket has to be there
        _require_bucket(fs, where.partition("/")[0], uri, remedy)
    else:
        where = _nearest(fs, where, uri, remedy)
    _try(fs, f"{where}/.probe.{uuid.uuid4().hex}.tmp", uri, remedy)


def _kind(fs: pafs.FileSystem, path: str, uri: str, remedy: str) -> pafs.FileType:
    try:
        return fs.get_file_info(path).type
    except OSError as error:
        raise StorageError(f"{uri}: cannot be looked at ({error}). {remedy}") from error


def _require_bucket(fs: pafs.FileSystem, bucket: str, uri: str, remedy: str) -> None:
    if _kind(fs, bucket, uri, remedy) == pafs.FileType.NotFound:
        raise StorageError(f"{uri}: there is no bucket {bucket}, or its name may not be seen. {remedy}")


def _nearest(fs: pafs.FileSystem, path: str, uri: str, remedy: str) -> str:
    """Return the folder itself, or the nearest above it that exists."""
    while (kind := _kind(fs, path or "/", uri, remedy)) == pafs.FileType.NotFound:
        path = _above(path)
    if kind != pafs.FileType.Directory:
        raise StorageError(f"{uri}: {path} is not a folder. {remedy}")
    return path


def _above(path: str) -> str:
    return path.rstrip("/").rpartition("/")[0]


def _try(fs: pafs.FileSystem, path: str, uri: str, remedy: str) -> None:
    try:
        with fs.open_output_stream(path) as stream:
            stream.write(b"hisem")
    except OSError as error:
        raise StorageError(f"{uri}: cannot be written to ({error}). {remedy}") from error
    with suppress(OSError):  # some stores let nobody delete
        fs.delete_file(path)
