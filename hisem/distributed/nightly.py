"""The captioning job: what is new in a catalogue gets rows, each tile once, however often the job is killed."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from hisem import storage, tracking
from hisem.archive.catalogue import read_catalogue
from hisem.captions import drift, staging
from hisem.captions import table as captions
from hisem.captions.lock import Lock, exclusive
from hisem.captions.night import NIGHTS, Night, moment, read_nights, summarise, write_night
from hisem.captions.options import GREEDY, Captioning
from hisem.captions.staging import Job
from hisem.distributed import session
from hisem.distributed.captioner import CaptionOptions, captioned, stamps, with_captioners
from hisem.distributed.shared_storage import rasters_of, require_shared
from hisem.distributed.work import Work, find_work
from hisem.errors import TrackingError
from hisem.model.bundle import digest as bundle_digest
from hisem.model.hisem import HiSem
from hisem.report.morning import MAX_TILES, ordered, render_morning
from hisem.schemas import CAPTION, STAGED, conform

log = logging.getLogger(__name__)

STAGE_ROWS, STAGE_SECONDS = 512, 20.0
"""Rows, and seconds, after which what is done is put aside: what a kill loses, beside the batches at work."""
PAGES = "pages"


@dataclass(frozen=True)
class Outcome:
    """What a run did: its summary, what is unusual about the night, and its page, None without one."""

    night: Night
    remarks: list[str]
    page: str | None

    def summary(self) -> str:
        """Where the summary lies."""
        return storage.join(self.night.output, NIGHTS, f"{self.night.run}.json")

    def note(self) -> str:
        """What a person is told below the figures."""
        files = {"summary": self.summary(), "page": self.page}
        return "\n".join([*self.remarks, *(f"{name}: {path}" for name, path in files.items() if path)])


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
    with _telling_only():
        return tracking.default_uri()
    return None


def caption_archive(catalogue: pa.Table, options: CaptionOptions) -> Outcome:
    """Caption the tiles of the catalogue that this model has no row for, and publish all rows at the end.

    A tile or pair that cannot be read, or that the model fails on, becomes a failed row with the reason. Rows that an
    interrupted run has staged count as done; where it was of another catalogue or model, they are published first.
    Raises `SchemaError` for an output of another schema, `StorageError` for one whose tiles were read otherwise, and
    `BusyError` for one that another run is writing to, before Ray is started.
    """
    captions.require_table(options.output)
    captions.refuse_other_settings(options.output, options.reading.pixel_settings())
    with exclusive(options.output, f"captioning of {options.source}") as lock:
        captions.require_settings(options.output, options.reading.pixel_settings())
        with session.cluster():
            require_shared(read=rasters_of(catalogue))  # the driver alone writes to the output
            return _caption(catalogue, with_captioners(options), lock)


def _caption(catalogue: pa.Table, options: CaptionOptions, lock: Lock) -> Outcome:
    began = time.perf_counter()
    digest = bundle_digest(options.model)
    job = _job(catalogue, options, digest, lock)
    work = find_work(catalogue, options, digest, job)
    run = _track(options, job, work)
    try:
        _stage(work, options, digest, job, lock)
    except BaseException as error:
        with _telling_only():
            if run:
                run.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    outcome = _conclude(options, job, lock, work, time.perf_counter() - began)
    if run:
        with _telling_only():
            _report(run, outcome)
    staging.end(options.output, job)
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
        log.warning(
            "publishing what the interrupted run %s had finished; its other tiles are left to a run with --catalog %s",
            there.run,
            there.catalogue,
        )
        _conclude(options, there, lock)
        if options.tracking and there.tracking_run:
            with _telling_only():
                tracking.end_if_open(options.tracking, there.tracking_run, "KILLED")
        staging.end(options.output, there)
    staging.begin(options.output, job)
    return job


def _of_pairs(rows: pa.Table) -> pa.ChunkedArray:
    """Which rows stand for a pair that could not be opened."""
    return pc.equal(rows.column("tile_id"), pc.binary_join_element_wise(rows.column("pair_id"), "pair", "/"))


def _stage(work: Work, options: CaptionOptions, digest: str, job: Job, lock: Lock) -> None:
    """Caption what is to do, and put it aside as it is done, with the time on the driver's clock."""
    stage = staging.Stage(options.output, job)
    column = CAPTION.get_field_index("captioned_at")

    def put(rows: pa.Table) -> None:
        lock.require()
        times = pa.array([work.time()] * len(rows), CAPTION.field(column).type)
        stage(rows.set_column(column, CAPTION.field(column), times))

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
        log.info("captioned %d of %d tiles, %.3g a second, %s left", done, total, rate, _left((total - done) / rate))

    for rows in captioned(work.todo, options, digest):
        waiting.append(rows)
        done += len(rows)
        if sum(map(len, waiting)) >= STAGE_ROWS or time.monotonic() - told > STAGE_SECONDS:
            flush()
            told = time.monotonic()
    if waiting:
        flush()


def _left(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _conclude(options: CaptionOptions, job: Job, lock: Lock, work: Work | None = None, seconds: float = 0) -> Outcome:
    """Publish a job's rows, then write its summary and page; without `work` it was interrupted for good."""
    output = options.output
    rows = staging.staged_rows(output, job)
    # A pair that could not be opened, and could after an interruption, has rows of its tiles and needs no other.
    opened = set(rows.filter(pc.invert(_of_pairs(rows))).column("pair_id").to_pylist())
    rows = rows.filter(
        pc.invert(pc.and_(_of_pairs(rows), pc.is_in(rows["pair_id"], pa.array(sorted(opened), pa.string()))))
    )
    lock.require()
    captions.publish(rows, output)
    captions.supersede(output, opened | (work.opened if work else set()), job.model_digest)
    night = summarise(
        rows,
        run=job.run,
        status="finished" if work else "interrupted",
        catalogue=job.catalogue,
        output=output,
        model_name=job.model_name,
        model_version=job.model_version,
        model_digest=job.model_digest,
        started=moment(job.started),
        ended=datetime.now(UTC),
        # Of a run that was interrupted for good no more is known than its rows.
        pairs=work.pairs if work else pc.count_distinct(rows.column("pair_id")).as_py(),
        tiles=work.tiles if work else len(rows),
        already=work.already if work else 0,
        worked=(work.rows, seconds) if work else (0, 0.0),
    )
    since = moment(job.started) - timedelta(days=drift.TRAILING_DAYS)
    remarks = drift.unusual(night, read_nights(output, job.model_digest, since))
    write_night(output, night)
    page = _write_page(output, job, rows, night, remarks) if options.captioning.page and len(rows) else None
    return Outcome(night, remarks, page)


def _write_page(output: str, job: Job, rows: pa.Table, night: Night, remarks: list[str]) -> str:
    """The page of a job's rows; pictures are read of the tiles alone that it shows."""
    rows = ordered(rows)
    wanted = rows.column("tile_id").slice(0, MAX_TILES).combine_chunks()
    names = ["tile_id", *(name for name in STAGED.names if name not in CAPTION.names)]
    pictures = pa.concat_tables(
        part.filter(pc.is_in(part.column("tile_id"), wanted)) for part in staging.staged_parts(output, job, names)
    )
    places = pc.index_in(rows.column("tile_id"), pictures.column("tile_id").combine_chunks())
    for name in names[1:]:
        rows = rows.append_column(STAGED.field(name), pictures.column(name).take(places))
    uri = storage.join(output, PAGES, f"{job.run}.html")
    html = render_morning(rows, f"Changes found on {job.started[:10]}", night.rows(), remarks)
    storage.write_bytes(uri, html.encode())
    return uri


def _track(options: CaptionOptions, job: Job, work: Work) -> tracking.Run | None:
    """The job's MLflow run; None where none is wanted or the store fails, which keeps no captions back."""
    if options.tracking is None:
        return None
    with _telling_only():
        run = tracking.start_run(options.tracking, f"captions {job.run}", job.tracking_run)
        staging.tracked(options.output, job, run.run_id)
        names = ("catalogue", "redo", "started", "model_name", "model_version", "model_digest")
        run.params({name: getattr(job, name) for name in names} | {"output": options.output})
        run.params({**vars(options.captioning), "tile_size": options.tile_size, "pairs": work.pairs})
        return run
    return None


def _report(run: tracking.Run, outcome: Outcome) -> None:
    """Put the night into its MLflow run."""
    run.metrics(outcome.night.metrics(), step=0)
    run.tags({"unusual": " ".join(outcome.remarks) or "no"})
    with tempfile.TemporaryDirectory() as folder:
        summary = Path(folder, "night.json")
        summary.write_bytes(storage.read_bytes(outcome.summary()))
        run.file(summary, "night")
        if outcome.page:
            page = Path(folder, "page.html")
            page.write_bytes(storage.read_bytes(outcome.page))
            run.file(page, "night")
    run.end()


@contextmanager
def _telling_only() -> Iterator[None]:
    """Captions do not wait for a tracking store that fails."""
    try:
        yield
    except TrackingError as error:
        log.warning("this run is not tracked: %s", error)
