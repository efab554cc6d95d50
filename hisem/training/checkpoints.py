"""Checkpoints of a run: what a model needs to go on being trained, on any storage.

    RUN/checkpoints.json             which are there, the latest last
    RUN/checkpoints/0003-000120/     after 120 steps of epoch 3 (epochs count from 0)
        bundle/                      the model
        optimizer.safetensors, optimizer.json
        progress.json                epoch, step, the reports of the epochs before
        validation.parquet           what the model said of each validation tile, at the end of an epoch

A checkpoint counts once `checkpoints.json` names it, which is written after all its files. Random numbers are drawn
from (seed, epoch, step, rank): epoch and step are their state.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hisem import storage
from hisem.errors import StorageError, TrainingError
from hisem.training.epoch import EpochSums

T = TypeVar("T")

BUNDLE = "bundle"
INDEX, FOLDER = "checkpoints.json", "checkpoints"
OPTIMIZER, GROUPS, PROGRESS = "optimizer.safetensors", "optimizer.json", "progress.json"


@dataclass(frozen=True)
class Progress:
    """How far a run is: `done` is what was done of `epoch`, and `history` has a report for each epoch before."""

    epoch: int = 0
    done: EpochSums = field(default_factory=EpochSums)
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Entry:
    """One checkpoint in the list. `score` is None inside an epoch, where nothing was validated."""

    name: str
    epoch: int
    step: int
    score: float | None


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints under `run` (a folder or URI): the latest, and the `keep` best. One process writes them."""

    run: str
    keep: int
    patience: float = 0.0
    """Seconds for which a storage that fails is tried again."""
    tell: Callable[[str], None] = lambda message: None
    """Hears why a write is tried again."""

    def entries(self) -> list[Entry]:
        """All that count, in the order they were written. Raises `StorageError` for a damaged list."""
        path = storage.join(self.run, INDEX)
        if not self.patiently(lambda: storage.exists(path)):
            return []
        try:
            return [Entry(**entry) for entry in json.loads(self.patiently(lambda: storage.read_bytes(path)))]
        except (ValueError, TypeError) as error:
            raise StorageError(f"{path}: damaged ({error}). Choose another --name.") from error

    def latest(self) -> Entry | None:
        """The last that was written."""
        return next(reversed(self.entries()), None)

    def best(self) -> Entry | None:
        """The one with the highest score, of equal ones the first; None before the first epoch's end."""
        return next(iter(best_first(self.entries())), None)

    def history(self) -> list[dict[str, float]]:
        """The reports of the epochs behind the latest checkpoint."""
        latest = self.latest()
        if latest is None:
            return []
        with tempfile.TemporaryDirectory() as scratch:
            return read_progress(self.fetch(latest, Path(scratch))).history

    def fetch(self, entry: Entry, to: Path) -> Path:
        """The checkpoint in a local folder: itself, or a copy in `to`."""
        return self.patiently(lambda: storage.download(self._uri(entry), to))

    def save(self, fill: Callable[[Path], None], progress: Progress, score: float | None) -> Entry:
        """Write what `fill` puts into a local folder, name it in the list, and delete what is no longer kept.

        Raises `StorageError` where the storage fails for longer than `patience`; the list then still names the
        checkpoints before.
        """
        entry = Entry(f"{progress.epoch:04d}-{progress.done.steps:06d}", progress.epoch, progress.done.steps, score)
        entries = [*(there for there in self.entries() if there.name != entry.name), entry]
        best = best_first(entries)[: self.keep]
        kept = [there for there in entries if there in best or there is entry]
        with tempfile.TemporaryDirectory() as scratch:
            fill(Path(scratch))
            (Path(scratch) / PROGRESS).write_text(json.dumps(asdict(progress)), encoding="utf-8")
            self.patiently(lambda: storage.upload(Path(scratch), self._uri(entry)))
        content = json.dumps([asdict(there) for there in kept], indent=1).encode()
        self.patiently(lambda: storage.write_bytes(storage.join(self.run, INDEX), content))
        try:
            self._delete_all_but({there.name for there in kept})
        except StorageError as error:  # the checkpoint counts all the same
            self.tell(f"{error} The next checkpoint tries again.")
        return entry

    def _delete_all_but(self, names: set[str]) -> None:
        """Delete folders that are not listed, those that an interrupted `save` left behind included."""
        folder = storage.join(self.run, FOLDER)
        for name in storage.list_folders(folder):
            if name not in names:
                storage.delete(storage.join(folder, name))

    def _uri(self, entry: Entry) -> str:
        return storage.join(self.run, FOLDER, entry.name)

    def patiently(self, act: Callable[[], T]) -> T:
        """What `act` returns, tried again as the storage is."""
        return storage.patiently(act, self.patience, self.tell)


def best_first(entries: list[Entry]) -> list[Entry]:
    """Those with a score, the highest first, equal ones in the order given; one that is not a number comes last."""
    scored = [(entry, entry.score) for entry in entries if entry.score is not None]
    return [
        entry
        for entry, score in sorted(scored, key=lambda pair: -math.inf if math.isnan(pair[1]) else pair[1], reverse=True)
    ]


def read_progress(folder: Path) -> Progress:
    """How far the checkpoint in `folder` is."""
    stored = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
    return Progress(stored["epoch"], EpochSums(**stored["done"]), stored["history"])


def save_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Write the optimizer's state: tensors as safetensors, the groups as JSON."""
    state = optimizer.state_dict()
    tensors = {
        f"{parameter}.{name}": tensor.detach().cpu().contiguous()
        for parameter, values in state["state"].items()
        for name, tensor in values.items()
    }
    save_file(tensors, folder / OPTIMIZER)
    (folder / GROUPS).write_text(json.dumps(state["param_groups"]), encoding="utf-8")


def load_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Read what `save_optimizer` wrote into an optimizer of the same parameters.

    Raises `TrainingError` where it is of another model or damaged.
    """
    state: dict[int, dict[str, torch.Tensor]] = {}
    try:
        for key, tensor in load_file(folder / OPTIMIZER).items():
            parameter, _, name = key.partition(".")
            state.setdefault(int(parameter), {})[name] = tensor
        optimizer.load_state_dict(
            {"state": state, "param_groups": json.loads((folder / GROUPS).read_text(encoding="utf-8"))}
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise TrainingError(
            f"{folder}: the optimizer's state cannot be restored ({error}). Choose another --name."
        ) from error
