"""The end of a captioning job: its rows are published, summarised, drawn on a page and tracked."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from hisem import storage, tracking
from hisem.captions import drift, staging
from hisem.captions import table as captions
from hisem.captions.lock import Lock
from hisem.captions.night import NIGHTS, Night, find_night, moment, read_nights, summarise, write_night
from hisem.captions.repair import mark_checked
from hisem.captions.staging import Job
from hisem.distributed.work import Work
from hisem.errors import TrackingError
from hisem.report.morning import PICTURED, ordered, render_morning
from hisem.schemas import CAPTION, STAGED, conform

log = logging.getLogger(__name__)

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


def conclude(
    output: str, job: Job, lock: Lock, page: bool, work: Work | None = None, seconds: float | None = None
) -> Outcome:
    """Publish a job's rows, then write its summary and `page`; without `work` it was interrupted for good.

    One that was killed after its summary had said that it is finished keeps that.

    `seconds` are those of the call that ends it. Of a job that was interrupted for good, the time from its start to its
    last row is known.
    """
    rows = staging.staged_rows(output, job)
    # A pair that could not be opened, and could after an interruption, has rows of its tiles and needs no other.
    keys = rows.select(["tile_id", "pair_id"])
    opened = pc.unique(keys.filter(pc.invert(_of_pairs(keys))).column("pair_id"))
    needless = pc.and_(_of_pairs(keys), pc.is_in(keys.column("pair_id"), opened))
    # They are published and taken out again: a run that was taken over may still write the file that they are in.
    captions.publish(rows, output, job.run, lock)
    if pc.any(needless).as_py():
        rows = rows.filter(pc.invert(needless))
    gone = set(opened.to_pylist()) | set(job.reopened) | (work.opened if work else set())
    captions.supersede(output, gone, job.model_digest, lock)
    if work:
        rows = pa.concat_tables([rows, _unopened(work, job)])
    started = moment(job.started)
    before = None if work else find_night(output, job.run)
    lock.require()
    night = (
        replace(before, output=output)
        if before and before.status == "finished"
        else summarise(
            rows,
            run=job.run,
            status="finished" if work else "interrupted",
            catalogue=job.catalogue,
            output=output,
            model_name=job.model_name,
            model_version=job.model_version,
            model_digest=job.model_digest,
            started=started,
            ended=datetime.now(UTC) if work else max(pc.max(rows.column("captioned_at")).as_py() or started, started),
            pairs=work.pairs if work else pc.count_distinct(rows.column("pair_id")).as_py(),
            tiles=work.tiles if work else len(rows),
            already=work.already if work else 0,
            worked=(work.rows, seconds) if work and seconds is not None else None,
            before=work.failed_tiles if work else None,
        )
    )
    remarks = drift.unusual(night, read_nights(output, job.model_digest, started - timedelta(days=drift.TRAILING_DAYS)))
    write_night(output, night, lock)
    return Outcome(night, remarks, _write_page(lock, job, rows, night, remarks) if page and len(rows) else None)


def conclude_interrupted(output: str, job: Job, lock: Lock, page: bool, store: str | None) -> Outcome:
    """Publish what a job had done that no run goes on with, close its MLflow run in `store`, and forget it."""
    log.warning(
        "publishing what the interrupted run %s had finished; its other tiles are left to a run with --catalog %s",
        job.run,
        job.catalogue,
    )
    staging.begin(output, job, lock)
    outcome = conclude(output, job, lock, page)
    lock.require()
    if store and job.tracking_run:
        with telling_only():
            report(tracking.Run(store, job.tracking_run), outcome)
        with telling_only():
            ended = "FINISHED" if outcome.night.status == "finished" else "KILLED"
            tracking.end_if_open(store, job.tracking_run, ended)
    mark_checked(lock)
    staging.end(output, job, lock)
    return outcome


def report(run: tracking.Run, outcome: Outcome) -> None:
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


@contextmanager
def telling_only() -> Iterator[None]:
    """Captions do not wait for a tracking store that fails."""
    try:
        yield
    except TrackingError as error:
        log.warning("this run is not tracked: %s", error)


def _unopened(work: Work, job: Job) -> pa.Table:
    """Return the pairs that still cannot be opened as rows (schema CAPTION), which the table has already."""
    stamps = {name: getattr(job, name) for name in ("model_name", "model_version", "model_digest")}
    rows = work.unopened
    for name, value in (stamps | {"captioned_at": datetime.now(UTC)}).items():
        rows = rows.append_column(CAPTION.field(name), pa.array([value] * len(rows), CAPTION.field(name).type))
    return conform(rows, CAPTION, "captions", optional=CAPTION.names)


def _of_pairs(rows: pa.Table) -> pa.ChunkedArray:
    """Which rows stand for a pair that could not be opened."""
    return pc.equal(rows.column("tile_id"), pc.binary_join_element_wise(rows.column("pair_id"), "pair", "/"))


def _write_page(lock: Lock, job: Job, rows: pa.Table, night: Night, remarks: list[str]) -> str:
    """The page of a job's rows; pictures are read of the tiles alone that it has pictures of."""
    pictured = ordered(rows, PICTURED).column("tile_id").combine_chunks()
    names = ["tile_id", *(name for name in STAGED.names if name not in CAPTION.names)]
    parts = [pa.schema([STAGED.field(name) for name in names]).empty_table()]
    for part in staging.staged_parts(lock.folder, job, names):
        read = pc.is_in(part.column("tile_id"), pictured)
        for name in names[1:]:
            # Of the others it is known that there is a picture.
            column = part.column(name)
            unread = pc.if_else(pc.is_valid(column), pa.scalar(b""), pa.scalar(None, pa.binary()))
            part = part.set_column(names.index(name), name, pc.if_else(read, column, unread))
        parts.append(part)
    pictures = pa.concat_tables(parts)
    places = pc.index_in(rows.column("tile_id"), pictures.column("tile_id").combine_chunks())
    for name in names[1:]:
        rows = rows.append_column(STAGED.field(name), pictures.column(name).take(places))
    name = f"{PAGES}/{job.run}.html"
    html = render_morning(rows, f"Changes found on {job.started[:10]}", night.rows(), remarks)
    lock.update(name, html.encode())
    return storage.join(lock.folder, name)
