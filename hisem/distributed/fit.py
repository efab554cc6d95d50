"""Ray Train's part of a training run: what the workers get, and what the driver hears while they train."""

from __future__ import annotations

import logging
import signal
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ray
import ray.train
import ray.train.torch
from ray.train import FailureConfig, RunConfig, ScalingConfig

from hisem import tracking
from hisem.distributed import session
from hisem.distributed.dataset import EvenTrainingExactValidation, Split, pixels
from hisem.distributed.holding import Require
from hisem.distributed.process_group import BoundTorchConfig
from hisem.distributed.shipping import ship
from hisem.distributed.supervisor import Event, Failures, supervised
from hisem.distributed.waiting import Asked
from hisem.distributed.worker import Orders, train_worker
from hisem.errors import HisemError, StoppedError, TrainingError
from hisem.report.progress import epoch_line, step_line
from hisem.text.vocabulary import Vocabulary
from hisem.training.checkpoints import Checkpoints
from hisem.training.execution import Execution
from hisem.training.recipe import Experiment

log = logging.getLogger(__name__)

Reports = dict[int, dict[str, float]]
"""The report of each epoch."""


@dataclass(frozen=True)
class Job:
    """What is trained on which data, and how."""

    name: str
    experiment: Experiment
    splits: dict[str, Split]
    """`train` and `val`."""
    vocabulary: Vocabulary
    init: Path | None
    """Bundle to start from."""
    checkpoints: Checkpoints
    execution: Execution
    require: Require
    """Raises where this driver has lost the run."""
    holder: str
    """Id of this driver, as the run's file has it."""


def fit(
    job: Job, run: tracking.Run, on_epoch: Callable[[dict[str, float]], None] = lambda report: None
) -> list[dict[str, float]]:
    """Train to the end of the last epoch; the epochs' reports, those of earlier calls included.

    `on_epoch` hears the report of each epoch: those of earlier calls at once, the others as they are written. What it
    raises as `StoppedError` ends the run, within seconds.

    Raises `ResourceError` where the cluster can never give what the workers need, and what ended the run otherwise.
    """
    asked = _asked(job.execution)
    reports = _reports(job.checkpoints)
    if reports:  # logged once more: the driver may have died before it was
        _log_epoch(run, reports[max(reports)])
    for epoch in sorted(reports):
        on_epoch(reports[epoch])

    def ended(report: dict[str, float]) -> None:
        try:
            _require(job)
            reports[int(report["epoch"])] = report
            _log_epoch(run, report)
            on_epoch(report)
        except StoppedError as error:
            ray.get(supervisor.give_up.remote(error))

    hear = _listener(job.experiment.training.metric, run, ended)
    with supervised(hear, job.execution.max_failures, asked, log.info) as supervisor:
        orders = Orders(
            experiment=job.experiment,
            vocabulary=job.vocabulary,
            init=ship(job.init) if job.init else None,
            run=job.checkpoints.run,
            holder=job.holder,
            train_rows=len(job.splits["train"]),
            tile_size=job.splits["train"].tile_size,
            threads=max(1, int(2 * asked.cpu)),
            keep=job.checkpoints.keep,
            checkpoint_seconds=60 * job.execution.checkpoint_minutes,
            patience=job.checkpoints.patience,
            supervisor=supervisor,
        )
        _run(job, asked, orders)
    job.require()  # where the workers were done before this driver learned that it has lost the run
    written = _reports(job.checkpoints)
    for epoch in sorted(set(written) - set(reports)):  # the worker died between writing and telling
        ended(written[epoch])
    return [written[epoch] for epoch in sorted(written)]


def _require(job: Job) -> None:
    """Raise `StoppedError` where this driver has lost the run, by which its workers are ended."""
    try:
        job.require()
    except HisemError as error:
        raise StoppedError(str(error)) from error


def _run(job: Job, asked: Asked, orders: Orders) -> None:
    """Have Ray Train run the workers, and start them anew as often as the supervisor lets it."""
    least, most = job.execution.least, job.execution.workers
    with tempfile.TemporaryDirectory() as scratch:
        trainer = ray.train.torch.TorchTrainer(
            train_worker,
            train_loop_config={"orders": orders},
            torch_config=BoundTorchConfig(),
            datasets={name: pixels(split) for name, split in job.splits.items()},
            dataset_config=EvenTrainingExactValidation(),
            scaling_config=ScalingConfig(
                num_workers=most if least == most else (least, most),
                use_gpu=job.execution.gpu,
                resources_per_worker={"CPU": asked.cpu, "GPU": asked.gpu},
                # A group that grows loses what it did since its last checkpoint.
                elastic_resize_monitor_interval_s=max(60.0, 2 * orders.checkpoint_seconds),
            ),
            # Checkpoints are written by us, so that Ray Train has nothing of worth to store.
            run_config=RunConfig(
                name=job.name,
                storage_path=scratch,
                failure_config=FailureConfig(max_failures=-1),
                callbacks=[Failures(orders.supervisor)],
            ),
        )
        interrupt = signal.getsignal(signal.SIGINT)  # Ray Train puts its own in its place, and leaves it there
        try:
            trainer.fit()
        except SystemExit as error:  # what that one ends with
            raise KeyboardInterrupt from error
        except ray.train.TrainingFailedError as error:
            given_up: HisemError | None = ray.get(orders.supervisor.error.remote())
            raise given_up or TrainingError(f"training failed: {error}") from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, interrupt)


def _listener(metric: str, run: tracking.Run, ended: Callable[[dict[str, float]], None]) -> Callable[[Event], None]:
    """What becomes of events: lines on the terminal, metrics of the run; `ended` gets the report of each epoch."""

    def hear(event: Event) -> None:
        kind = event.pop("kind")
        if kind == "started":
            log.info("%s", _start_line(event))
        elif kind == "step":
            told = {name: event[name] for name in ("loss", "learning_rate", "pairs_per_second", "waiting")}
            run.step_metrics({event["global_step"]: told})
            log.info("%s", step_line(event))
        elif kind == "epoch":
            log.info("%s", epoch_line(event, metric))
            ended(event)
        elif kind == "failure":
            log.warning(
                "%s. The workers start anew from the latest checkpoint (failure %d of at most %d without one between).",
                event["reason"],
                event["failures"],
                event["limit"],
            )
        elif kind == "drained":
            log.warning(
                "a node is about to be taken away: a checkpoint is written, and the workers start anew elsewhere"
            )
        elif kind == "storage":
            log.warning("%s", event["message"])

    return hear


def _start_line(event: Event) -> str:
    inside = f"after step {event['step']} of " if event["step"] else "at "
    return f"{event['workers']} worker(s) start {inside}epoch {event['epoch']}"


def _log_epoch(run: tracking.Run, report: dict[str, float]) -> None:
    run.metrics({name: value for name, value in report.items() if name != "epoch"}, int(report["epoch"]))


def _reports(checkpoints: Checkpoints) -> Reports:
    return {int(report["epoch"]): report for report in checkpoints.history()}


def _asked(execution: Execution) -> Asked:
    """What each worker gets. Raises `ResourceError` where the cluster can never give it."""
    gpu = int(execution.gpu)
    cpu = execution.cpus_per_worker or (1.0 if gpu else worker_cpus(execution.workers))
    # Where workers take whole CPUs, one more is for reading.
    reading = int(execution.gpu or execution.cpus_per_worker is not None)
    what, remedy = f"training with {execution.least} worker(s)", "Give fewer --workers or a larger cluster."
    session.require(execution.least * cpu + reading, execution.least * gpu, what, remedy)
    session.require_places(execution.least, cpu, gpu, what, remedy)
    return Asked(execution.least, cpu, gpu, grouped=True)


def worker_cpus(workers: int) -> float:
    """CPUs that one worker on CPUs reserves: half of its part of the cluster, and of the largest node at most.

    The other half is for the tasks that read the data: reserving everything for the workers would leave them
    none, and hang.
    """
    largest = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
    return max(0.25, round(0.5 * min(session.cpus() / workers, largest), 2))
