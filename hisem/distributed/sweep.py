"""A sweep: many training runs, which differ in what a search space draws, on one cluster, by Ray Tune."""

from __future__ import annotations

import logging
import math
import os
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import ray
import ray.tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search.optuna import OptunaSearch

from hisem import logs, provenance, storage, tracking
from hisem.config import flatten, to_dict
from hisem.distributed import budget, session
from hisem.distributed.dataset import read_splits, shard_files
from hisem.distributed.deaths import error_of, fail_trials_alone
from hisem.distributed.fit import worker_cpus
from hisem.distributed.holding import Require, held
from hisem.distributed.metrics import SweepMetrics
from hisem.distributed.run_file import require_name
from hisem.distributed.shared_storage import require_shared
from hisem.distributed.sweep_file import SweepFile, require_holder
from hisem.distributed.sweep_results import Ended, close_children, collect, publish, read_trials
from hisem.distributed.trial import CHOICE, EPOCH, TrialOrders, TrialRun, drawn, mark_over
from hisem.distributed.tune_state import TUNE, Halving, TuneState
from hisem.errors import ConfigError, StorageError, TrackingError, TrainingError
from hisem.report.sweep import Trial
from hisem.training.execution import Execution
from hisem.training.search import Search
from hisem.training.space import Space
from hisem.writable import require_writable

log = logging.getLogger(__name__)

DECIDING = ("samples", "search", "asha", "seed")
"""What of `Search` may not change when a sweep goes on."""


@dataclass(frozen=True)
class SweepOptions:
    """What a sweep searches, where, and with what."""

    space: Space
    """The search space, and the experiment that it starts from."""
    data: str
    """Folder of shards with a train and a val split."""
    storage: str
    """Folder or URI under which the sweep's folder lies; shared by all nodes of a cluster."""
    name: str
    """Name of the sweep: the same name goes on where it stopped."""
    tracking: str
    """MLflow tracking URI."""
    search: Search = field(default_factory=Search)
    """Which trials there are."""
    execution: Execution = field(default_factory=lambda: Execution(workers=1))
    """Processes of each trial."""

    def __post_init__(self) -> None:
        require_name(self.name)

    @property
    def folder(self) -> str:
        """Folder or URI of the sweep."""
        return storage.join(self.storage, self.name)

    @property
    def metric(self) -> str:
        """The validation metric that is searched for."""
        return self.space.base.training.metric


@dataclass(frozen=True)
class SweepSummary:
    """What a sweep came to."""

    folder: str
    """Where tables, figures and best.yaml are."""
    trials: list[Trial]
    run_id: str
    seconds: float
    finished_before: bool
    """The sweep was complete already."""


def sweep(options: SweepOptions) -> SweepSummary:
    """Run the trials that are left, and write what all of them came to.

    Raises `HisemError` (one of its kinds) for whatever the user can mend; a trial that fails is none of it.
    """
    began = time.perf_counter()
    require_writable(options.folder, remedy="Choose another --storage, or make it writable.")
    splits = read_splits(options.data, ("train", "val"))
    asked = {
        "experiment": to_dict(options.space.base),
        "space": options.space.source,
        "data": {name: split.fingerprint() for name, split in splits.items()},
        **{name: getattr(options.search, name) for name in DECIDING},
    }
    file, trials, finished_before = _opened(options, asked)
    if not finished_before:
        with held(options.folder, f"sweep {options.name}"), logs.of_run(options.name):
            file, trials, finished_before = _opened(options, asked)  # another command may have finished it meanwhile
            if not finished_before:
                file, trials = _tracked(options, _draws(options), file, shard_files(splits.values()))
    if finished_before:
        log.info("sweep %s is already done (choose another --name to sweep again)", options.name)
    return SweepSummary(options.folder, trials, file.run_id or "", time.perf_counter() - began, finished_before)


def _opened(options: SweepOptions, asked: dict[str, Any]) -> tuple[SweepFile, list[Trial], bool]:
    """Return the sweep's file, its trials where it is finished, and whether nothing is left to do."""
    file = SweepFile.open(options.folder, asked)
    trials = read_trials(options.folder) if file.finished else []
    again = options.search.retry_failed and any(trial.status == "failed" for trial in trials)
    return file, trials, file.finished and not again


def _draws(options: SweepOptions) -> list[dict[str, Any]] | None:
    """All trials of a grid; None where they are drawn one by one."""
    if options.search.search != "grid":
        return None
    draws = [values | settings for values, settings in options.space.grid()]
    if len(draws) > options.search.samples:
        raise ConfigError(
            f"{options.space.where}: the grid has {len(draws)} trials, --samples allows {options.search.samples}. Give "
            f"--samples {len(draws)}, a --space with fewer choices, or --search random."
        )
    return draws


def _tracked(
    options: SweepOptions, draws: list[dict[str, Any]] | None, file: SweepFile, files: set[str]
) -> tuple[SweepFile, list[Trial]]:
    """Search and publish within an MLflow run, whose children are the trials' runs; `files` are what they read."""
    holder = uuid.uuid4().hex
    run = tracking.start_run(options.tracking, options.name, file.run_id)
    try:
        file = file.started(run.run_id, holder)
        run.params({name: getattr(options.search, name) for name in DECIDING})
        run.params({"data": options.data, "space": options.space.where, **flatten(to_dict(options.space.base))})
        run.provenance(provenance.versions(), provenance.git_state())
        with session.cluster():
            require_shared([options.folder], files)
            concurrent, execution = _share(options, len(draws) if draws else options.search.samples)
            orders = TrialOrders(options.space, options.data, options.folder, options.tracking, run.run_id, execution)
            log.info(
                "sweep %s: %d trials, %d at once, each of %d worker(s) with %g CPUs%s",
                *(options.name, len(draws) if draws else options.search.samples, concurrent, execution.workers),
                *(execution.cpus_per_worker, " and 1 GPU" if execution.gpu else ""),
            )
            ended = _search(options, draws, concurrent, orders, lambda: require_holder(options.folder, holder))
        require_holder(options.folder, holder)
        trials = collect(ended, orders)
        publish(trials, orders, options.metric, run)
        require_holder(options.folder, holder)
    except BaseException as error:
        with suppress(TrackingError, TrainingError, StorageError):  # which would hide the error that matters
            require_holder(options.folder, holder)  # the MLflow runs may be those of another process now
            close_children(options.tracking, options.folder, "KILLED")
            run.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    close_children(options.tracking, options.folder, "KILLED")  # of trials that Ray Tune forgot in a crash
    run.end()
    return file.done(), trials


def _share(options: SweepOptions, trials: int) -> tuple[int, Execution]:
    """How many trials run at once, and what each gets of the cluster.

    Raises `ResourceError` where the cluster, its autoscaler's nodes included, never has room for so many.
    """
    execution, most = options.execution, budget.most()
    room = most["GPU" if execution.gpu else "CPU"] // execution.workers
    concurrent = options.search.concurrent or max(1, min(trials, int(room)))
    workers = concurrent * execution.workers
    cpu = execution.cpus_per_worker or (1.0 if execution.gpu else worker_cpus(workers))
    gpu = int(execution.gpu)
    # Where workers take whole CPUs, one more is for reading.
    reading = int(execution.gpu or execution.cpus_per_worker is not None)
    what = f"a sweep with {concurrent} trial(s) at once of {execution.workers} worker(s)"
    remedy = "Give a smaller --concurrent, fewer --workers, or a larger cluster."
    session.require(workers * cpu + reading, workers * gpu, what, remedy)
    session.require_places(workers, cpu, gpu, what, remedy)
    return concurrent, replace(execution, cpus_per_worker=cpu)


def _search(
    options: SweepOptions, draws: list[dict[str, Any]] | None, concurrent: int, orders: TrialOrders, require: Require
) -> list[Ended]:
    """Have Ray Tune run the trials that are left, and return how all of them ended; see `_Listener` for `require`."""
    # Trials' drivers stay beside the sweep's, whose autoscaler and SQLite they may have to read. They take no
    # CPU: those that waited for one could keep their own workers from getting theirs.
    here = f"node:{ray.util.get_node_ip_address()}"
    trainable = ray.tune.with_resources(ray.tune.with_parameters(TrialRun, orders=orders), {"cpu": 0, here: 0.001})
    listener = _Listener(options, len(draws) if draws else options.search.samples, require)
    _Callback.hear = listener
    _Callback.state = Halving.state = TuneState(options.folder, require)
    fs, path = storage.filesystem(storage.join(options.folder, TUNE))
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # it would end a sweep that is interrupted as if it were done
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # prints tables whatever it is told
    if _Callback.state.restore():
        log.info("sweep %s goes on where it stopped", options.name)
        tuner = ray.tune.Tuner.restore(
            path, trainable, resume_errored=options.search.retry_failed, storage_filesystem=fs
        )
    else:
        parent, _, name = path.rpartition("/")
        tuner = ray.tune.Tuner(
            trainable,
            param_space={CHOICE: ray.tune.grid_search(draws)} if draws else {},
            tune_config=ray.tune.TuneConfig(
                metric=f"val_{options.metric}",
                mode="max",
                num_samples=1 if draws else options.search.samples,
                search_alg=None if draws else _searcher(options),
                scheduler=_scheduler(options),
                max_concurrent_trials=concurrent,
                time_budget_s=60 * options.search.time_budget if options.search.time_budget else None,
                trial_name_creator=_trial_id,
                trial_dirname_creator=_trial_id,
            ),
            run_config=ray.tune.RunConfig(
                name=name,
                storage_path=parent,
                storage_filesystem=fs,
                callbacks=[_Callback()],
                verbose=0,
                checkpoint_config=ray.tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
    fail_trials_alone()
    try:
        tuner.fit()
    except ray.tune.TuneError:  # Ray Tune gives an error of `over` as text in its own
        with suppress(StorageError):
            require()
        raise
    return listener.ended


def _trial_id(trial: Any) -> str:
    return str(trial.trial_id)


def _searcher(options: SweepOptions) -> OptunaSearch:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kinds = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
    sampler = kinds[options.search.search](seed=options.search.seed)
    return OptunaSearch(options.space, metric=f"val_{options.metric}", mode="max", sampler=sampler)


def _scheduler(options: SweepOptions) -> FIFOScheduler:
    if not options.search.asha:
        return FIFOScheduler()
    return Halving(time_attr=EPOCH, max_t=options.space.base.training.epochs, reduction_factor=3)


class _Listener:
    """Follows trials and collects how they ended; `require` raises where the sweep is another driver's."""

    def __init__(self, options: SweepOptions, total: int, require: Require) -> None:
        self._options, self._total, self._require = options, total, require
        self._began = time.monotonic()
        self._best: tuple[float, str] | None = None
        self._cut: set[str] = set()
        """Trials that ended when the sweep's time was over."""
        self.ended: list[Ended] = []
        self._metrics = SweepMetrics(options.name, total)

    def result(self, trials: Sequence[Any], trial: Any, result: dict[str, Any]) -> None:
        """An epoch of a trial is done."""
        value, metric = float(result[f"val_{self._options.metric}"]), self._options.metric
        self._best = max(filter(None, (self._best, (value, trial.trial_id))))
        log.info(
            "trial %s  epoch %d/%d  %s %.4f  (best %.4f of %s)  %s",
            *(trial.trial_id, result[EPOCH], self._options.space.base.training.epochs, metric, value),
            *(*self._best, self._count(trials)),
        )

    def over(self, trials: Sequence[Any], trial: Any, error: bool) -> None:
        """A trial has ended."""
        options = self._options
        storage.patiently(self._require, 60 * options.execution.storage_minutes, log.warning)
        if time.monotonic() - self._began >= 60 * (options.search.time_budget or math.inf):
            self._cut.add(trial.trial_id)
        elif not error:
            mark_over(options.folder, trial.trial_id)
        if error:
            log.warning("trial %s failed  %s: %s", trial.trial_id, self._count(trials), error_of(trial))
        else:
            log.info("trial %s is over  %s", trial.trial_id, self._count(trials))
        close_children(options.tracking, options.folder, "FAILED" if error else "KILLED", only=trial.trial_id)

    def end(self, trials: Sequence[Any]) -> None:
        """All trials have ended."""
        for trial in sorted(trials, key=_trial_id):  # Ray Tune brings them back in another order
            values, _ = drawn(trial.config)
            failed = trial.status == "ERROR"
            cut = trial.trial_id in self._cut
            self.ended.append(Ended(trial.trial_id, values, failed, error_of(trial), cut))

    def step(self, trials: Sequence[Any]) -> None:
        """Ray Tune has looked at its trials, as it does every second at least."""
        self._metrics.trials([trial.status for trial in trials])

    def _count(self, trials: Sequence[Any]) -> str:
        states = [trial.status for trial in trials]
        over = sum(state in ("TERMINATED", "ERROR") for state in states)
        return f"[{over} of {self._total} trials over, {states.count('RUNNING')} running]"


class _Callback(ray.tune.Callback):
    """Tells the sweep of this process. Ray Tune stores its callbacks and brings them back without what they hold."""

    hear: ClassVar[_Listener]
    state: ClassVar[TuneState]

    def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:
        """See `_Listener` and `TuneState`."""
        self.state.take(trials)
        self.hear.step(trials)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        """See `_Listener`."""
        self.hear.result(trials, trial, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """See `_Listener`."""
        self.hear.over(trials, trial, error=False)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """See `_Listener`."""
        self.hear.over(trials, trial, error=True)

    def on_experiment_end(self, trials: list[Any], **_: Any) -> None:
        """See `_Listener` and `TuneState`."""
        self.state.take(trials)
        self.hear.end(trials)
