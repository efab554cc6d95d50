"""Pair an archive: find each acquisition's best predecessor, and write the pairs as a catalogue.

Of several, the least cloudy counts, then the nearest in time. <output's stem>.left_out.csv says what is in no pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

from hisem import cli
from hisem.archive.pairing import WHOLE_ARCHIVE, PairRequest, pair_archive
from hisem.escapes import escaped
from hisem.report.summary import counts_table, print_lines, show

LISTED = 50


@dataclass(frozen=True, kw_only=True)
class Options(cli.Common):
    """Options of this command."""

    items: str
    """STAC items: an ItemCollection or item file, a folder of them, or an API's address (https://...); or a table
    of footprints (.parquet or .csv): id, time, geometry (WKT or WKB), rasters, collection, cloud_cover, mask."""
    output: str
    """Catalogue to write (.parquet or .csv)."""
    request: Annotated[PairRequest, cli.FLAT] = WHOLE_ARCHIVE


def main(options: Options) -> int:
    """Pair, say why items are left out, and print the summary."""
    summary = pair_archive(options.items, options.output, options.request, datetime.now(UTC))
    for one in summary.left_out[:LISTED]:
        print_lines(escaped(f"left out: {one.id or one.where}: {one.detail} [{one.reason}]"))
    if len(summary.left_out) > LISTED:
        print_lines(f"left out: {len(summary.left_out) - LISTED} more; all are in {summary.left_out_table}")
    show(counts_table(f"Pairs in {summary.output}", summary.rows()))
    return cli.Exit.FAILED_ROWS if summary.unusable else cli.Exit.DONE


if __name__ == "__main__":
    cli.run(main, lambda: cli.parse(Options, __doc__ or ""))
