"""Checkpoints of a run: what a model needs to go on being trained, on any storage.

    RUN/checkpoints.json             which are there, the latest last
    RUN/checkpoints/0003-000120-6fa1b2c3/     after 120 steps of epoch 3 (epochs count from 0)
        bundle/                      the model
        optimizer.safetensors, optimizer.json
        progress.json                epoch, step, the reports of the epochs before
        validation.parquet           what the model said of each validation tile, at the end of an epoch

A checkpoint counts once `checkpoints.json` names it, which is written after all its files. Its folder has a name of its
own, so that no write touches one that is listed; folders that are not listed are deleted at the next write. Random
numbers are drawn from (seed, epoch, step, rank): epoch and step are their state.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hisem import storage
from hisem.config import from_dict
from hisem.errors import ConfigError, HisemError, StorageError, TrainingError
from hisem.training.epoch import EpochSums

T = TypeVar("T")

BUNDLE = "bundle"
VALIDATION = "validation.parquet"
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

    def __post_init__(self) -> None:
        if self.epoch < 0 or self.step < 0:
            raise ConfigError(f"epoch {self.epoch}, step {self.step}: 0 or more")
        if not re.fullmatch(rf"{self.epoch:04d}-{self.step:06d}(-[0-9a-f]{{8}})?", self.name):
            raise ConfigError(f"{self.name!r} is not the name of a checkpoint of epoch {self.epoch}, step {self.step}")
        if self.score is not None and math.isinf(self.score):
            raise ConfigError(f"the score of {self.name} is infinite")


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints under `run` (a folder or URI): the latest, and the `keep` best. One process writes them."""

    run: str
    keep: int
    patience: float = 0.0
    """Seconds for which a storage that fails is tried again."""
    tell: Callable[[str], None] = lambda message: None
    """Receives why a write is tried again, and which checkpoints are damaged."""
    guard: Callable[[], None] = lambda: None
    """Raises `TrainingError` where another driver holds the run: checked before the list is written."""

    def entries(self) -> list[Entry]:
        """All that count, in the order they were written. Raises `StorageError` for a damaged list."""
        path = storage.join(self.run, INDEX)
        if not self.patiently(lambda: storage.exists(path)):
            return []
        content = self.patiently(lambda: storage.read_bytes(path))
        try:
            listed = json.loads(content)
            if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
                raise ConfigError("a list of objects is expected")
            entries = [from_dict(Entry, entry, "an entry") for entry in listed]
            if len({entry.name for entry in entries}) < len(entries):
                raise ConfigError("a checkpoint is listed twice")
        except (ValueError, TypeError, RecursionError, ConfigError) as error:
            raise StorageError(
                f"{path}: damaged ({str(error).rstrip('.')}). Restore the file from a copy, or choose another --name."
            ) from error
        return entries

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

        Raises `StorageError` where the storage fails for longer than `patience`, and what `guard` raises; the list
        then still names the checkpoints before.
        """
        epoch, step = progress.epoch, progress.done.steps
        entry = Entry(f"{epoch:04d}-{step:06d}-{uuid.uuid4().hex[:8]}", epoch, step, score)
        entries = [*(other for other in self.entries() if (other.epoch, other.step) != (epoch, step)), entry]
        best = best_first(entries)[: self.keep]
        kept = [there for there in entries if there in best or there is entry]
        with tempfile.TemporaryDirectory() as scratch:
            fill(Path(scratch))
            (Path(scratch) / PROGRESS).write_text(json.dumps(asdict(progress)), encoding="utf-8")
            self.patiently(lambda: storage.upload(Path(scratch), self._uri(entry)))
        self._list(kept)
        try:
            self.patiently(self.guard)
            self._delete_all_but({there.name for there in kept})
        except StorageError as error:  # the checkpoint counts all the same
            self.tell(f"{error} The next checkpoint tries again.")
        return entry

    def cut_damaged(self, check: Callable[[Path, Entry], None]) -> None:
        """Take damaged checkpoints off the list: training repeats what came after the last whole one.

        `check` raises `HisemError` for a folder that is damaged. Raises `StorageError` where none is whole.
        """
        entries = self.entries()
        whole: list[Entry] = []
        for entry in reversed(entries):
            reason = self._damage(entry, check)
            if reason is None:
                whole.insert(0, entry)
            elif whole:
                self.tell(
                    f"{self._uri(entry)}: this checkpoint is damaged ({reason}) and no longer counts as one of the "
                    f"best. Training resumes from a later one, {whole[-1].name}."
                )
            else:
                before = [other.name for other in entries[: entries.index(entry)]]
                if not before:
                    raise StorageError(
                        f"{self._uri(entry)}: this checkpoint is damaged and there is none before it ({reason}). "
                        f"Restore it from a copy, choose another --name, or delete {self.run} to train from the start."
                    )
                self.tell(
                    f"{self._uri(entry)}: this checkpoint is damaged ({reason}). Training resumes from the one before "
                    f"it, {before[-1]}, if that is whole, and repeats what came after."
                )
        if whole != entries:
            self._list(whole)

    def _damage(self, entry: Entry, check: Callable[[Path, Entry], None]) -> str | None:
        """Return what `check` finds in the checkpoint; None where it is whole."""
        with tempfile.TemporaryDirectory() as scratch:
            folder = self.fetch(entry, Path(scratch))  # a storage that fails is not a damaged checkpoint
            try:
                check(folder, entry)
            except HisemError as error:
                return str(error).rstrip(".").replace(str(folder), self._uri(entry))
        return None

    def _list(self, entries: list[Entry]) -> None:
        """Write the list of checkpoints, in one piece."""
        content = json.dumps([asdict(entry) for entry in entries], indent=1).encode()
        self.patiently(self.guard)
        self.patiently(lambda: storage.write_bytes(storage.join(self.run, INDEX), content))

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
    """Return how far the checkpoint in `folder` is. Raises `StorageError` where that cannot be read from it."""
    path = folder / PROGRESS
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(stored, dict):
            raise ConfigError(f"an object is expected, found {type(stored).__name__}")
        progress = from_dict(Progress, stored, "its content")
        if progress.epoch != len(progress.history) or progress.done.steps < 0:
            raise ConfigError(f"epoch {progress.epoch} with the reports of {len(progress.history)} epochs")
        if progress.history and progress.history[0].get("epoch") == 0:  # version 0.1 counted epochs from 0
            shifted = [{**report, "epoch": report.get("epoch", -1) + 1} for report in progress.history]
            progress = replace(progress, history=shifted)
        if [report.get("epoch") for report in progress.history] != list(range(1, progress.epoch + 1)):
            raise ConfigError("its reports are not those of the epochs before")
    except (OSError, ValueError, TypeError, RecursionError, ConfigError) as error:
        raise StorageError(f"{path}: damaged ({str(error).rstrip('.')}). Choose another --name.") from error
    return progress


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
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise TrainingError(
            f"{folder}: the optimizer's state cannot be restored ({error}). Choose another --name."
        ) from error
