"""Whether a checkpoint is whole: every file is there, and can be read as what it is."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
from safetensors import SafetensorError, safe_open

from hisem.errors import StorageError
from hisem.model.hisem import HiSem
from hisem.training.checkpoints import BUNDLE, GROUPS, OPTIMIZER, VALIDATION, Entry, read_progress
from hisem.training.evaluation import read_results


def require_whole(folder: Path, entry: Entry) -> None:
    """Raise `HisemError`, with the file, where the checkpoint `entry` in `folder` is damaged.

    A value of a tensor that changed on the disk is not noticed, unless it is not finite.
    """
    progress = read_progress(folder)
    if (progress.epoch, progress.done.steps) != (entry.epoch, entry.step):
        raise StorageError(f"{folder}: the checkpoint is of epoch {progress.epoch}, step {progress.done.steps}.")
    HiSem.from_pretrained(folder / BUNDLE)
    try:
        with safe_open(folder / OPTIMIZER, "pt"):  # compares its header with its length
            groups = json.loads((folder / GROUPS).read_text(encoding="utf-8"))
    except (OSError, ValueError, SafetensorError) as error:
        raise StorageError(f"{folder / OPTIMIZER}: cannot be read ({error}).") from error
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        raise StorageError(f"{folder / GROUPS}: a list of parameter groups is expected.")
    if entry.score is None:
        return
    try:
        read_results(folder / VALIDATION)
    except (OSError, ValueError, TypeError, pa.ArrowException) as error:
        raise StorageError(f"{folder / VALIDATION}: cannot be read ({error}).") from error
