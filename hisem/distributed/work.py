"""What a captioning job has to do: the tiles of a catalogue, less those that have a row."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from hisem.archive.catalogue import REJECTED
from hisem.captions import staging
from hisem.captions import table as captions
from hisem.captions.staging import Job
from hisem.distributed.captioner import CaptionOptions
from hisem.distributed.index import index_archive
from hisem.errors import CatalogueError
from hisem.schemas import FAILED


@dataclass(frozen=True)
class Work:
    """What there is to do: `todo` rows of the index, `broken` rows of pairs that cannot be opened."""

    todo: pa.Table
    broken: pa.Table
    pairs: int
    tiles: int
    """Of the catalogue's pairs, one for each that cannot be opened."""
    aside: int
    """Those of them that an interrupted run has done already."""
    opened: set[str]
    reopened: set[str]
    """Those of them that have a failed row in the table."""
    unopened: pa.Table
    """Rows, as in `broken`, of the other pairs that cannot be opened: the table has a row of each already."""
    failed_tiles: pa.ChunkedArray
    """Errors of tiles that have a failed row in the table and are not captioned again."""
    after: datetime | None
    """When the rows that are to be replaced were made, at the latest."""

    @property
    def already(self) -> int:
        """Tiles of pairs that can be opened that are left out, as they have a row in the table."""
        return self.tiles - self.aside - self.rows - len(self.unopened)

    @property
    def rows(self) -> int:
        """Rows that will be made."""
        return len(self.todo) + len(self.broken)

    def time(self) -> datetime:
        """Now, but later than the rows that are to be replaced: another machine's clock may have been ahead."""
        now = datetime.now(UTC)
        return max(now, self.after + timedelta(microseconds=1)) if self.after else now


def find_work(catalogue: pa.Table, options: CaptionOptions, digest: str, job: Job | None) -> Work:
    """Index the catalogue, and leave out what has a row: in the table, or put aside by `job`.

    Raises `CatalogueError` where rows that would be left out are of other acquisitions than the catalogue's pair.
    """
    known = captions.known_rows(options.output, digest, set(catalogue.column("pair_id").to_pylist()))
    redo = options.captioning.redo
    if redo != "all":
        _require_same_acquisitions(catalogue, known, options)
    index, unopened = index_archive(catalogue, options.tile_size, options.reading)
    opened, tiles = set(index.column("pair_id").to_pylist()), len(index) + len(unopened)
    was_failed = pc.equal(known.column("status"), FAILED)
    done, failed = known, unopened
    if redo == "all":
        done = known.slice(0, 0)
    elif redo == "failed":
        done = known.filter(pc.invert(was_failed))
    aside = known.select(["tile_id"]).slice(0, 0)
    if job:
        aside = staging.staged_rows(options.output, job, ["tile_id", "model_digest", "captioned_at"]).select(
            ["tile_id"]
        )
    here = pa.chunked_array([*index.column("tile_id").chunks, *failed.column("tile_id").chunks], pa.string())
    count = pc.sum(_among(here, aside)).as_py() or 0
    left = done.filter(pc.and_(pc.equal(done.column("status"), FAILED), _among(done.column("tile_id"), index)))
    if redo == "failed":
        broken = known.filter(was_failed)
        index, failed = (_failed_before(rows, broken) for rows in (index, failed))
    there = pa.concat_tables([done.select(["tile_id"]), aside])
    todo, rest = (rows.filter(pc.invert(_among(rows.column("tile_id"), there))) for rows in (index, failed))
    made = pa.concat_tables([rest.select(["tile_id"]), aside])
    unopened = unopened.filter(pc.invert(_among(unopened.column("tile_id"), made)))
    after = pc.max(known.column("captioned_at")).as_py() if redo != "nothing" else None
    reopened = opened & set(known.filter(_of_pair(known)).column("pair_id").to_pylist())
    return Work(todo, rest, len(catalogue), tiles, count, opened, reopened, unopened, left.column("error"), after)


def _among(tiles: pa.ChunkedArray, rows: pa.Table) -> pa.ChunkedArray:
    """Return for each tile id whether `rows` have it."""
    return pc.is_in(tiles, rows.column("tile_id").combine_chunks())


def _of_pair(rows: pa.Table) -> pa.ChunkedArray:
    """Return which rows stand for a pair that could not be opened."""
    return pc.equal(rows.column("tile_id"), pc.binary_join_element_wise(rows.column("pair_id"), "pair", "/"))


def _require_same_acquisitions(catalogue: pa.Table, known: pa.Table, options: CaptionOptions) -> None:
    """Raise `CatalogueError` where the rows of a pair are of other dates than it has; a failed pair's may be mended."""
    key = ["pair_id", "before_time", "after_time"]
    rows = known.filter(pc.invert(_of_pair(known))).group_by(key).aggregate([])
    if REJECTED in catalogue.column_names:  # their dates are not to be believed
        catalogue = catalogue.filter(pc.is_null(catalogue.column(REJECTED)))
    now, then = ([row.values() for row in table.select(key).to_pylist()] for table in (catalogue, rows))
    dates = {pair: (before, after) for pair, before, after in now}
    others = sorted(
        (pair, _span(*of), _span(*dates[pair])) for pair, *of in then if tuple(of) != dates.get(pair, tuple(of))
    )
    if others:
        pair, of, asked = others[0]
        more = f" ({len(others) - 1} more pairs differ)" if len(others) > 1 else ""
        raise CatalogueError(
            f"{options.source}: pair {pair} is of {asked}, but {options.output} has rows of a pair of that name of "
            f"{of}{more}, for which its tiles would be left out. A pair_id names the same two acquisitions in all "
            "catalogues of a table: rename it, choose another --output, or replace the rows with --recaption."
        )


def _span(before: datetime | None, after: datetime | None) -> str:
    return " and ".join(f"{date:%Y-%m-%d %H:%M:%S}" if date else "no date" for date in (before, after))


def _failed_before(rows: pa.Table, broken: pa.Table) -> pa.Table:
    """The rows of tiles that have failed, and of pairs that could not be opened."""
    pairs = pc.binary_join_element_wise(rows.column("pair_id"), "pair", "/")
    tiles = broken.column("tile_id").combine_chunks()
    return rows.filter(pc.or_(pc.is_in(rows.column("tile_id"), tiles), pc.is_in(pairs, tiles)))
