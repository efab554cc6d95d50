"""The file that makes a run's folder a run: what it trains on which data, its MLflow run, and how it ended."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hisem import storage
from hisem.config import flatten, read_state, to_dict
from hisem.distributed.dataset import Split
from hisem.errors import ConfigError, TrainingError
from hisem.model import bundle
from hisem.training.recipe import Experiment

NAME = "hisem_run.json"

REMEDY = "Restore the file from a copy, or choose another --name."

RUN_ID = re.compile(r"[0-9A-Za-z_-]+")
"""Ids of MLflow runs, of any store's."""


def require_name(name: str) -> None:
    """Raise `ConfigError` where `name`, of a run or a sweep, cannot be that of a folder on any storage."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ConfigError(f"name is {name!r}: letters, digits, '.', '_' and '-' only; it names a folder.")


@dataclass(frozen=True)
class RunFile:
    """`hisem_run.json` in the folder of a run."""

    folder: str
    experiment: dict[str, Any]
    data: dict[str, str]
    """Fingerprint of each split."""
    init: str | None
    """Digest of the bundle that training started from."""
    init_reference: str | None = None
    """How that bundle was named."""
    run_id: str | None = None
    """The MLflow run, from the first start on."""
    finished: bool = False
    metrics: dict[str, float] = field(default_factory=dict)
    registered: str = ""
    """The registered version and where the alias is, as a sentence."""
    holder: str = ""
    """Id of the driver that started or resumed the run last: workers of an earlier one write nothing more."""

    def __post_init__(self) -> None:
        if self.run_id is not None and not RUN_ID.fullmatch(self.run_id):
            raise ConfigError(f"run_id is {self.run_id!r}: not the id of an MLflow run")
        if infinite := [name for name, value in self.metrics.items() if math.isinf(value)]:
            raise ConfigError(f"metrics.{infinite[0]} is infinite")
        if self.finished and self.run_id is None:
            raise ConfigError("finished is true without a run_id")

    @classmethod
    def open(
        cls,
        folder: str,
        experiment: Experiment,
        splits: dict[str, Split],
        init: Path | None = None,
        reference: str | None = None,
    ) -> RunFile:
        """What an earlier call left in `folder`, else a new one that is not written yet.

        Raises `ConfigError` where that call had another experiment, other data or another start, else as `read`.
        """
        data = {name: split.fingerprint() for name, split in splits.items()}
        new = cls(folder, to_dict(experiment), data, bundle.digest(init) if init else None, reference)
        known = cls.read(folder)
        if known is None or known.run_id is None:  # nothing was started: settings are free
            return new
        known._require_same(new)
        return known

    @classmethod
    def read(cls, folder: str) -> RunFile | None:
        """What is in `folder`, if anything. Raises `StorageError` where the file is damaged."""
        path = storage.join(folder, NAME)
        if not storage.exists(path):
            return None
        return read_state(cls, path, REMEDY, folder=folder)

    def claimed(self, holder: str) -> RunFile:
        """Return it with its new driver, written: earlier ones write nothing more."""
        return self._written(holder=holder)

    def started(self, run_id: str, holder: str) -> RunFile:
        """Return it with its MLflow run and its new driver, written."""
        return self._written(run_id=run_id, holder=holder)

    def done(self, metrics: dict[str, float], registered: str) -> RunFile:
        """With its result, written: the run is finished."""
        return self._written(finished=True, metrics=metrics, registered=registered)

    def _written(self, **changes: Any) -> RunFile:
        new = replace(self, **changes)
        content = {name: value for name, value in asdict(new).items() if name != "folder"}
        storage.write_bytes(storage.join(self.folder, NAME), json.dumps(content, indent=1).encode())
        return new

    def _require_same(self, new: RunFile) -> None:
        then, now = flatten(self.experiment), flatten(new.experiment)
        if differ := [
            f"{key}: {then.get(key)} then, {now.get(key)} now"
            for key in sorted(then | now)
            if then.get(key) != now.get(key)
        ]:
            raise ConfigError(
                f"{self.folder}: a run of this name was started with other settings ({'; '.join(differ[:5])}). "
                "Choose another --name, or give the same settings to resume."
            )
        if differ := [name for name in new.data if self.data.get(name) != new.data[name]]:
            raise ConfigError(
                f"{self.folder}: a run of this name was started on other data (splits {', '.join(differ)}). "
                "Choose another --name."
            )
        if self.init != new.init:
            raise ConfigError(
                f"{self.folder}: a run of this name was started from another bundle ({self.init_reference} then, "
                f"{new.init_reference} now). Choose another --name, or give --init {self.init_reference} again."
            )


def require_holder(folder: str, holder: str) -> None:
    """Raise `TrainingError` where another driver has started or resumed the run in `folder` since `holder` did."""
    known = RunFile.read(folder)
    if known is None or known.holder != holder:
        raise TrainingError(
            f"{folder}: another command resumed this run, and this one has lost it: nothing more is written here."
        )
