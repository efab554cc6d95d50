"""Rows of a run before they are published: `OUT/_staging/` with one job at a time, which a later run can go on with.

`job.json` names the job and what it does; `RUN/NNNNNN.parquet` are its rows (schema STAGED). Who stages holds the
output's lock. A run that continues or publishes a job writes `job.json` first: from then on, a run that it took over
can neither end the job nor begin another one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from hisem import storage
from hisem.captions.lock import Lock, held
from hisem.captions.parquet import readable, require_valid
from hisem.captions.table import newest
from hisem.conditional import write_durably
from hisem.config import from_dict
from hisem.errors import ConfigError, StorageError
from hisem.schemas import CAPTION, CATALOGUE, STAGED, conform

STAGING, JOB = "_staging", "job.json"
OWNER = "owner"
"""Key in `job.json` beside the job's: the lock under which it was written, so that each writing gives another file."""
CLOSED: dict[str, Any] = {"closed": True}
"""Content of `job.json` without an open job, on object stores, which have no conditional deletion."""
NAME = re.compile(r"\w[\w.-]*")
"""Names of runs: each is that of a folder and of files."""

Redo = Literal["nothing", "failed", "all"]
"""Which tiles that have a row are captioned again."""


@dataclass(frozen=True)
class Job:
    """A run that captions a catalogue with a model, however often it is interrupted."""

    run: str
    """Its name, and that of its page and summary."""
    started: str
    """ISO 8601, UTC."""
    redo: Redo
    catalogue: str
    """Name of the catalogue, for people."""
    fingerprint: str
    """SHA-256 of the catalogue's pairs."""
    model_name: str
    model_version: str
    model_digest: str
    how: str
    """What else decides its rows: how tiles are cut and read, and captioned."""
    tracking_run: str | None = None
    """Its MLflow run."""
    reopened: tuple[str, ...] = ()
    """Ids of pairs that have a failed row in the table and could be opened; known once all tiles have a row."""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.run):
            raise ConfigError(f"run is {self.run[:100]!r}: letters, digits, '.', '_' and '-' only; it names a folder.")
        if datetime.fromisoformat(self.started).tzinfo is None:
            raise ConfigError(f"started is {self.started}, without a time zone.")

    def continues(self, other: Job) -> bool:
        """Whether this is `other`, begun anew."""
        names = ("redo", "fingerprint", "model_digest", "how")
        return all(getattr(self, name) == getattr(other, name) for name in names)


def new_job(
    pairs: pa.Table, catalogue: str, redo: Redo, name: str, version: str, digest: str, how: object = None
) -> Job:
    """A job that begins now, for `pairs` (schema CATALOGUE); `how` is told apart by its `repr`."""
    rows = sorted(json.dumps(row, default=str) for row in pairs.select(CATALOGUE.names).to_pylist())
    fingerprint = hashlib.sha256("\n".join(rows).encode()).hexdigest()
    now = datetime.now(UTC)
    run = f"{now:%Y-%m-%dT%H%M%S}-{uuid4().hex[:6]}"
    return Job(run, now.isoformat(timespec="seconds"), redo, catalogue, fingerprint, name, version, digest, repr(how))


def open_job(output: str) -> Job | None:
    """Return the job that was begun and has not ended. Raises `StorageError` where its file is damaged."""
    path = storage.join(output, STAGING, JOB)
    if not storage.exists(path):
        return None
    try:
        data = json.loads(storage.read_bytes(path))
        if not isinstance(data, dict):
            raise ValueError(f"{type(data).__name__} instead of a mapping")
        if data.get("closed") is True:
            return None
        data.pop(OWNER, None)
        reopened = data.pop("reopened", [])
        if not isinstance(reopened, list) or not all(isinstance(pair, str) for pair in reopened):
            raise ValueError("reopened is not a list of pair ids")
        return from_dict(Job, data | {"reopened": tuple(reopened)}, JOB)
    except (ConfigError, ValueError, TypeError, RecursionError) as error:
        raise StorageError(
            f"{path}: damaged, or written by another version of hisem ({error}). Finish its run with that version, or "
            f"remove {storage.join(output, STAGING)}; the tiles put aside there are then captioned again. "
            "Nothing was changed."
        ) from error


def begin(output: str, job: Job, lock: Lock | None = None) -> None:
    """Make `job` the one that is staged, and remove what ended ones left behind."""
    with held(output, "begin of a run", lock) as lock:
        folders = storage.list_folders(storage.join(output, STAGING))  # before the write: so none is a successor's
        content = asdict(job) | {OWNER: f"{lock.token} {datetime.now(UTC):%H%M%S%f}"}
        lock.update(f"{STAGING}/{JOB}", json.dumps(content, indent=1).encode())
        for left in folders:
            if left != job.run:
                storage.delete(storage.join(output, STAGING, left))


def tracked(output: str, job: Job, run_id: str, lock: Lock | None = None) -> Job:
    """Write down the MLflow run of `job`; return the job with it."""
    job = replace(job, tracking_run=run_id)
    begin(output, job, lock)
    return job


def end(output: str, job: Job, lock: Lock | None = None) -> None:
    """Forget a job whose rows are published; its name first, since rows without one are rubbish."""
    with held(output, "end of a run", lock) as lock:
        if there := lock.read(f"{STAGING}/{JOB}"):
            closed = CLOSED | {OWNER: f"{lock.token} {job.run}"}
            lock.remove(f"{STAGING}/{JOB}", there.version, json.dumps(closed).encode())
        lock.require()
    storage.delete(storage.join(output, STAGING, job.run))


class Stage:
    """Puts rows of a job aside, one file each time, numbered after those that an interrupted run left.

    Names are unique, too: a run that was taken for dead may still write.
    """

    def __init__(self, output: str, job: Job) -> None:
        self._folder = storage.join(output, STAGING, job.run)
        self._next = len(storage.list_files(self._folder))

    def __call__(self, rows: pa.Table) -> None:
        """Schema STAGED; the thumbnails may be absent."""
        optional = [name for name in STAGED.names if name not in CAPTION.names]
        table = conform(rows, STAGED, "captions", optional=optional)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        name = f"{self._next:06d}-{uuid4().hex[:8]}.parquet"
        write_durably(storage.join(self._folder, name), sink.getvalue().to_pybytes())
        self._next += 1


def staged_parts(output: str, job: Job, columns: list[str] = STAGED.names) -> Iterator[pa.Table]:
    """The rows of each staged file in turn."""
    folder = storage.join(output, STAGING, job.run)
    fs, _ = storage.filesystem(folder)
    for path in storage.list_files(folder, ".parquet"):
        with readable(path, "Remove it: its tiles are then captioned again. Nothing was changed."):
            part = require_valid(pq.read_table(path, filesystem=fs, columns=columns, partitioning=None))
        yield conform(part, pa.schema([STAGED.field(name) for name in columns]), path)


def staged_rows(output: str, job: Job, columns: list[str] = CAPTION.names) -> pa.Table:
    """All staged rows of a job, each key once. `columns` hold the key and `captioned_at`."""
    empty = pa.schema([STAGED.field(name) for name in columns]).empty_table()
    return newest(pa.concat_tables([empty, *staged_parts(output, job, columns)]))
