"""Shard an archive: read both dates of every tile on one grid, and write tiles with references as Parquet.

A catalogue (Parquet or CSV) lists scene pairs: pair_id, before, after, before_time, after_time and, if
training is wanted, split (train, val, test). --levir-cc imports the LEVIR-CC benchmark's own folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from hisem import cli, storage
from hisem.archive.options import DEFAULTS, ReadOptions, TileSize
from hisem.errors import ConfigError


@dataclass(frozen=True)
class Options(cli.Common):
    """Shard an archive."""

    output: str
    """Folder or URI for the shards."""
    catalog: str | None = None
    """Catalogue of scene pairs (.parquet or .csv)."""
    levir_cc: str | None = None
    """Folder of LEVIR-CC (LevirCCcaptions.json and images/), or a benchmark in its layout, instead of a catalogue."""
    references: str | None = None
    """Table of references (.parquet): pair_id, row_off, col_off, references, changed. Needed for training."""
    tile_size: TileSize = 256
    """Side of a tile in pixels."""
    dry_run: bool = False
    """Say what is to do and how long it may take, by reading a sample; write nothing. Not with --levir-cc."""
    reading: Annotated[ReadOptions, cli.FLAT] = DEFAULTS


def main(options: Options) -> int:
    """Shard, print the summary, and say how many rows failed."""
    if (options.catalog is None) == (options.levir_cc is None):
        raise ConfigError("Give exactly one of --catalog FILE and --levir-cc DIR.")
    if options.levir_cc is not None and (unused := options.reading.changed()):
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in unused)
        raise ConfigError(f"--levir-cc takes the benchmark's tiles as they are: leave out {flags}.")
    if options.levir_cc is not None and options.dry_run:
        raise ConfigError("--dry-run reads a sample of a catalogue's scenes: leave it out with --levir-cc.")
    # Imported late, so that --help answers at once.
    from hisem.distributed.archive import shard_archive, shard_levir_cc
    from hisem.distributed.forecast import forecast_shards
    from hisem.report.summary import counts_table, show

    output = storage.absolute(options.output)
    if options.dry_run:
        forecast = forecast_shards(options.catalog or "", options.tile_size, options.references, options.reading)
        show(counts_table("To shard", forecast.rows()), forecast.assumption)
        return cli.Exit.DONE
    if options.levir_cc is not None:
        summary = shard_levir_cc(options.levir_cc, output)
    else:
        summary = shard_archive(options.catalog or "", output, options.tile_size, options.references, options.reading)
    show(counts_table(f"Shards in {summary.output}", summary.rows()))
    return cli.Exit.FAILED_ROWS if summary.statuses["failed"] else cli.Exit.DONE


if __name__ == "__main__":
    cli.run(main, lambda: cli.parse(Options, __doc__ or ""))
