"""The captioning job: what is new in a catalogue gets rows, each tile once, however often the job is killed."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from hisem import logs, tracking
from hisem.archive.catalogue import read_catalogue
from hisem.captions import staging
from hisem.captions import table as captions
from hisem.captions.failures import FailureLog
from hisem.captions.lock import Lock, exclusive
from hisem.captions.night import NIGHTS
from hisem.captions.options import GREEDY, Captioning
from hisem.captions.repair import mark_checked, repair
from hisem.captions.settings import require_settings
from hisem.captions.staging import Job
from hisem.conditional import LOCKS
from hisem.distributed import session
from hisem.distributed.captioner import CaptionOptions, captioned, stamps, with_captioners
from hisem.distributed.conclusion import PAGES, Outcome, conclude, conclude_interrupted, report, telling_only
from hisem.distributed.metrics import CaptionMetrics
from hisem.distributed.shared_storage import rasters_of, require_shared
from hisem.distributed.work import Work, find_work
from hisem.model.bundle import digest as bundle_digest
from hisem.model.hisem import HiSem
from hisem.schemas import CAPTION, conform

log = logging.getLogger(__name__)

STAGE_ROWS, STAGE_SECONDS = 512, 20.0
"""Rows, and seconds, after which what is done is put aside: what a kill loses, beside the batches at work."""

HAVE_ROWS = (
    "%d tile(s) have a row by this model and are left out: %s has no effect on them. --recaption captions them again."
)


def caption_job(
    catalogue: str,
    model: str,
    output: str,
    *,
    tracking_uri: str | None,
    scratch: Path,
    captioning: Captioning = GREEDY,
    **settings: Any,
) -> tuple[pa.Table, CaptionOptions]:
    """What `caption_archive` takes, from a catalogue file and a bundle's folder, URI or `models:/` reference.

    `scratch` holds a remote bundle while the job runs; `settings` are further fields of `CaptionOptions`. The run is
    tracked where `models:/` is looked up.
    """
    if tracking_uri is not None:
        tracking.require_no_login(tracking_uri)
    pairs = read_catalogue(catalogue)
    fixed = tracking.pin_model(model, tracking_uri)  # an alias may move while the job runs
    folder = tracking.resolve_model(fixed, tracking_uri, scratch)
    # What does not fit is told here, and not by an actor.
    bundle = HiSem.from_pretrained(folder)
    if captioning.sure_unchanged is not None:
        bundle.require_sure(captioning.sure_unchanged)
    name, version = tracking.model_identity(fixed, tracking_uri, bundle_digest(folder))
    return pairs, CaptionOptions(
        output,
        folder,
        name,
        version,
        captioning=captioning,
        source=catalogue,
        tracking=tracking_uri or _default_store(),
        **settings,
    )


def _default_store() -> str | None:
    """The MLflow store that nobody named; None where there cannot be one."""
    with telling_only():
        return tracking.default_uri()
    return None


def caption_archive(catalogue: pa.Table, options: CaptionOptions) -> Outcome:
    """Caption the tiles of the catalogue that this model has no row for, and publish all rows at the end.

    A tile or pair that cannot be read, or that the model fails on, becomes a failed row with the reason. Rows that an
    interrupted run has staged count as done; where it was of another catalogue or model, they are published first.
    Raises `SchemaError` for an output of another schema, `StorageError` for one whose tiles were read otherwise, and
    `BusyError` for one that another run is writing to, before Ray is started; `CatalogueError` for a pair whose name
    another pair of the table has.
    """
    with exclusive(options.output, f"captioning of {options.source}") as lock:
        captions.require_table(options.output)  # where no other run takes files away while they are looked at
        require_settings(options.output, options.reading.pixel_settings(), lock)
        _prepare(lock)
        with session.cluster():
            require_shared(read=rasters_of(catalogue))  # the driver alone writes to the output
            return _caption(catalogue, with_captioners(options), lock)


def publish_interrupted(output: str, page: bool, store: str | None) -> Outcome | None:
    """Publish what an interrupted run has put aside, where there is nothing new to caption; None where nothing is.

    Its MLflow run is closed in `store`. Raises what `caption_archive` raises.
    """
    if staging.open_job(output) is None:
        return None
    with exclusive(output, "publishing of an interrupted run") as lock:
        captions.require_table(output)
        _prepare(lock)
        there = staging.open_job(output)  # another run may have ended it meanwhile
        return conclude_interrupted(output, there, lock, page, store or _default_store()) if there else None


def _prepare(lock: Lock) -> None:
    """Clear up what earlier runs left: files that they were writing when they were killed, and doubled rows."""
    staging.open_job(lock.folder)  # raises where it is damaged, before anything is changed
    lock.clear(".", LOCKS, captions.PUBLISHED, staging.STAGING, NIGHTS, PAGES)
    repair(lock)


def _caption(catalogue: pa.Table, options: CaptionOptions, lock: Lock) -> Outcome:
    began = time.perf_counter()
    digest = bundle_digest(options.model)
    job = _job(catalogue, options, digest, lock)
    work = find_work(catalogue, options, digest, job)
    if work.already and (flags := options.captioning.deciding()):
        given = " ".join(f"{flag} {value}" for flag, value in flags.items())
        log.warning(HAVE_ROWS, work.already, given)
    staging.begin(options.output, job, lock)
    with logs.of_run(job.run), _tracked(options, job, work, lock) as run:
        _stage(work, options, digest, job, lock)
        # For a run that takes over: all tiles of these pairs have a row now, in the table or put aside.
        job = replace(job, reopened=tuple(sorted({*job.reopened, *work.reopened})))
        if job.reopened:
            staging.begin(options.output, replace(job, tracking_run=run.run_id if run else job.tracking_run), lock)
        outcome = conclude(options.output, job, lock, options.captioning.page, work, time.perf_counter() - began)
        lock.require()
        if run:
            with telling_only():
                report(run, outcome)
        lock.require()  # before the MLflow run is closed, which another run may have open
    mark_checked(lock)
    staging.end(options.output, job, lock)
    return outcome


def _job(catalogue: pa.Table, options: CaptionOptions, digest: str, lock: Lock) -> Job:
    """The interrupted job that this run goes on with, else a new one; another one's rows are published before."""
    asked = options.captioning
    how = (options.tile_size, options.reading, asked.beam, asked.precision, asked.sure_unchanged)
    job = staging.new_job(catalogue, options.source, asked.redo, options.model_name, options.model_version, digest, how)
    there = staging.open_job(options.output)
    if there and job.continues(there):
        log.info("going on with the run of %s, which was interrupted", there.started)
        return there
    if there:
        conclude_interrupted(options.output, there, lock, asked.page, options.tracking)
    return job


def _stage(work: Work, options: CaptionOptions, digest: str, job: Job, lock: Lock) -> None:
    """Caption what is to do, and put it aside as it is done, with the time on the driver's clock."""
    stage, metrics, failures = staging.Stage(options.output, job), CaptionMetrics(job.run), FailureLog()
    column = CAPTION.get_field_index("captioned_at")

    def put(rows: pa.Table) -> None:
        lock.require()
        times = pa.array([work.time()] * len(rows), CAPTION.field(column).type)
        stage(rows.set_column(column, CAPTION.field(column), times))
        metrics.made(rows, failures.tell(rows))

    failures.tell(work.unopened)
    if len(work.broken):
        rows = work.broken
        for name, value in stamps(options, digest).items():
            rows = rows.append_column(CAPTION.field(name), pa.array([value] * len(rows), CAPTION.field(name).type))
        put(conform(rows, CAPTION, "captions", optional=CAPTION.names))
    waiting: list[pa.Table] = []
    began = told = time.monotonic()
    done, total = 0, len(work.todo)

    def flush() -> None:
        put(pa.concat_tables(waiting))
        waiting.clear()
        rate = done / (time.monotonic() - began)
        metrics.rate(rate)
        log.info("captioned %d of %d tiles, %.3g a second, %s left", done, total, rate, _left((total - done) / rate))

    try:
        for rows in captioned(work.todo, options, digest):
            waiting.append(rows)
            done += len(rows)
            if sum(map(len, waiting)) >= STAGE_ROWS or time.monotonic() - told > STAGE_SECONDS:
                flush()
                told = time.monotonic()
    finally:  # what is done is kept, whatever ended it
        if waiting:
            flush()
        failures.end()


def _left(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


@contextmanager
def _tracked(options: CaptionOptions, job: Job, work: Work, lock: Lock) -> Iterator[tracking.Run | None]:
    """The job's MLflow run, which ends with the block as the block does.

    None where none is wanted or the store fails, which keeps no captions back. Where another run took the job over,
    the MLflow run is left to that one.
    """
    run = None
    if options.tracking:
        with telling_only():
            run = tracking.start_run(options.tracking, f"captions {job.run}", job.tracking_run)
    if run is None:
        yield None
        return
    status: str | None = "FINISHED"
    try:
        staging.tracked(options.output, job, run.run_id, lock)
        with telling_only():
            names = ("catalogue", "redo", "started", "model_name", "model_version", "model_digest")
            run.params({name: getattr(job, name) for name in names} | {"output": options.output})
            run.params({**vars(options.captioning), "tile_size": options.tile_size, "pairs": work.pairs})
        yield run
    except BaseException as error:
        status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        if lock.is_taken_over():
            status = None
        raise
    finally:
        if status:
            with telling_only():
                run.end(status)
