"""Checkpoints: which are kept, when one counts, and that training goes on from one as if it had not stopped."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from hisem import storage
from hisem.errors import StorageError, TrainingError
from hisem.model.hisem import HiSem
from hisem.training.batches import Batch
from hisem.training.checkpoints import Checkpoints, Entry, Progress, load_optimizer, read_progress, save_optimizer
from hisem.training.damage import require_whole
from hisem.training.epoch import EpochSums, make_optimizer, train_epoch
from hisem.training.evaluation import results_table
from hisem.training.recipe import TrainingConfig


def save(checkpoints: Checkpoints, epoch: int, score: float | None, step: int = 0) -> None:
    def fill(folder: Path) -> None:
        (folder / "weights").write_text("w")

    history = [{"epoch": float(number)} for number in range(1, epoch + 1)]
    checkpoints.save(fill, Progress(epoch, EpochSums(steps=step), history), score)


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
    assert read_progress(checkpoints.fetch(latest, tmp_path / "none")) == Progress(
        1, EpochSums(steps=7), [{"epoch": 1.0}]
    )
    save(checkpoints, 1, None, step=9)
    assert [name[:11] for name in folders(str(tmp_path))] == ["0001-000000", "0001-000009"]


def test_a_checkpoint_counts_once_it_is_listed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path), 1)
    save(checkpoints, 1, 0.5)
    (tmp_path / "checkpoints" / "0002-000000").mkdir()  # as a killed process leaves it
    latest = checkpoints.latest()
    assert latest is not None
    assert latest.epoch == 1
    save(checkpoints, 3, 0.6)
    assert [name[:11] for name in folders(str(tmp_path))] == ["0003-000000"]


def listed(**changes: Any) -> str:
    return json.dumps([{"name": "0001-000000-0123abcd", "epoch": 1, "step": 0, "score": 0.5} | changes])


@pytest.mark.parametrize(
    "content",
    [
        "[{]",
        "",
        "\0" * 100,
        "\ud800",
        "null",
        "7",
        "{}",
        "[7]",
        "[[]]",
        "[{}]",
        "[" * 10000,
        listed(name="../../elsewhere"),
        listed(name="0001-000000-0123abcd/.."),
        listed(name="0002-000000-0123abcd"),
        listed(name=7),
        listed(epoch="1"),
        listed(epoch=True),
        listed(epoch=1.0),
        listed(epoch=-1, name="-001-000000"),
        listed(step=None),
        listed(score="high"),
        listed(score=float("inf")),
        listed(more=1),
        f"[{listed()[1:-1]}, {listed()[1:-1]}]",
    ],
)
def test_a_damaged_list_is_named_and_leads_nowhere(tmp_path: Path, content: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / "checkpoints.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    checkpoints = Checkpoints(str(tmp_path / "run"), 1)
    with pytest.raises(StorageError, match=r"checkpoints\.json: damaged .*--name"):
        checkpoints.latest()
    with pytest.raises(StorageError, match=r"checkpoints\.json: damaged"):
        save(checkpoints, 1, 0.5)
    assert (tmp_path / "elsewhere").is_dir()


def test_lists_of_earlier_versions_are_read(tmp_path: Path) -> None:
    (tmp_path / "checkpoints.json").write_text(listed(name="0001-000000", score=None))
    assert Checkpoints(str(tmp_path), 1).entries() == [Entry("0001-000000", 1, 0, None)]


def test_no_write_touches_a_checkpoint_that_is_listed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path), 1)
    save(checkpoints, 1, 0.5)
    (first,) = checkpoints.entries()

    def fill(folder: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # the same epoch again, cut off
        checkpoints.save(fill, Progress(1, EpochSums(), [{"epoch": 1.0}]), 0.6)
    assert checkpoints.entries() == [first]
    save(checkpoints, 1, 0.6)
    (second,) = checkpoints.entries()
    assert (second.score, second.name != first.name) == (0.6, True)
    assert folders(str(tmp_path)) == [second.name]


def test_who_has_lost_the_run_lists_and_deletes_nothing(tmp_path: Path) -> None:
    save(Checkpoints(str(tmp_path), 1), 1, 0.5)

    def lost() -> None:
        raise TrainingError("lost")

    (kept,) = folders(str(tmp_path))
    with pytest.raises(TrainingError, match="lost"):
        save(Checkpoints(str(tmp_path), 1, guard=lost), 2, 0.9)
    assert [entry.name for entry in Checkpoints(str(tmp_path), 1).entries()] == [kept]
    assert kept in folders(str(tmp_path))


@pytest.fixture
def whole(tiny: Callable[..., HiSem], tmp_path: Path) -> Checkpoints:
    """A run with whole checkpoints at the ends of epochs 1 and 2."""

    def tell(message: str) -> None:
        (tmp_path / "told").write_text(message)

    checkpoints = Checkpoints(str(tmp_path / "run"), 2, tell=tell)
    model = tiny()

    def fill(folder: Path) -> None:
        model.save_pretrained(folder / "bundle", {})
        save_optimizer(make_optimizer(model, TrainingConfig()), folder)
        pq.write_table(results_table([]), folder / "validation.parquet")

    for epoch in (1, 2):
        history = [{"epoch": float(number), "val_bleu_4": 0.1} for number in range(1, epoch + 1)]
        checkpoints.save(fill, Progress(epoch, EpochSums(), history), 0.1 * epoch)
    return checkpoints


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


HARM: dict[str, Callable[[Path], None]] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: os.truncate(path, 0),
    "cut": cut,
    "zeros": zeros,
}
FILES = [f"bundle/{name}" for name in ("model.safetensors", "config.json", "vocabulary.json")]
FILES += ["optimizer.safetensors", "optimizer.json", "progress.json", "validation.parquet"]


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("file", FILES)
def test_the_checkpoint_before_a_damaged_one_is_taken(whole: Checkpoints, tmp_path: Path, file: str, harm: str) -> None:
    first, second = whole.entries()
    HARM[harm](Path(whole.run, "checkpoints", second.name, file))
    whole.cut_damaged(require_whole)
    assert whole.entries() == [first]
    told = (tmp_path / "told").read_text()
    assert second.name in told
    assert first.name in told
    HARM[harm](Path(whole.run, "checkpoints", first.name, file))
    with pytest.raises(StorageError, match=f"{first.name}: this checkpoint is damaged .*none before it .*--name"):
        whole.cut_damaged(require_whole)
    assert whole.entries() == [first]


@pytest.mark.parametrize("damaged", itertools.product([False, True], repeat=3), ids=str)
def test_the_last_whole_checkpoint_is_resumed_from_and_whole_ones_stay(
    tmp_path: Path, damaged: tuple[bool, bool, bool]
) -> None:
    messages: list[str] = []
    checkpoints = Checkpoints(str(tmp_path), 2, tell=messages.append)
    for epoch, score in ((1, 0.9), (2, 0.8), (30, 0.2)):
        save(checkpoints, epoch, score)
    entries = checkpoints.entries()
    harmed = [entry for entry, harm in zip(entries, damaged, strict=True) if harm]

    def check(folder: Path, entry: Entry) -> None:
        if entry in harmed:
            raise StorageError("harmed")

    if all(damaged):
        with pytest.raises(StorageError, match=f"{entries[0].name}: this checkpoint is damaged .*none before it"):
            checkpoints.cut_damaged(check)
        assert checkpoints.entries() == entries
        return
    checkpoints.cut_damaged(check)
    assert checkpoints.entries() == [entry for entry in entries if entry not in harmed]
    assert len(messages) == len(harmed)
    assert all(any(entry.name in message for message in messages) for entry in harmed)


def test_a_damaged_best_checkpoint_does_not_keep_a_run_from_its_latest(whole: Checkpoints, tmp_path: Path) -> None:
    whole.cut_damaged(require_whole)
    assert len(whole.entries()) == 2
    assert not (tmp_path / "told").exists()
    first, second = whole.entries()
    shutil.rmtree(Path(whole.run, "checkpoints", first.name))
    whole.cut_damaged(require_whole)
    assert whole.entries() == [second]
    assert whole.best() == second
    assert first.name in (tmp_path / "told").read_text()


def test_epochs_of_version_0_1_are_renumbered_from_1(whole: Checkpoints) -> None:
    folder = Path(whole.run, "checkpoints", whole.entries()[1].name)
    now = read_progress(folder)
    assert [report["epoch"] for report in now.history] == [1, 2]
    stored = json.loads((folder / "progress.json").read_text())
    old = [report | {"epoch": report["epoch"] - 1} for report in stored["history"]]
    (folder / "progress.json").write_text(json.dumps(stored | {"history": old}))
    assert read_progress(folder) == now


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": "2"},
        {"epoch": 3},
        {"done": {"steps": -1}},
        {"done": {"steps": "many"}},
        {"done": 7},
        {"history": [{"epoch": 2.0}, {"epoch": 1.0}]},
        {"history": [7, 8]},
        {"more": 1},
    ],
)
def test_progress_of_wrong_types_is_refused(whole: Checkpoints, change: dict[str, Any]) -> None:
    folder = Path(whole.run, "checkpoints", whole.entries()[1].name)
    assert read_progress(folder).epoch == 2
    stored = json.loads((folder / "progress.json").read_text())
    (folder / "progress.json").write_text(json.dumps(stored | change))
    with pytest.raises(StorageError, match=r"progress\.json: damaged .*--name"):
        read_progress(folder)


def test_a_bucket_holds_them_too(bucket: str, tmp_path: Path) -> None:
    checkpoints = Checkpoints(f"{bucket}/runs/first", 1)
    for epoch, score in enumerate([0.3, 0.2, 0.1]):
        save(checkpoints, epoch, score)
    assert [entry.epoch for entry in checkpoints.entries()] == [0, 2]
    assert [name[:11] for name in folders(checkpoints.run)] == ["0000-000000", "0002-000000"]
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
