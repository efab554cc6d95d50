"""Rows of a run before they are published: `OUT/_staging/` with one job at a time, which a later run can go on with.

`job.json` names the job and what it does; `RUN/NNNNNN.parquet` are its rows (schema STAGED). Who stages holds the
output's lock.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Literal
from uuid import uuid4

import pyarrow as pa

from hisem import storage
from hisem.captions.table import JOB, STAGING, newest
from hisem.errors import StorageError
from hisem.schemas import CAPTION, CATALOGUE, STAGED, conform

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
    """The job that was begun and has not been ended."""
    path = storage.join(output, STAGING, JOB)
    if not storage.exists(path):
        return None
    try:
        return Job(**json.loads(storage.read_bytes(path)))
    except (ValueError, TypeError) as error:
        raise StorageError(
            f"{path}: cannot be understood ({error}). Another version of hisem may have written it: finish its run "
            f"with that, or delete {storage.join(output, STAGING)}; the tiles put aside there are then captioned again."
        ) from error


def begin(output: str, job: Job) -> None:
    """Make `job` the one that is staged, and remove what ended ones left behind."""
    for left in storage.list_folders(storage.join(output, STAGING)):
        if left != job.run:
            storage.delete(storage.join(output, STAGING, left))
    storage.write_bytes(storage.join(output, STAGING, JOB), json.dumps(asdict(job), indent=1).encode())


def tracked(output: str, job: Job, run_id: str) -> Job:
    """`job` with its MLflow run, written down."""
    job = replace(job, tracking_run=run_id)
    begin(output, job)
    return job


def end(output: str, job: Job) -> None:
    """Forget a job whose rows are published; its name first, since rows without one are rubbish."""
    storage.delete(storage.join(output, STAGING, JOB))
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
        storage.write_parquet(table, storage.join(self._folder, f"{self._next:06d}-{uuid4().hex[:8]}.parquet"))
        self._next += 1


def staged_parts(output: str, job: Job, columns: list[str] = STAGED.names) -> Iterator[pa.Table]:
    """The rows of each staged file in turn."""
    folder = storage.join(output, STAGING, job.run)
    for path in storage.list_files(folder, ".parquet"):
        part = storage.read_parquet(storage.join(folder, path.rpartition("/")[2]), columns)
        yield conform(part, pa.schema([STAGED.field(name) for name in columns]), path)


def staged_rows(output: str, job: Job, columns: list[str] = CAPTION.names) -> pa.Table:
    """All staged rows of a job, each key once. `columns` hold the key and `captioned_at`."""
    empty = pa.schema([STAGED.field(name) for name in columns]).empty_table()
    return newest(pa.concat_tables([empty, *staged_parts(output, job, columns)]))
