"""Checkpoints: which are kept, when one counts, and that training goes on from one as if it had not stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hisem import storage
from hisem.errors import StorageError, TrainingError
from hisem.model.hisem import HiSem
from hisem.training.batches import Batch
from hisem.training.checkpoints import Checkpoints, Progress, load_optimizer, read_progress, save_optimizer
from hisem.training.epoch import EpochSums, make_optimizer, train_epoch
from hisem.training.recipe import TrainingConfig


def save(checkpoints: Checkpoints, epoch: int, score: float | None, step: int = 0) -> None:
    def fill(folder: Path) -> None:
        (folder / "weights").write_text("w")

    checkpoints.save(fill, Progress(epoch, EpochSums(steps=step)), score)


def folders(run: str) -> list[str]:
    return storage.list_folders(storage.join(run, "checkpoints"))


@pytest.mark.parametrize("keep", [1, 2])
def test_the_best_and_the_last_are_kept(tmp_path: Path, keep: int) -> None:
    checkpoints = Checkpoints(str(tmp_path), keep)
    assert checkpoints.latest() is None
    assert checkpoints.best() is None
    scores = [0.2, 0.7, None, float("nan"), 0.4, 0.7, 0.1]
    for epoch, score in enumerate(scores):
        save(checkpoints, epoch, score)
        real = sorted((s for s in scores[: epoch + 1] if s is not None and s == s), reverse=True)
        best, latest = checkpoints.best(), checkpoints.latest()
        assert best is not None
        assert latest is not None
        assert best.score == real[0]
        assert best.epoch == scores.index(real[0])  # of equal ones the first
        assert latest.epoch == epoch
        kept = [entry.score for entry in checkpoints.entries()]
        assert all(s in kept for s in real[:keep])
        assert len(kept) <= keep + 1
        assert folders(str(tmp_path)) == sorted(entry.name for entry in checkpoints.entries())


def test_one_inside_an_epoch_is_replaced_by_the_next(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path), 1)
    save(checkpoints, 1, 0.5)
    save(checkpoints, 1, None, step=7)
    latest = checkpoints.latest()
    assert latest is not None
    assert read_progress(checkpoints.fetch(latest, tmp_path / "none")) == Progress(1, EpochSums(steps=7))
    save(checkpoints, 1, None, step=9)
    assert folders(str(tmp_path)) == ["0001-000000", "0001-000009"]


def test_a_checkpoint_counts_once_it_is_listed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path), 1)
    save(checkpoints, 1, 0.5)
    (tmp_path / "checkpoints" / "0002-000000").mkdir()  # as a killed process leaves it
    latest = checkpoints.latest()
    assert latest is not None
    assert latest.epoch == 1
    save(checkpoints, 3, 0.6)
    assert folders(str(tmp_path)) == ["0003-000000"]


def test_a_damaged_list_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoints.json").write_text("[{]")
    with pytest.raises(StorageError, match=r"checkpoints\.json: damaged"):
        Checkpoints(str(tmp_path), 1).latest()


def test_a_bucket_holds_them_too(bucket: str, tmp_path: Path) -> None:
    checkpoints = Checkpoints(f"{bucket}/runs/first", 1)
    for epoch, score in enumerate([0.3, 0.2, 0.1]):
        save(checkpoints, epoch, score)
    assert [entry.epoch for entry in checkpoints.entries()] == [0, 2]
    assert folders(checkpoints.run) == ["0000-000000", "0002-000000"]
    best = checkpoints.best()
    assert best is not None
    assert (checkpoints.fetch(best, tmp_path / "copy") / "weights").read_text() == "w"


def test_a_storage_that_refuses_is_tried_again(s3_server, bucket: str) -> None:
    heard: list[str] = []

    def hear(message: str) -> None:
        heard.append(message)
        s3_server.work()

    checkpoints = Checkpoints(f"{bucket}/runs/first", 1, patience=60, tell=hear)
    save(checkpoints, 0, 0.1)
    s3_server.fail("/runs/first/", 503)
    save(checkpoints, 1, 0.2)
    assert [entry.epoch for entry in checkpoints.entries()] == [1]
    assert len(heard) == 1
    assert "Trying again in 1 s" in heard[0]
    s3_server.fail("/runs/first/", 503)
    with pytest.raises(StorageError, match="runs/first"):
        save(Checkpoints(checkpoints.run, 1, patience=0), 2, 0.3)


def test_a_restored_optimizer_steps_like_the_one_that_was_saved(
    tiny: Callable[..., HiSem], batch: Callable[..., Batch], tmp_path: Path
) -> None:
    recipe = TrainingConfig(optimizer="adamw", learning_rate=1e-2, weight_decay=0.1, meteor=False)
    model = tiny()
    optimizer = make_optimizer(model, recipe)
    train_epoch(model, model, [batch(8)], optimizer, recipe, 5, 1)
    save_optimizer(optimizer, tmp_path)

    again = tiny()
    again.load_state_dict(model.state_dict())
    restored = make_optimizer(again, recipe)
    load_optimizer(restored, tmp_path)
    for one, other in ((model, optimizer), (again, restored)):
        train_epoch(one, one, [batch(8, seed=1)], other, recipe, 6, 1)
    for (name, kept), found in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(kept, found), name
    groups = json.loads((tmp_path / "optimizer.json").read_text())
    assert groups[0]["weight_decay"] == 0.1


def test_an_optimizer_of_another_model_is_refused(tiny: Callable[..., HiSem], tmp_path: Path) -> None:
    recipe = TrainingConfig()
    model = tiny()
    save_optimizer(make_optimizer(model, recipe), tmp_path)
    with pytest.raises(TrainingError, match="cannot be restored"):
        load_optimizer(make_optimizer(model.decoder, recipe), tmp_path)
    (tmp_path / "optimizer.safetensors").write_bytes(b"rubbish")
    with pytest.raises(TrainingError, match="cannot be restored"):
        load_optimizer(make_optimizer(model, recipe), tmp_path)
