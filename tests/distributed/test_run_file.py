"""Names of runs and sweeps, which name folders on any storage, and the files in these folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hisem.distributed.run_file import RunFile, require_holder
from hisem.distributed.sweep import SweepOptions
from hisem.distributed.sweep_file import SweepFile
from hisem.distributed.trainer import TrainOptions
from hisem.errors import ConfigError, StorageError, TrainingError
from hisem.training.presets import preset
from hisem.training.space import Space


def test_names_of_folders_are_taken() -> None:
    assert TrainOptions("data", "s3://bucket/runs", "first-1.a_b", "").folder == "s3://bucket/runs/first-1.a_b"


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "../up", "two words"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="it names a folder"):
        TrainOptions("data", "runs", name, "")
    with pytest.raises(ConfigError, match="it names a folder"):
        SweepOptions(Space("", "", preset("demo")), "data", "runs", name, "")


RUN: dict[str, Any] = {
    "experiment": {"training": {"epochs": 2}},
    "data": {"train": "f1", "val": "f2"},
    "init": None,
    "init_reference": None,
    "run_id": "0123abcd",
    "finished": True,
    "metrics": {"val_bleu_4": 0.5, "epoch": 1, "val_cider_d": float("nan")},
    "registered": "models:/hisem/1 is registered.",
    "holder": "",
}
SWEEP: dict[str, Any] = {"asked": {"samples": 2}, "run_id": "0123abcd", "finished": False}
NO_STATE = ["", "{", "[]", "null", "7", "\0" * 50, '{"a":' * 5000, "{}", '{"more": 1}', "\ud800"]


def read_run(folder: Path, content: str) -> RunFile | None:
    (folder / "hisem_run.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    return RunFile.read(str(folder))


def read_sweep(folder: Path, content: str) -> SweepFile:
    (folder / "hisem_sweep.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    return SweepFile.open(str(folder), {"samples": 2})


def test_whole_files_are_read(tmp_path: Path) -> None:
    run = read_run(tmp_path, json.dumps(RUN))
    assert run is not None
    assert (run.folder, run.run_id, run.finished, run.metrics["val_bleu_4"]) == (str(tmp_path), "0123abcd", True, 0.5)
    assert read_sweep(tmp_path, json.dumps(SWEEP)).run_id == "0123abcd"


@pytest.mark.parametrize("content", NO_STATE)
def test_files_that_are_no_state_are_named(tmp_path: Path, content: str) -> None:
    with pytest.raises(StorageError, match=r"hisem_run\.json: damaged .*--name"):
        read_run(tmp_path, content)
    with pytest.raises(StorageError, match=r"hisem_sweep\.json: damaged .*--name"):
        read_sweep(tmp_path, content)


@pytest.mark.parametrize(
    "change",
    [
        {"experiment": []},
        {"data": {"train": 7}},
        {"data": None},
        {"init": 7},
        {"run_id": 7},
        {"run_id": "../../elsewhere"},
        {"run_id": ""},
        {"run_id": None},
        {"finished": "yes"},
        {"finished": 1},
        {"metrics": {"val_bleu_4": "high"}},
        {"metrics": {"val_bleu_4": float("inf")}},
        {"metrics": {"val_bleu_4": True}},
        {"metrics": [0.5]},
        {"registered": None},
        {"holder": 7},
        {"folder": "/elsewhere"},
    ],
    ids=str,
)
def test_values_of_wrong_types_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(StorageError, match=r"hisem_run\.json: damaged .*--name"):
        read_run(tmp_path, json.dumps(RUN | change))


@pytest.mark.parametrize("change", [{"asked": 7}, {"run_id": "a/b"}, {"finished": 1}, {"folder": "x"}], ids=str)
def test_values_of_wrong_types_in_a_sweep_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(StorageError, match=r"hisem_sweep\.json: damaged .*--name"):
        read_sweep(tmp_path, json.dumps(SWEEP | change))


def test_the_driver_that_started_last_holds_the_run(tmp_path: Path) -> None:
    run = read_run(tmp_path, json.dumps(RUN | {"finished": False}))
    assert run is not None
    run.started("0123abcd", "first")
    require_holder(str(tmp_path), "first")
    run.started("0123abcd", "second")
    require_holder(str(tmp_path), "second")
    with pytest.raises(TrainingError, match="another command resumed this run"):
        require_holder(str(tmp_path), "first")
