"""Pair an archive: find each acquisition's best predecessor, and write the pairs as a catalogue.

Of several, the least cloudy counts, then the nearest in time. <output's stem>.left_out.csv says what is in no pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from hisem import cli
from hisem.archive.pairing import pair_archive, parsed_since
from hisem.archive.predecessors import PairingConfig
from hisem.archive.stac import AssetChoice
from hisem.report.summary import counts_table, show

LISTED = 50


@dataclass(frozen=True, kw_only=True)
class Options(cli.Common):
    """Options of this command."""

    items: str
    """STAC items: an ItemCollection or item file, a folder of them, or an API's address (https://...); or a table
    of footprints (.parquet or .csv): id, time, geometry (WKT or WKB), rasters, collection, cloud_cover, mask."""
    output: str
    """Catalogue to write (.parquet or .csv)."""
    assets: tuple[str, ...] = ()
    """Names of the assets with the pixels, or patterns ('tile_*'): pieces of one mosaic, not bands. Default: the asset
    named visual, else the only one with role visual, else the only one with role data, else the only asset."""
    mask_asset: str | None = None
    """Name of the asset whose non-zero pixels are clouds or otherwise invalid."""
    min_overlap: float = PairingConfig.min_overlap
    """Fraction of the newer footprint that the older one covers."""
    min_days: float = PairingConfig.min_days
    """Least days between the two dates."""
    max_days: float = PairingConfig.max_days
    """Most days between the two dates."""
    max_cloud: float = PairingConfig.max_cloud
    """Most clouds on either date, in percent; where the cloud cover is unknown, it passes."""
    across_collections: bool = False
    """Also pair acquisitions of different collections."""
    since: str | None = None
    """Find predecessors only for acquisitions taken from then on: a date, an ISO 8601 time, or yesterday (UTC)."""
    collections: tuple[str, ...] = ()
    """Collections to ask a STAC API for. Its items are asked for from --since less --max-days on."""
    bbox: tuple[float, float, float, float] | None = None
    """West, south, east and north in degrees, to ask a STAC API for."""


def main(options: Options) -> int:
    """Pair, say why items are left out, and print the summary."""
    config = PairingConfig(
        min_overlap=options.min_overlap,
        min_days=options.min_days,
        max_days=options.max_days,
        max_cloud=options.max_cloud,
        across_collections=options.across_collections,
        since=None if options.since is None else parsed_since(options.since, datetime.now(UTC)),
    )
    assets = AssetChoice(options.assets, options.mask_asset)
    summary = pair_archive(options.items, options.output, config, assets, options.collections, options.bbox)
    for one in summary.left_out[:LISTED]:
        print(f"left out: {one.id or one.where}: {one.detail} [{one.reason}]")
    if len(summary.left_out) > LISTED:
        print(f"left out: {len(summary.left_out) - LISTED} more; all are in {summary.left_out_table}")
    show(
        counts_table(
            f"Pairs in {summary.output}",
            {"acquisitions": summary.acquisitions, "identical copies": summary.copies}
            | {"cloud cover unknown": summary.unknown_cloud, "before --since": summary.older, "pairs": summary.pairs}
            | {f"left out: {reason}": count for reason, count in summary.reasons.items()},
        )
    )
    return cli.Exit.FAILED_ROWS if summary.unusable else cli.Exit.DONE


if __name__ == "__main__":
    cli.run(main, lambda: cli.parse(Options, __doc__ or ""))
