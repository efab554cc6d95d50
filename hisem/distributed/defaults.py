"""What commands work on: pairs of new acquisitions, or, when nothing is named, the demo archive and its model."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime

from hisem import cli, storage, tracking
from hisem.archive.pairing import PairRequest, Summary, pair_archive, require_one_source
from hisem.distributed.demo import ARCHIVE, demo_archive, demo_model, demo_shards
from hisem.report.summary import counts_table, show
from hisem.writable import require_writable

log = logging.getLogger(__name__)

CATALOGUES = "_catalogues"
"""Folder below a captions table for the catalogues of what was paired for it."""
TILE_SIZE = 256


@dataclass(frozen=True)
class Source:
    """What to caption."""

    catalogue: str | None
    """None where there is no pair."""
    tile_size: int = TILE_SIZE
    """Unless another is asked for."""
    unusable: int = 0
    """Items that could not be used as acquisitions."""

    @property
    def done(self) -> cli.Exit:
        """The exit code of a run in which nothing else fails."""
        return cli.Exit.FAILED_ROWS if self.unusable else cli.Exit.DONE


def caption_source(
    catalogue: str | None, items: str | None, request: PairRequest, output: str, temporary: str | None = None
) -> Source:
    """The catalogue that is named; else that of the pairs of `items`, which are told; else the demo archive's.

    Pairs are written to `output/_catalogues/<time in UTC>.parquet`, or below the folder `temporary`, which will
    not last. Raises `ConfigError` for what does not go together, and what `pair_archive` raises.
    """
    require_one_source(catalogue, items, request)
    if temporary is None:
        require_writable(output)
    if items is not None:
        now = datetime.now(UTC)
        target = storage.join(temporary or output, CATALOGUES, f"{now:%Y%m%dT%H%M%SZ}.parquet")
        summary = pair_archive(items, target, request, now)
        _tell(items, summary, lasts=temporary is None)
        return Source(summary.output if summary.pairs else None, unusable=summary.unusable)
    return Source(catalogue) if catalogue is not None else Source(default_catalogue(), ARCHIVE.tile_size)


def _tell(items: str, summary: Summary, lasts: bool) -> None:
    """Print what was paired, and where it lies if it `lasts`."""
    files = {"catalogue": summary.output, "what was left out": summary.left_out_table} if lasts else {}
    note = (
        ""
        if summary.pairs
        else f"no new pairs: {summary.acquisitions} acquisitions, {summary.older} of them before --since, "
        f"{len(summary.left_out)} left out"
    )
    show(counts_table(f"Pairs of {items}", summary.rows() | files), note)


def demo_root() -> str:
    """Where the demo archive of commands without arguments lies."""
    return storage.join(storage.default_storage(), "demo")


def default_data() -> str:
    """Shards of the demo archive."""
    log.info("no --data DIR given: working on the demo archive in %s", demo_root())
    return demo_shards(demo_root())


def default_catalogue() -> str:
    """Catalogue of the demo archive."""
    log.info("no --catalog FILE given: working on the demo archive in %s", demo_root())
    return storage.join(demo_archive(demo_root()), "catalogue.parquet")


def default_model(uri: str | None) -> str:
    """Bundle of the demo's model, trained first where there is none."""
    log.info("no --model M given: using the demo's model, which is trained first if absent (some minutes)")
    return demo_model(demo_root(), uri or tracking.default_uri())
