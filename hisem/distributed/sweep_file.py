"""The file that makes a folder a sweep's: what is searched from where, its MLflow run, and whether it is done."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from hisem import storage
from hisem.config import flatten, read_state
from hisem.distributed.run_file import REMEDY, RUN_ID
from hisem.errors import ConfigError, TrainingError

NAME = "hisem_sweep.json"


@dataclass(frozen=True)
class SweepFile:
    """`hisem_sweep.json` in the folder of a sweep."""

    folder: str
    asked: dict[str, Any]
    """What decides which trials there are: base experiment, space, fingerprints of the data, search."""
    run_id: str | None = None
    """The sweep's MLflow run."""
    finished: bool = False
    holder: str = ""
    """Id of the process that started or resumed the sweep last."""

    def __post_init__(self) -> None:
        if self.run_id is not None and not RUN_ID.fullmatch(self.run_id):
            raise ConfigError(f"run_id is {self.run_id!r}: not the id of an MLflow run")

    @classmethod
    def open(cls, folder: str, asked: dict[str, Any]) -> SweepFile:
        """What an earlier call left in `folder`, else a new one that is not written yet.

        Raises `ConfigError` where that call asked for something else, and `StorageError` where the file is damaged.
        """
        path = storage.join(folder, NAME)
        if not storage.exists(path):
            return cls(folder, asked)
        known = read_state(cls, path, REMEDY, folder=folder)
        then, now = flatten(known.asked), flatten(json.loads(json.dumps(asked)))
        if differ := [key for key in sorted(then | now) if then.get(key) != now.get(key)]:
            shown = "; ".join(
                key if key == "space" else f"{key}: {then.get(key)} then, {now.get(key)} now" for key in differ[:5]
            )
            raise ConfigError(
                f"{folder}: a sweep of this name was started otherwise ({shown}). Choose another --name, or give the "
                "same options to go on with it."
            )
        return known

    def started(self, run_id: str, holder: str) -> SweepFile:
        """Return it with its MLflow run and its new driver, written."""
        return self._written(run_id=run_id, holder=holder)

    def done(self) -> SweepFile:
        """Written as finished."""
        return self._written(finished=True)

    def _written(self, **changes: Any) -> SweepFile:
        new = replace(self, **changes)
        content = {name: value for name, value in asdict(new).items() if name != "folder"}
        storage.write_bytes(storage.join(self.folder, NAME), json.dumps(content, indent=1).encode())
        return new


def require_holder(folder: str, holder: str) -> None:
    """Raise `TrainingError` where another process has resumed the sweep in `folder` since `holder` did."""
    known = read_state(SweepFile, storage.join(folder, NAME), REMEDY, folder=folder)
    if known.holder != holder:
        raise TrainingError(
            f"{folder}: another command resumed this sweep, and this one has lost it: nothing more is written here."
        )
