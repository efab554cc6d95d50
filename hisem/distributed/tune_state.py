"""Ray Tune's state of a sweep as one object: its trials, its search and its scheduler as they were at one moment.

Ray Tune itself copies trials and search to the storage in several files, one after the other, and leaves out the
scheduler: a sweep that is killed would continue with trials of one moment, a search of another, and without the values
by which trials are stopped early.

SWEEP/tune.zip      the state
SWEEP/tune/         where Ray Tune reads and writes it; cleared and filled from the state when a sweep continues
"""

from __future__ import annotations

import io
import logging
import struct
import tempfile
import time
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.fs as pafs
from ray.tune.schedulers import ASHAScheduler

from hisem import storage
from hisem.distributed.holding import Require
from hisem.errors import StorageError

log = logging.getLogger(__name__)

TUNE, STATE = "tune", "tune.zip"
TUNER, RUNGS = "tuner.pkl", "rungs.pkl"
TRIALS, SEARCH, SEARCHER = "experiment_state-{}.json", "search_gen_state-{}.json", "searcher-state-{}.pkl"
"""How Ray Tune calls its files; the start of a session, which is of the form `SESSION`, takes the place of {}."""

SESSION = "%Y-%m-%d_%H-%M-%S"

DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, ValueError, EOFError, RuntimeError, OverflowError, LookupError)
"""What reading a damaged archive raises."""


class TuneState:
    """The state in the folder of a sweep."""

    def __init__(self, folder: str, require: Require) -> None:
        """Create it; `require` raises `TrainingError` where the sweep is another driver's."""
        self._require = require
        self._path = storage.join(folder, STATE)
        self._tune = storage.join(folder, TUNE)
        self._tuner: bytes | None = None
        self._taken: tuple[str, int] | None = None
        """Ray Tune's file of trials that was taken last, and its time."""
        self._rungs: bytes | None = None
        """The scheduler's, until it is back."""
        self.scheduler: Halving | None = None

    def restore(self) -> bool:
        """Give Ray Tune what was stored, if anything, and return whether there is something to continue.

        A sweep of version 0.1 has no state, but what Ray Tune copied by itself: trials and search without rungs.
        Raises `StorageError` where the state is damaged.
        """
        stored = storage.exists(self._path)
        if not stored and self._has_trials():
            return True
        self._clear()
        if not stored:
            return False
        try:
            with zipfile.ZipFile(io.BytesIO(storage.read_bytes(self._path))) as archive:
                files = {name: archive.read(name) for name in archive.namelist()}
            self._rungs = files.pop(RUNGS, None)
            names = {TUNER, *(name.format("") for name in (TRIALS, SEARCH, SEARCHER))}
            if TRIALS.format("") not in files or TUNER not in files or not names.issuperset(files):
                raise ValueError(f"it holds {', '.join(sorted(files))}")
        except DAMAGE as error:
            raise StorageError(f"{self._path}: damaged ({error}). Choose another --name.") from error
        # As the newest: a driver that was killed on this node may have left files of its own.
        now = time.strftime(SESSION)
        for name, content in files.items():
            stem, dash, suffix = name.partition("-.")
            storage.write_bytes(storage.join(self._tune, f"{stem}-{now}.{suffix}" if dash else name), content)
        return True

    def _has_trials(self) -> bool:
        """True if Ray Tune has copied its trials, before which it writes all else."""
        start, end = TRIALS.split("{}")
        names = (path.rpartition("/")[2] for path in storage.list_files(self._tune, end))
        return any(name.startswith(start) for name in names)

    def _clear(self) -> None:
        """Remove what Ray Tune copied here by itself: the copy of one file may be older than that of another."""
        fs, path = storage.filesystem(self._tune)
        for info in fs.get_file_info(pafs.FileSelector(path, allow_not_found=True)):
            if info.type == pafs.FileType.File:
                storage.delete(storage.join(self._tune, info.base_name))

    def take(self, trials: Sequence[Any]) -> None:
        """Store the state where Ray Tune has written its own since the last call.

        Called from Ray Tune's loop, between two events: what it has on disk is then what its scheduler knows.
        Raises `TrainingError` where the sweep is another driver's now, whose state stays; where the storage fails, the
        state is stored later.
        """
        if not trials:
            return
        folder = Path(trials[0].local_experiment_path)
        newest = max(folder.glob(TRIALS.format("*")), key=lambda path: path.stat().st_mtime_ns, default=None)
        if newest is None or (found := (newest.name, newest.stat().st_mtime_ns)) == self._taken:
            return
        self._taken = found  # where it cannot be stored, too: later the scheduler knows more than this file
        start, end = TRIALS.split("{}")
        session = newest.name.removeprefix(start).removesuffix(end)
        try:
            packed = self._packed(folder, session)
            self._require()
            storage.write_bytes(self._path, packed)
        except StorageError as error:
            log.warning("%s The sweep's state is stored again in some seconds.", error)

    def _packed(self, folder: Path, session: str) -> bytes:
        if self._tuner is None:
            self._tuner = storage.read_bytes(storage.join(self._tune, TUNER))
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(TUNER, self._tuner)
            for name in (TRIALS, SEARCH, SEARCHER):
                if (path := folder / name.format(session)).exists():  # a grid has no searcher
                    archive.write(path, name.format(""))
            if self.scheduler is not None:
                with tempfile.NamedTemporaryFile() as rungs:
                    self.scheduler.save(rungs.name)
                    archive.writestr(RUNGS, Path(rungs.name).read_bytes())
        return content.getvalue()

    def fill(self, scheduler: Halving) -> None:
        """Give `scheduler`, before its first trial, the rungs that were stored, and store its own from now on."""
        if self.scheduler is None and self._rungs is not None:
            with tempfile.NamedTemporaryFile() as rungs:
                Path(rungs.name).write_bytes(self._rungs)
                scheduler.restore(rungs.name)
        self.scheduler = scheduler


class Halving(ASHAScheduler):
    """Asynchronous successive halving whose rungs are stored with the sweep's state.

    Ray Tune stores its scheduler as it was at the start and brings it back so.
    """

    state: ClassVar[TuneState]
    """Of this process's sweep."""

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Called for each trial, in a sweep that continues for all of them before the first one runs."""
        if self.state.scheduler is not self:
            self.state.fill(self)
        super().on_trial_add(tune_controller, trial)
