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
from hisem.ranges import Beam, Processes


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
    beam: Beam = 1
    """Beam width; 1 is greedy."""
    captioners: Processes = 1
    """Captioning actors."""
    gpu: bool = False
    """One GPU per captioner."""
    benchmark: Literal["auto", "levir-cc", "whu-cdc", "none"] = "auto"
    """Whose published scores to print beside: auto takes the benchmark that tile.py --levir-cc noted in the shards."""
    output: str | None = None
    """Folder or URI for captions.parquet (one row a tile), pictures of samples, of where the model saw change, of the
    router's threshold and of the experts' load, and index.html, a page of all. Default: nothing is written."""
    tracking: str | None = None
    """MLflow tracking URI for models:/ (default: $MLFLOW_TRACKING_URI, else SQLite under the storage root)."""


def main(options: Options) -> int:
    """Score and print the table."""
    # Imported late, so that --help answers at once.
    from hisem import tracking
    from hisem.distributed.evaluation_page import write_evaluation
    from hisem.distributed.evaluator import evaluate
    from hisem.report.summary import print_lines, show
    from hisem.report.tables import score_table
    from hisem.writable import require_writable

    data = storage.absolute(options.data)
    if options.output:
        require_writable(options.output)
    with tempfile.TemporaryDirectory() as scratch:
        model = tracking.resolve_model(options.model, options.tracking, Path(scratch))
        done = evaluate(
            data,
            model,
            options.split,
            options.protocol,
            options.beam,
            captioners=options.captioners,
            gpu=options.gpu,
            benchmark=options.benchmark,
        )
        title = f"{options.model} on {options.split} of {data}, protocol {options.protocol}"
        show(score_table(done.rows, f"{title} (x 100)", done.published), "\n".join(done.remarks))
        if options.output:
            output = storage.absolute(options.output)
            write_evaluation(output, data, model, options.split, done, title)
            print_lines(f"captions, pictures and index.html: {output}")
    return cli.Exit.DONE


if __name__ == "__main__":
    cli.run(main, lambda: cli.parse(Options, __doc__ or ""))
