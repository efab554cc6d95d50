"""A training run from its checks to what becomes of the best model."""

from __future__ import annotations

import logging
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from hisem import logs, provenance, storage, tracking
from hisem.config import flatten, to_dict
from hisem.distributed import session
from hisem.distributed.archive import is_synthetic
from hisem.distributed.dataset import Split, read_splits, shard_files
from hisem.distributed.fit import Job, fit
from hisem.distributed.holding import held
from hisem.distributed.publishing import Registration, promote, publish
from hisem.distributed.run_file import RunFile, require_holder, require_name
from hisem.distributed.shared_storage import require_shared
from hisem.errors import ConfigError, StoppedError, StorageError, TrackingError, TrainingError
from hisem.model.hisem import HiSem
from hisem.model.warm_start import require_fit
from hisem.text.vocabulary import Vocabulary
from hisem.training.checkpoints import BUNDLE, Checkpoints
from hisem.training.damage import require_whole
from hisem.training.execution import Execution
from hisem.training.recipe import Experiment
from hisem.writable import require_writable

log = logging.getLogger(__name__)

TRIAL_SECONDS = 90.0
"""Longest wait of a resumed trial for the processes of a sweep that was killed, which Ray ends within seconds."""


@dataclass(frozen=True)
class TrainOptions:
    """Where a training run reads, writes and computes."""

    data: str
    """Folder of shards with a train and a val split."""
    storage: str
    """Folder or URI under which the run's folder lies; shared by all nodes of a cluster."""
    name: str
    """Name of the run: the same name goes on where it stopped."""
    tracking: str
    """MLflow tracking URI."""
    init: str | None = None
    """Model to start from: bundle folder, URI, or models:/..."""
    register: str | None = None
    """Registered model that the best bundle becomes a version of (default: hisem, of synthetic data hisem-demo); empty
    registers nothing."""
    execution: Execution = field(default_factory=Execution)
    """Processes, checkpoints and failures."""
    parent: str | None = None
    """MLflow run that this one is a child of."""
    promote: bool = False
    """Let the alias `champion` move where the champion was validated on other data."""

    def __post_init__(self) -> None:
        require_name(self.name)

    @property
    def folder(self) -> str:
        """Folder or URI of the run."""
        return storage.join(self.storage, self.name)


@dataclass(frozen=True)
class TrainSummary:
    """What a training run came to."""

    bundle: str
    """The best model."""
    metrics: dict[str, float]
    """Validation metrics of the best epoch."""
    registered: str
    """What became of the model in the registry, in words."""
    run_id: str
    history: list[dict[str, float]]
    """One row an epoch, those of earlier calls included; empty where nothing was trained."""
    seconds: float
    resumed: bool
    finished_before: bool
    """The run was complete already and nothing was trained."""


def train(
    experiment: Experiment,
    options: TrainOptions,
    on_epoch: Callable[[dict[str, float]], None] = lambda report: None,
) -> TrainSummary:
    """Train, validate every epoch, and keep the best bundle under `storage/name/bundle`.

    `on_epoch` hears the report of each epoch, as `fit` says; nothing where the run was complete already.

    Raises `HisemError` (one of its kinds) for whatever the user can mend.
    """
    began = time.perf_counter()
    batch, workers = experiment.training.batch_size, options.execution.workers
    if batch < workers:
        raise ConfigError(f"training.batch_size={batch}: each of the {workers} workers needs a pair of it.")
    require_writable(options.folder, remedy="Choose another --storage, or make it writable.")
    splits = read_splits(options.data, ("train", "val"))
    if len(splits["train"]) < workers:
        raise ConfigError(f"{options.data}: split train has {len(splits['train'])} tile(s) for {workers} workers.")
    with tempfile.TemporaryDirectory() as scratch:
        init = tracking.resolve_model(options.init, options.tracking, Path(scratch)) if options.init else None
        work = _Work(experiment, options, splits, init)
        run_file, history = work.opened(), list[dict[str, float]]()
        resumed, done = run_file.run_id is not None, run_file.finished
        if not done or options.promote:
            vocabulary = None if done else _vocabulary(experiment, splits["train"], init)
            with _held(options), logs.of_run(options.name):
                run_file = work.opened()  # another command may have resumed or finished it meanwhile
                resumed, done = run_file.run_id is not None, run_file.finished
                if vocabulary is not None and not done:
                    run_file, history = work.train(run_file, vocabulary, on_epoch)
                elif options.promote:
                    run_file = work.promote(run_file)
        if done:
            log.info("run %s is already done: nothing to train (choose another --name to train again)", options.name)
    return TrainSummary(
        bundle=storage.join(options.folder, BUNDLE),
        metrics=run_file.metrics,
        registered=run_file.registered,
        run_id=run_file.run_id or "",
        history=history,
        seconds=time.perf_counter() - began,
        resumed=resumed,
        finished_before=done,
    )


class _Work:
    """What one driver does with a run, whose folder it holds in `train` and `promote`."""

    def __init__(
        self, experiment: Experiment, options: TrainOptions, splits: dict[str, Split], init: Path | None
    ) -> None:
        self._experiment, self._options, self._splits, self._init = experiment, options, splits, init
        self._holder = uuid.uuid4().hex
        execution = options.execution
        self._checkpoints = Checkpoints(options.folder, execution.keep, 60 * execution.storage_minutes, log.warning)

    def opened(self) -> RunFile:
        """Return the run's file, see `RunFile.open`."""
        return RunFile.open(self._options.folder, self._experiment, self._splits, self._init, self._options.init)

    def train(
        self, run_file: RunFile, vocabulary: Vocabulary, on_epoch: Callable[[dict[str, float]], None]
    ) -> tuple[RunFile, list[dict[str, float]]]:
        """Train what is left, and publish."""
        run_file = run_file.claimed(self._holder)
        self._checkpoints.cut_damaged(require_whole)
        job = Job(
            *(self._options.name, self._experiment, self._splits, vocabulary, self._init, self._checkpoints),
            *(self._options.execution, self._require, self._holder),
        )
        return _tracked(job, self._options, self._registration(), run_file, on_epoch)

    def promote(self, run_file: RunFile) -> RunFile:
        """Register the model of a finished run as `publishing.promote` does."""
        run_file = run_file.claimed(self._holder)
        metric = self._experiment.training.metric
        return promote(run_file, self._options.tracking, metric, self._splits["val"], self._registration())

    def _require(self) -> None:
        """Raise `TrainingError` where another driver has resumed the run."""
        self._checkpoints.patiently(lambda: require_holder(self._options.folder, self._holder))

    def _registration(self) -> Registration:
        """Return how the best model is registered: models of synthetic data have a name of their own."""
        if self._options.register == "":
            return Registration("", False, False, self._require)
        synthetic = is_synthetic(self._options.data)
        name = self._options.register or (tracking.DEMO if synthetic else tracking.MODEL)
        return Registration(name, synthetic, self._options.promote, self._require)


def _held(options: TrainOptions) -> AbstractContextManager[object]:
    """Hold the run's folder; a trial waits for what a killed sweep left running, as the sweep's folder is held."""
    return held(options.folder, f"training run {options.name}", TRIAL_SECONDS if options.parent else 0.0)


def _tracked(
    job: Job,
    options: TrainOptions,
    registration: Registration,
    run_file: RunFile,
    on_epoch: Callable[[dict[str, float]], None],
) -> tuple[RunFile, list[dict[str, float]]]:
    """Train and publish within an MLflow run: the one of the first call of this name."""
    run = tracking.start_run(options.tracking, options.name, run_file.run_id, options.parent)
    try:
        run_file = run_file.started(run.run_id, job.holder)
        run.params(flatten(to_dict(job.experiment)))
        run.params({"data": options.data, "init": options.init, "words": len(job.vocabulary)})
        run.params({"workers": job.execution.workers})
        run.params({f"{name}_tiles": len(split) for name, split in job.splits.items()})
        run.tags({f"data.{name}": split.fingerprint() for name, split in job.splits.items()})
        run.provenance(provenance.versions(), provenance.git_state())
        with session.cluster():
            if options.parent is None:  # a sweep has asked for its trials
                require_shared([options.folder], shard_files(job.splits.values()))
            history = fit(job, run, on_epoch)
            metrics, registered = publish(job, options.data, registration, run, history)
            job.require()
    except BaseException as error:
        if not _is_lost(job):  # else the MLflow run is that of another driver now
            with suppress(TrackingError):  # which would hide the error that matters
                run.end("KILLED" if isinstance(error, (KeyboardInterrupt, StoppedError)) else "FAILED")
        raise
    run.end()
    return job.checkpoints.patiently(lambda: run_file.done(metrics, registered)), history


def _is_lost(job: Job) -> bool:
    """True if another driver has resumed the run; a storage that fails does not show it."""
    try:
        require_holder(job.checkpoints.run, job.holder)
    except TrainingError:
        return True
    except StorageError:
        return False
    return False


def _vocabulary(experiment: Experiment, split: Split, init: Path | None) -> Vocabulary:
    """The words of the training split, behind those of the bundle that is started from.

    Sizes that do not fit together, or not to that bundle, are told here and not by a worker.
    """
    sentences = [sentence for sentences in split.references for sentence in sentences]
    least = experiment.training.vocabulary_min_count
    if init is not None:
        trained = HiSem.from_pretrained(init)
        require_fit(trained.config, experiment.model)
        return trained.vocabulary.extended(sentences, least)
    vocabulary = Vocabulary.build(sentences, least)
    with torch.device("meta"):
        HiSem(experiment.model, vocabulary, pretrained=False)
    return vocabulary
