"""Train HiSem on shards. The same --name goes on where it stopped.

Every value of the model and the training can be set: by --preset, then by --config FILE (YAML), then by
flags, in that order. With --init the model is the one named there, and the preset is the training alone.
Without --data the demo archive is used, and made if absent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from hisem import cli, storage, tracking
from hisem.training.execution import Execution
from hisem.training.options import parse_experiment
from hisem.training.presets import PresetName
from hisem.training.recipe import Experiment


@dataclass(frozen=True)
class Options(cli.Common):
    """Train HiSem."""

    data: str | None = None
    """Folder of shards with splits train and val. Default: the demo archive."""
    preset: PresetName = "demo"
    """Named settings to start from; without --data always suited to the demo archive."""
    config: str | None = None
    """YAML file of settings over the preset's."""
    init: str | None = None
    """Model to fine-tune: bundle folder, URI, or models:/NAME@ALIAS. Its vocabulary grows by the words of --data;
    settings that do not fit its weights are refused."""
    storage: str = field(default_factory=storage.default_storage)
    """Folder or URI for runs, shared by all nodes of a cluster (default: $HISEM_STORAGE, else ~/hisem)."""
    name: str = "train"
    """Name of the run."""
    tracking: str | None = None
    """MLflow tracking URI, for models:/ too (default: $MLFLOW_TRACKING_URI, else SQLite under the storage root)."""
    register: str | None = None
    """Registered model that the best bundle becomes a version of (default: hisem, of synthetic data hisem-demo); ''
    registers nothing."""
    promote: bool = False
    """Let the alias champion move to this run's model, if it is better, from one validated on other data."""
    execution: Annotated[Execution, cli.FLAT] = field(default_factory=Execution)
    experiment: Annotated[Experiment, cli.FLAT] = field(default_factory=Experiment)


def main(options: Options) -> int:
    """Train and print the best epoch's metrics and where the model is."""
    # Imported late, so that --help answers at once.
    from hisem.distributed.defaults import default_data
    from hisem.distributed.trainer import TrainOptions, train
    from hisem.report.summary import counts_table, print_lines, show

    summary = train(
        options.experiment,
        TrainOptions(
            data=storage.absolute(options.data) if options.data else default_data(),
            storage=storage.absolute(options.storage),
            name=options.name,
            tracking=options.tracking or tracking.default_uri(),
            register=tracking.DEMO if options.register is None and not options.data else options.register,
            promote=options.promote,
            execution=options.execution,
            init=tracking.pin_model(options.init, options.tracking) if options.init else None,
        ),
    )
    told = {name: value for name, value in summary.metrics.items() if not name.startswith("val_expert_")}
    show(counts_table(f"Best model of run {options.name}", told), summary.registered)
    print_lines(f"bundle: {summary.bundle}\nMLflow run: {summary.run_id}")
    return cli.Exit.DONE


if __name__ == "__main__":
    cli.run(main, lambda: parse_experiment(Options, __doc__ or "", resolve=tracking.resolve_model))
