"""Parquet files of the captions table and of its staging area, which may be damaged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from hisem.errors import StorageError


@contextmanager
def readable(path: str, remedy: str) -> Iterator[None]:
    """Raise what a damaged file raises as a `StorageError` that names it and the remedy.

    A file with a good footer and bad pages raises other classes than one with a bad footer, or returns text that is
    not UTF-8: read tables need `require_valid` in the block.
    """
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, OverflowError, MemoryError) as error:
        text = " ".join(str(error).split())[:300]
        raise StorageError(f"{path}: cannot be read as Parquet ({type(error).__name__}: {text}). {remedy}") from error


def require_valid(table: pa.Table) -> pa.Table:
    """Return `table`. Raises `ArrowInvalid` where its buffers contradict its types."""
    table.validate(full=True)
    return table


def open_file(path: str, fs: pafs.FileSystem, **options: Any) -> pq.ParquetFile:
    """Open a file; used within `readable`."""
    return pq.ParquetFile(path, filesystem=fs, **options)
