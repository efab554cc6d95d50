"""Sweep the settings of HiSem: experts, top-k, loss weights, learning rate. The same --name goes on where it stopped.

Every trial is a training run with its own workers; the router's threshold is swept afterwards on its validation
captions. Settings that all trials share are set as for train.py: by --preset, --config FILE, then flags. Without
--data the demo archive is used, and made if absent.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from hisem import cli, storage, tracking
from hisem.ranges import Epochs
from hisem.training.execution import Execution
from hisem.training.options import parse_experiment
from hisem.training.presets import PresetName
from hisem.training.recipe import Experiment, Metric
from hisem.training.search import SCORED, Search


@dataclass(frozen=True)
class Options(cli.Common):
    """Sweep HiSem."""

    data: str | None = None
    """Folder of shards with splits train and val. Default: the demo archive."""
    preset: PresetName = "demo"
    """Named settings to start from."""
    config: str | None = None
    """YAML file of settings over the preset's."""
    space: str = str(Path(__file__).parent / "space.py")
    """Python file with the function space(trial, base) (default: tune/space.py)."""
    storage: str = field(default_factory=storage.default_storage)
    """Folder or URI for the sweep, shared by all nodes of a cluster (default: $HISEM_STORAGE, else ~/hisem)."""
    name: str = "sweep"
    """Name of the sweep."""
    tracking: str | None = None
    """MLflow tracking URI (default: $MLFLOW_TRACKING_URI, else SQLite under the storage root)."""
    epochs: Epochs | None = None
    """Epochs of a trial that is not stopped (default: the preset's; 3 for the demo archive)."""
    metric: Metric | None = None
    """Validation metric to search for (default: training.metric, BLEU-4)."""
    search: Annotated[Search, cli.FLAT] = field(default_factory=Search)
    execution: Annotated[Execution, cli.FLAT] = field(default_factory=lambda: Execution(workers=1))
    experiment: Annotated[Experiment, cli.FLAT] = field(default_factory=Experiment)


def main(options: Options) -> int:
    """Sweep and print the trials, best first, and where the results are."""
    from hisem.distributed.defaults import default_data
    from hisem.distributed.sweep import SweepOptions, sweep
    from hisem.report.summary import print_lines, show
    from hisem.report.sweep import train_command, trials_table
    from hisem.training.space import Space

    epochs = options.epochs or (options.experiment.training.epochs if options.data else 3)
    metric = options.metric or options.experiment.training.metric
    training = replace(options.experiment.training, epochs=epochs, metric=metric)
    asked = SweepOptions(
        space=Space.read(options.space, replace(options.experiment, training=training)),
        data=storage.absolute(options.data) if options.data else default_data(),
        storage=storage.absolute(options.storage),
        name=options.name,
        tracking=options.tracking or tracking.default_uri(),
        search=options.search,
        execution=options.execution,
    )
    done = sweep(asked)
    show(trials_table(done.trials, metric))
    print_lines(f"tables, figures: {done.folder}\nMLflow run: {done.run_id}")
    print_lines(f"next: {train_command(storage.join(done.folder, 'best.yaml'), asked.data)}")
    if not options.data:
        print_lines("on real data: --data SHARDS of tile.py; on a cluster: ray job submit -- python tune/sweep.py ...")
    return cli.Exit.DONE


if __name__ == "__main__":
    cli.run(main, lambda: parse_experiment(Options, __doc__ or "", over_preset=SCORED))
