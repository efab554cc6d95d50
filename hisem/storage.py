"""Paths and URIs, local or remote, through `pyarrow.fs`.

Every path a person gives may be a local path or a URI that Arrow knows (`file://`, `s3://`, `gs://`).
Relative local paths are made absolute at once, because Ray workers have other working directories. Keys in
buckets are taken as they are written, as GDAL does: nothing in them is decoded.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote_to_bytes

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from hisem.errors import StorageError
from hisem.object_store import is_unsigned, reason, require_no_secret, s3_endpoint

log = logging.getLogger(__name__)

CONNECT_SECONDS, STALL_SECONDS = 10, 30
"""How long an S3 server may take to accept a connection, and to send nothing; each is tried three times."""

LONGEST_PAUSE = 30.0
"""Seconds between two attempts of `patiently` at most."""

T = TypeVar("T")

OBJECT_STORES = ("s3", "gcs", "abfs")
"""Arrow's names of file systems on which an object appears whole, when it is complete."""


def default_storage() -> str:
    """`$HISEM_STORAGE`, else `~/hisem`: never the working directory, which a Ray job throws away."""
    return absolute(os.environ.get("HISEM_STORAGE") or "~/hisem")


def is_remote(uri: str | Path) -> bool:
    """Whether `uri` has a scheme other than `file`."""
    text = str(uri)
    return "://" in text and not is_file_uri(text)


def is_file_uri(text: str) -> bool:
    """True for URIs of scheme `file`, which name local paths."""
    return text[:5].lower() == "file:"


def absolute(uri: str | Path) -> str:
    """A local path with `~` expanded, made absolute, or the one that a `file:` URI names; a remote URI as it is.

    Raises `StorageError` for a `file:` URI of another host or without an absolute path, and a home that is unknown.
    """
    text = str(uri)
    if is_remote(text):
        scheme, _, path = text.partition("://")
        return f"{scheme}://{path.rstrip('/')}"
    if is_file_uri(text):
        return str(Path(_path_of(text)))
    try:
        return str(Path(text).expanduser().absolute())
    except RuntimeError as error:
        raise StorageError(f"{text}: {error}; write the path without '~'.") from error


def _path_of(uri: str) -> str:
    """The path that a `file:` URI names, decoded as `Path.as_uri` encodes it."""
    rest = uri[5:]
    host, path = "", rest
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        path = slash + path
    if host.lower() not in ("", "localhost") or not path.startswith("/"):
        what = f"names the host {host}" if host else "has no absolute path"
        raise StorageError(f"{uri}: {what}; a file on this machine is named file:///FOLDER/FILE, or by its path alone.")
    return os.fsdecode(unquote_to_bytes(path))


def join(uri: str | Path, *parts: str) -> str:
    """`uri` with path components appended."""
    return "/".join([str(uri).rstrip("/"), *(part.strip("/") for part in parts)])


def filesystem(uri: str | Path) -> tuple[pafs.FileSystem, str]:
    """The Arrow file system and the path on it.

    Raises `StorageError` for a scheme that Arrow lacks, and for a URI that holds a secret.
    """
    text = absolute(uri)
    if not is_remote(text):
        return pafs.LocalFileSystem(), text
    require_no_secret(text, StorageError)
    if "//" in text.partition("://")[2]:
        raise StorageError(f"{text}: has an empty part between two slashes, which no key of ours has; remove one.")
    try:
        if text.startswith("s3://"):
            return _s3(text.removeprefix("s3://"))
        return pafs.FileSystem.from_uri(text)
    except (pa.ArrowInvalid, OSError) as error:
        raise StorageError(f"{text}: not a path or URI that can be opened ({error}).") from error


def _s3(path: str) -> tuple[pafs.S3FileSystem, str]:
    """S3, or the server that the environment names instead, and `path`: the bucket and the key in it."""
    bucket = path.partition("/")[0]
    if not bucket or "?" in path:
        raise StorageError(
            f"s3://{path}: s3://BUCKET/PATH is needed, without '?'; a server's address and region belong in "
            "AWS_ENDPOINT_URL and AWS_REGION."
        )
    endpoint = s3_endpoint()
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None and endpoint is None:
        region = pafs.resolve_s3_region(bucket)
    fs = pafs.S3FileSystem(
        region=region,
        endpoint_override=endpoint,
        anonymous=is_unsigned(),
        connect_timeout=CONNECT_SECONDS,
        request_timeout=STALL_SECONDS,
        allow_delayed_open=True,  # so that a small file is one request, and not the three of a multipart upload
    )
    return fs, path


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
        try:
            path = info.path
        except UnicodeDecodeError as error:
            log.warning("%s: a file whose name is not UTF-8 is left out (%r)", uri, error.object)
            continue
        below = path[len(root) :].strip("/").split("/")
        hidden = any(part.startswith(("_", ".")) for part in below)
        if info.type == pafs.FileType.File and not hidden and path.endswith(suffix):
            found.append(path)
    return sorted(found)


def list_folders(uri: str | Path) -> list[str]:
    """Sorted names of the folders in `uri`; an absent folder has none."""
    fs, path = filesystem(uri)
    with _expected(uri, "listed"):
        infos = fs.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in infos if info.type == pafs.FileType.Directory)


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
    """Write one file so that no reader sees half of it.

    On a file system that takes a hidden temporary name beside it, then a move. An object store shows an object
    when it is whole, and has neither folders to make nor moves other than a copy.
    """
    fs, path = filesystem(uri)
    if fs.type_name in OBJECT_STORES:
        with _expected(uri, "written"), fs.open_output_stream(path) as stream:
            stream.write(content)
        return
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
    """Write one Parquet file (zstd, with a checksum of each page), atomically as `write_bytes` does."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    write_bytes(uri, sink.getvalue().to_pybytes())


def read_parquet(uri: str | Path, columns: list[str] | None = None) -> pa.Table:
    """Read one Parquet file. Raises `StorageError` where it is absent, damaged, not Parquet or lacks a column."""
    fs, path = filesystem(uri)
    table = read_parquet_file(path, fs, columns, name=str(uri))
    if missing := [name for name in columns or () if name not in table.column_names]:
        raise StorageError(f"{uri}: cannot be read as Parquet with the column(s) {', '.join(missing)}: it lacks them.")
    return table


def read_parquet_file(
    path: str,
    fs: pafs.FileSystem,
    columns: list[str] | None = None,
    *,
    filters: pc.Expression | None = None,
    name: str | None = None,
) -> pa.Table:
    """Read the Parquet file at `path` of `fs`, as `list_files` gives it, and check every value that was read.

    Columns that the file lacks are left out. Messages call the file `name`, or `path`. Raises `StorageError` as
    `reading` does.
    """
    with reading(name or path):
        file = pq.ParquetFile(path, filesystem=fs, page_checksum_verification=True)
        known = file.schema_arrow.names
        wanted = None if columns is None else [column for column in columns if column in known]
        if filters is None:
            table = file.read(columns=wanted)
        else:
            options = {"partitioning": None, "page_checksum_verification": True}
            table = pq.read_table(path, filesystem=fs, columns=wanted, filters=filters, **options)
        table.validate(full=True)  # text that is not UTF-8, offsets beyond the data
        return table


@contextmanager
def reading(name: str | Path) -> Iterator[None]:
    """Raise what opening or decoding the table `name` raises as one `StorageError` that names it and what to do.

    Arrow finds damage as late as in the pages, and has many classes for it.
    """
    try:
        yield
    except (OSError, pa.ArrowException, UnicodeError) as error:
        cause = " ".join(str(error).split())
        # The system's own errors have a number; Arrow's about content have none.
        of_system = isinstance(error, OSError) and error.errno is not None
        remedy = (reason(f"{type(error).__name__}: {cause}") if is_remote(name) else None) or (
            "Check the path and its permissions"
            if of_system
            else "It is damaged, cut short or of another format: restore it from a copy, or make it again"
        )
        raise StorageError(f"{name}: cannot be read as Parquet ({cause}). {remedy}.") from error


def download(uri: str | Path, to: Path) -> Path:
    """A local folder with the content of `uri`: itself when local, else a copy in `to`, which nothing leaves."""
    if not is_remote(uri):
        return Path(absolute(uri))
    fs, path = filesystem(uri)
    with _expected(uri, "downloaded"):
        # Keys of a bucket may be anything; as paths on a disk some lead elsewhere.
        for info in fs.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True)):
            if ".." in info.path[len(path) :].split("/"):
                raise StorageError(f"{uri}: holds the key {info.path!r}, which is no path inside a folder; remove it.")
        to.mkdir(parents=True, exist_ok=True)
        pafs.copy_files(path, str(to), source_filesystem=fs, destination_filesystem=pafs.LocalFileSystem())
    return to


def upload(folder: Path, uri: str | Path) -> None:
    """Copy a local folder to `uri` (local or remote), creating it."""
    fs, path = filesystem(uri)
    with _expected(uri, "written"):
        fs.create_dir(path, recursive=True)
        pafs.copy_files(str(folder), path, source_filesystem=pafs.LocalFileSystem(), destination_filesystem=fs)


def patiently(act: Callable[[], T], seconds: float, tell: Callable[[str], None]) -> T:
    """What `act` returns, trying again for `seconds` while storage fails; `tell` hears of each failure.

    `act` must be one that can be repeated. Raises the last `StorageError` when the time is over.
    """
    until, pause = time.monotonic() + seconds, 1.0
    while True:
        try:
            return act()
        except StorageError as error:
            left = until - time.monotonic()
            if left <= 0:
                raise
            pause = min(pause, left)
            tell(f"{error} Trying again in {pause:.0f} s, for {left:.0f} s more.")
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


@contextmanager
def _expected(uri: str | Path, deed: str) -> Iterator[None]:
    """What file systems raise as the `StorageError` that people meet."""
    try:
        yield
    except (OSError, pa.ArrowInvalid) as error:
        remedy = reason(f"{type(error).__name__}: {error}") if is_remote(uri) else None
        raise StorageError(f"{uri}: cannot be {deed} ({error}).{f' {remedy}.' if remedy else ''}") from error
