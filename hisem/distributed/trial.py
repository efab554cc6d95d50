"""One trial of a sweep: a training run of its own, in a process of its own beside the sweep's driver."""

from __future__ import annotations

import logging
import queue
import threading
from dataclasses import dataclass
from typing import Any

import ray.tune

from hisem import storage
from hisem.distributed import session
from hisem.distributed.trainer import TrainOptions, train
from hisem.errors import StoppedError
from hisem.training.checkpoints import Checkpoints
from hisem.training.execution import Execution
from hisem.training.space import SETTINGS, Space, Value

TRIALS = "trials"
"""Folder of the trials' runs under the sweep's."""

CHOICE = "choice"
"""What a grid's trial has drawn, in Ray Tune's config of it."""

EPOCH = "epoch"
"""Epochs done, in what trials report."""

OVER = "hisem_over"
"""File in the folder of a trial that is over: Ray Tune writes its own state every ten seconds only, and would train a
trial on that ended since."""

STOP_SECONDS = 120.0
"""How long a trial that is stopped may take to end its training run."""

Report = dict[str, float]


@dataclass(frozen=True)
class TrialOrders:
    """What all trials of a sweep have in common."""

    space: Space
    data: str
    folder: str
    """Folder or URI of the sweep."""
    tracking: str
    parent: str
    """The sweep's MLflow run."""
    execution: Execution

    def run(self, trial: str) -> TrainOptions:
        """How the training run of a trial is called and where it lies."""
        return TrainOptions(
            data=self.data,
            storage=storage.join(self.folder, TRIALS),
            name=trial,
            tracking=self.tracking,
            register="",
            execution=self.execution,
            parent=self.parent,
        )


def drawn(config: dict[str, Any]) -> tuple[dict[str, Value], dict[str, Any]]:
    """The values by name, and the settings that they led to, in what Ray Tune calls a trial's config."""
    both = config.get(CHOICE, config)
    settings = {key: value for key, value in both.items() if key in SETTINGS}
    return {key: value for key, value in both.items() if key not in SETTINGS}, settings


def mark_over(folder: str, trial: str) -> None:
    """Note in the sweep's folder that a trial is over, so that it stays so whatever Ray Tune knows after a crash."""
    storage.write_bytes(storage.join(folder, TRIALS, trial, OVER), b"")


class TrialRun(ray.tune.Trainable):
    """Trains with what was drawn; each step is an epoch.

    A trial that ran before goes on from its checkpoint, and first reports what it had done. The training run waits
    after each epoch until Ray Tune has decided, and when it is stopped ends by itself: a process that is killed
    leaves its workers, and what they reserve, behind.
    """

    def setup(self, config: dict[str, Any], orders: TrialOrders) -> None:
        """Called once, with what was drawn and what all trials have in common."""
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        session.configure()
        self._experiment = orders.space.experiment(drawn(config)[1])
        self._options = orders.run(self.trial_id)
        self._reports: queue.Queue[Report | BaseException] = queue.Queue()
        self._decided: queue.Queue[bool] = queue.Queue()
        """Whether the run goes on after the epoch that it reported."""
        self._last: Report | None = None
        self._thread = threading.Thread(target=self._train, name="hisem-trial", daemon=True)

    def step(self) -> dict[str, Any]:
        """The next epoch's report."""
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._decided.put(True)
        report = self._reports.get()
        if isinstance(report, BaseException):
            raise report
        values = {name: float(value) for name, value in report.items() if name.startswith("val_")}
        return {EPOCH: int(report[EPOCH]), "done": report is self._last, **values}

    def cleanup(self) -> None:
        """Ends the training run where the trial is stopped."""
        self._decided.put(False)
        if self._thread.ident is not None:
            self._thread.join(STOP_SECONDS)

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Nothing: the training run has checkpoints of its own."""
        return {}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Nothing, as there is nothing in one."""

    def _train(self) -> None:
        reported: set[int] = set()

        def report(epoch: Report) -> None:
            if epoch[EPOCH] == self._experiment.training.epochs:
                return  # told when the model is published
            reported.add(int(epoch[EPOCH]))
            self._reports.put(epoch)
            if not self._decided.get():
                raise StoppedError(f"{self._options.folder}: the sweep has stopped the trial.")

        try:
            if not storage.exists(storage.join(self._options.folder, OVER)):
                train(self._experiment, self._options, report)
            # A run that was over has told nothing, one that ended for want of patience all.
            history = Checkpoints(self._options.folder, keep=1).history()
            left = [epoch for epoch in history if epoch[EPOCH] not in reported] or history[-1:]
            self._last = left[-1]
            for epoch in left:
                self._reports.put(epoch)
        except BaseException as error:  # noqa: BLE001  # `step` raises it
            self._reports.put(error)
