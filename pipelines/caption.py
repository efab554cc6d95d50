"""Caption an archive: one row per tile in a Parquet table, whatever happened to the tile.

Tiles that this model has captioned already are left out. Without --catalog and --items the demo archive is used,
and without --model the model that the demo trains; both are made if absent.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from hisem import cli, storage
from hisem.archive.options import DEFAULTS, ReadOptions, TileSize
from hisem.archive.pairing import WHOLE_ARCHIVE, PairRequest, require_one_source
from hisem.captions.options import GREEDY, Captioning


@dataclass(frozen=True, kw_only=True)
class Options(cli.Common):
    """Options of this command."""

    catalog: str | None = None
    """Catalogue of scene pairs (.parquet or .csv). Default: the demo archive."""
    items: str | None = None
    """Acquisitions instead of a catalogue, as pair.py takes them; what it pairs is kept in OUTPUT/_catalogues."""
    model: str | None = None
    """Bundle folder, URI, or models:/NAME@ALIAS. Default: the demo's model."""
    output: str = field(default_factory=lambda: storage.join(storage.default_storage(), "table"))
    """Folder or URI of the captions table ($HISEM_STORAGE or ~/hisem, then /table)."""
    tile_size: TileSize | None = None
    """Side of a tile in pixels (default: 256, or the demo archive's 64)."""
    pairing: Annotated[PairRequest, cli.FLAT] = WHOLE_ARCHIVE
    reading: Annotated[ReadOptions, cli.FLAT] = DEFAULTS
    captioning: Annotated[Captioning, cli.FLAT] = GREEDY
    dry_run: bool = False
    """Say what is to do and how long it may take, by captioning a sample; write nothing to the output."""
    tracking: str | None = None
    """MLflow tracking URI, of the run too (default: $MLFLOW_TRACKING_URI, else SQLite under the storage root)."""


def main(options: Options) -> int:
    """Caption, print the summary, and say by the exit code whether rows failed."""
    require_one_source(options.catalog, options.items, options.pairing)
    # Imported late, so that --help answers at once.
    from hisem.distributed.defaults import caption_source, default_model
    from hisem.distributed.forecast import forecast_captions
    from hisem.distributed.nightly import caption_archive, caption_job, publish_interrupted
    from hisem.report.summary import counts_table, show

    output, asked = storage.absolute(options.output), options.captioning
    with tempfile.TemporaryDirectory() as scratch:
        temporary = scratch if options.dry_run else None
        source = caption_source(options.catalog, options.items, options.pairing, output, temporary)
        if source.catalogue is None:
            outcome = None if options.dry_run else publish_interrupted(output, asked.page, options.tracking)
        else:
            job = caption_job(
                source.catalogue,
                options.model or default_model(options.tracking),
                output,
                tile_size=source.tile_size if options.tile_size is None else options.tile_size,
                reading=options.reading,
                captioning=asked,
                tracking_uri=options.tracking,
                scratch=Path(scratch),
            )
            if options.dry_run:
                forecast = forecast_captions(*job)
                show(counts_table("To caption", forecast.rows()), forecast.assumption)
            outcome = None if options.dry_run else caption_archive(*job)
    if outcome is None:
        return source.done
    show(counts_table(f"Captions in {output}/captions", outcome.night.rows()), outcome.note())
    return cli.Exit.FAILED_ROWS if outcome.night.failed else source.done


if __name__ == "__main__":
    cli.run(main, lambda: cli.parse(Options, __doc__ or ""))
