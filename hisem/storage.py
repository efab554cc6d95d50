"""Paths and URIs, local or remote, through `pyarrow.fs`.

Every path a person gives may be a local path or a URI that Arrow knows (`file://`, `s3://`, `gs://`).
Relative local paths are made absolute at once, because Ray workers have other working directories.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from hisem.errors import StorageError


def default_storage() -> str:
    """`$HISEM_STORAGE`, else `~/hisem`: never the working directory, which a Ray job throws away."""
    return absolute(os.environ.get("HISEM_STORAGE") or "~/hisem")


def is_remote(uri: str | Path) -> bool:
    """Whether `uri` has a scheme other than `file`."""
    text = str(uri)
    return "://" in text and not text.startswith("file://")


def absolute(uri: str | Path) -> str:
    """A local path with `~` expanded, made absolute, without `file://`; a remote URI as it is."""
    text = str(uri)
    if is_remote(text):
        scheme, _, path = text.partition("://")
        return f"{scheme}://{path.rstrip('/')}"
    return str(Path(text.removeprefix("file://")).expanduser().absolute())


def join(uri: str | Path, *parts: str) -> str:
    """`uri` with path components appended."""
    return "/".join([str(uri).rstrip("/"), *(part.strip("/") for part in parts)])


def filesystem(uri: str | Path) -> tuple[pafs.FileSystem, str]:
    """The Arrow file system and the path on it. Raises `StorageError` for a scheme Arrow lacks."""
    text = absolute(uri)
    if not is_remote(text):
        return pafs.LocalFileSystem(), text
    try:
        return pafs.FileSystem.from_uri(text)
    except (pa.ArrowInvalid, OSError) as error:
        raise StorageError(f"{text}: not a path or URI that can be opened ({error}).") from error


def exists(uri: str | Path) -> bool:
    """Whether a file or folder is there."""
    fs, path = filesystem(uri)
    with _expected(uri, "looked at"):
        return fs.get_file_info(path).type != pafs.FileType.NotFound


def is_folder(uri: str | Path) -> bool:
    """Whether a folder is there."""
    fs, path = filesystem(uri)
    with _expected(uri, "looked at"):
        return fs.get_file_info(path).type == pafs.FileType.Directory


def list_files(uri: str | Path, suffix: str = "") -> list[str]:
    """Sorted paths (on the URI's own file system) of all files below `uri` that end in `suffix`.

    Folders and files whose name starts with `_` or `.` below `uri` are left out, as Parquet readers do.
    An absent folder has no files. Raises `StorageError` for what is no folder.
    """
    fs, root = filesystem(uri)
    selector = pafs.FileSelector(root, recursive=True, allow_not_found=True)
    found = []
    with _expected(uri, "listed"):
        infos = fs.get_file_info(selector)
    for info in infos:
        below = info.path[len(root) :].strip("/").split("/")
        hidden = any(part.startswith(("_", ".")) for part in below)
        if info.type == pafs.FileType.File and not hidden and info.path.endswith(suffix):
            found.append(info.path)
    return sorted(found)


def make_dir(uri: str | Path) -> None:
    """Create a folder and its parents; nothing happens where it exists."""
    fs, path = filesystem(uri)
    with _expected(uri, "created as a folder"):
        fs.create_dir(path, recursive=True)


def delete(uri: str | Path) -> None:
    """Remove a file or a folder with all it holds; nothing happens where it is absent."""
    fs, path = filesystem(uri)
    with _expected(uri, "deleted"):
        kind = fs.get_file_info(path).type
        if kind == pafs.FileType.Directory:
            fs.delete_dir(path)
        elif kind == pafs.FileType.File:
            fs.delete_file(path)


def read_bytes(uri: str | Path) -> bytes:
    """The content of one file. Raises `StorageError` where it cannot be read."""
    fs, path = filesystem(uri)
    with _expected(uri, "read"), fs.open_input_stream(path) as stream:
        return stream.read()


def write_bytes(uri: str | Path, content: bytes) -> None:
    """Write one file so that no reader sees half of it: a hidden temporary name beside it, then a move."""
    fs, path = filesystem(uri)
    folder, _, name = path.rpartition("/")
    # Hidden, because readers of Parquet folders would trip over what a killed process leaves; unique over hosts.
    temporary = f"{folder}/.{name}.{uuid.uuid4().hex}.tmp"
    with _expected(uri, "written"):
        fs.create_dir(folder, recursive=True)
        try:
            with fs.open_output_stream(temporary) as stream:
                stream.write(content)
            fs.move(temporary, path)
        except BaseException:
            with suppress(OSError):
                fs.delete_file(temporary)
            raise


def write_parquet(table: pa.Table, uri: str | Path) -> None:
    """Write one Parquet file (zstd), atomically as `write_bytes` does."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_bytes(uri, sink.getvalue().to_pybytes())


def read_parquet(uri: str | Path, columns: list[str] | None = None) -> pa.Table:
    """Read one Parquet file. Raises `StorageError` where it is absent or not Parquet."""
    fs, path = filesystem(uri)
    with _expected(uri, "read as Parquet"):
        return pq.read_table(path, filesystem=fs, columns=columns, partitioning=None)


def download(uri: str | Path, to: Path) -> Path:
    """A local folder with the content of `uri`: itself when local, else a copy in `to`."""
    if not is_remote(uri):
        return Path(absolute(uri))
    fs, path = filesystem(uri)
    with _expected(uri, "downloaded"):
        to.mkdir(parents=True, exist_ok=True)
        pafs.copy_files(path, str(to), source_filesystem=fs, destination_filesystem=pafs.LocalFileSystem())
    return to


def upload(folder: Path, uri: str | Path) -> None:
    """Copy a local folder to `uri` (local or remote), creating it."""
    fs, path = filesystem(uri)
    with _expected(uri, "written"):
        fs.create_dir(path, recursive=True)
        pafs.copy_files(str(folder), path, source_filesystem=pafs.LocalFileSystem(), destination_filesystem=fs)


@contextmanager
def _expected(uri: str | Path, deed: str) -> Iterator[None]:
    """What file systems raise as the `StorageError` that people meet."""
    try:
        yield
    except (OSError, pa.ArrowInvalid) as error:
        raise StorageError(f"{uri}: cannot be {deed} ({error}).") from error
