"""Caption an archive: one row per tile in a Parquet table, whatever happened to the tile.

Tiles that this model has captioned already are left out. Without --catalog the demo archive is used, and
without --model the model that the demo trains; both are made if absent.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from hisem import cli, storage
from hisem.archive.options import DEFAULTS, ReadOptions
from hisem.captions.options import GREEDY, Captioning


@dataclass(frozen=True, kw_only=True)
class Options(cli.Common):
    """Options of this command."""

    catalog: str | None = None
    """Catalogue of scene pairs (.parquet or .csv). Default: the demo archive."""
    model: str | None = None
    """Bundle folder, URI, or models:/NAME@ALIAS. Default: the demo's model."""
    output: str = field(default_factory=lambda: storage.join(storage.default_storage(), "table"))
    """Folder or URI of the captions table ($HISEM_STORAGE or ~/hisem, then /table)."""
    tile_size: int | None = None
    """Side of a tile in pixels (default: 256, or the demo archive's 64)."""
    reading: Annotated[ReadOptions, cli.FLAT] = DEFAULTS
    captioning: Annotated[Captioning, cli.FLAT] = GREEDY
    dry_run: bool = False
    """Say what is to do and how long it may take, by captioning a sample; write nothing to the output."""
    tracking: str | None = None
    """MLflow tracking URI for models:/ (default: $MLFLOW_TRACKING_URI, else SQLite under the storage root)."""


def main(options: Options) -> int:
    """Caption, print the summary, and say by the exit code whether rows failed."""
    # Imported late, so that --help answers at once.
    from hisem.distributed.captioner import caption_archive, caption_job
    from hisem.distributed.defaults import default_catalogue, default_model
    from hisem.distributed.forecast import forecast_captions
    from hisem.report.summary import counts_table, show

    with tempfile.TemporaryDirectory() as scratch:
        job = caption_job(
            options.catalog or default_catalogue(),
            options.model or default_model(options.tracking),
            storage.absolute(options.output),
            tile_size=options.tile_size or (256 if options.catalog else 64),
            reading=options.reading,
            **vars(options.captioning),
            tracking_uri=options.tracking,
            scratch=Path(scratch),
        )
        if options.dry_run:
            forecast = forecast_captions(*job)
            show(counts_table("To caption", forecast.rows()), forecast.assumption)
            return cli.Exit.DONE
        summary = caption_archive(*job)
    show(counts_table(f"Captions in {summary.output}/captions", summary.rows()))
    return cli.Exit.FAILED_ROWS if summary.statuses["failed"] else cli.Exit.DONE


if __name__ == "__main__":
    cli.run(main, lambda: cli.parse(Options, __doc__ or ""))
