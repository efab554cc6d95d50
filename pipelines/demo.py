"""The demo: a synthetic archive is rendered, tiled, learned, scored and captioned, all on this machine.

Nothing is downloaded and no service is started. What is already there is not done again.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from hisem import cli


@dataclass(frozen=True, kw_only=True)
class Options(cli.Common):
    """Options of this command."""

    output: str = "demo"
    """Folder for everything the demo makes."""


def main(options: Options) -> int:
    """Run the demo, print the scores and where everything lies."""
    # Imported late, so that --help answers at once.
    from hisem import storage
    from hisem.distributed.demo import run_demo
    from hisem.distributed.session import cluster
    from hisem.report.summary import counts_table, print_lines, show
    from hisem.report.tables import score_table

    with cluster():
        done = run_demo(storage.absolute(options.output))
    show(score_table(done.evaluation.rows, "Held-out scenes of the demo archive (scores x 100)"))
    show(
        counts_table(
            "Captioning the held-out scenes",
            {f"rows {status}": count for status, count in done.captions.night.statuses.items()}
            | {"changed": done.captions.night.changed, "kind of change named right": done.kinds},
        )
    )
    show(counts_table("Seconds", {**done.seconds, "together": sum(done.seconds.values())}))
    print_lines(
        f"captions:  {done.captions.night.output}/captions (Parquet)\n"
        f"           python -c \"import pandas as pd; print(pd.read_parquet('{done.captions.night.output}/captions', "
        "columns=['tile_id', 'changed', 'caption']))\"\n"
        f"page:      {done.captions.page}\n"
        f"model:     {done.training.bundle}\n"
        f"picture:   {done.picture}\n"
        f"MLflow:    mlflow ui --backend-store-uri {shlex.quote(done.tracking)}"
    )
    return cli.Exit.DONE


if __name__ == "__main__":
    cli.run(main, lambda: cli.parse(Options, __doc__ or ""))
