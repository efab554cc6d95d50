"""Score a model on a split of shards, beside two captioners that look at no image.

Protocol `words` compares words; `ids` compares word ids of the model's vocabulary joined by spaces, as the
published tables do.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hisem import cli, storage


@dataclass(frozen=True, kw_only=True)
class Options(cli.Common):
    """Options of this command."""

    data: str
    """Folder of shards."""
    model: str
    """Bundle folder, URI, or models:/NAME@ALIAS."""
    split: Literal["train", "val", "test"] = "test"
    """Split to score on."""
    protocol: Literal["words", "ids"] = "words"
    """What is compared."""
    beam: int = 1
    """Beam width; 1 is greedy."""
    output: str | None = None
    """Folder or URI for captions.parquet (one row a tile), samples.png and explained.png (where the model saw
    change, and its experts). Default: nothing is written."""
    tracking: str | None = None
    """MLflow tracking URI for models:/ (default: $MLFLOW_TRACKING_URI, else SQLite under the storage root)."""


SMALL = 500
"""Fewer tiles than this say little about a model."""


def main(options: Options) -> int:
    """Score and print the table."""
    # Imported late, so that --help answers at once.
    from hisem import tracking
    from hisem.distributed.evaluator import draw_explanations, draw_samples, evaluate
    from hisem.report.summary import show
    from hisem.report.tables import score_table

    data = storage.absolute(options.data)
    with tempfile.TemporaryDirectory() as scratch:
        model = tracking.resolve_model(options.model, options.tracking, Path(scratch))
        done = evaluate(data, model, options.split, options.protocol, options.beam)
        title = f"{options.model} on {options.split} of {data}, protocol {options.protocol} (x 100)"
        show(score_table(done.rows, title))
        if options.output:
            storage.write_parquet(done.table(), storage.join(options.output, "captions.parquet"))
            draw_samples(data, done, options.split, storage.join(options.output, "samples.png"))
            draw_explanations(data, done, model, options.split, storage.join(options.output, "explained.png"))
    if len(done.results) < SMALL:
        print(f"Only {len(done.results)} tiles: at this size the scores say that everything runs, and no more.")
    if options.output:
        print(f"captions and pictures: {options.output}")
    return cli.Exit.DONE


if __name__ == "__main__":
    cli.run(main, lambda: cli.parse(Options, __doc__ or ""))
