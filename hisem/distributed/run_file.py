"""The file that makes a run's folder a run: what it trains on which data, its MLflow run, and how it ended."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hisem import storage
from hisem.config import flatten, to_dict
from hisem.distributed.dataset import Split
from hisem.errors import ConfigError, StorageError
from hisem.model import bundle
from hisem.training.recipe import Experiment

NAME = "hisem_run.json"


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
        if known is None:
            return new
        known._require_same(new)
        return known

    @classmethod
    def read(cls, folder: str) -> RunFile | None:
        """What is in `folder`, if anything. Raises `StorageError` where the file is damaged."""
        path = storage.join(folder, NAME)
        if not storage.exists(path):
            return None
        try:
            return cls(folder, **json.loads(storage.read_bytes(path)))
        except (ValueError, TypeError) as error:
            raise StorageError(f"{path}: damaged ({error}). Choose another --name.") from error

    def started(self, run_id: str) -> RunFile:
        """With its MLflow run, written."""
        return self._written(run_id=run_id)

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
