"""One driver at a time on a run, a sweep, shards and the demo; one that lost its run changes nothing more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest

from hisem import storage, tracking
from hisem.distributed import publishing
from hisem.distributed.archive import shard_archive
from hisem.distributed.demo import demo_archive, run_demo
from hisem.distributed.holding import held
from hisem.distributed.run_file import RunFile
from hisem.distributed.sweep import SweepOptions, sweep
from hisem.distributed.trainer import TrainOptions, train
from hisem.errors import BusyError, TrainingError
from hisem.training.space import Space
from tests.distributed.conftest import TILE, tiny

HOLD = """
import sys, time
from hisem.distributed.holding import held
with held(sys.argv[1], "the work of another"):
    print("held", flush=True)
    time.sleep(600)
"""


class Holder:
    """Another process that holds a folder."""

    def __init__(self, folder: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, folder], env=environment, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "held\n"

    def __enter__(self) -> Holder:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


def refused(holder: Holder) -> AbstractContextManager[object]:
    return pytest.raises(BusyError, match=rf"held by the work of another \(process {holder.process.pid} on .* since ")


def runs(uri: str) -> list[str]:
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("hisem")
    return [run.info.run_name for run in client.search_runs([experiment.experiment_id])] if experiment else []


def test_a_held_folder_is_refused_and_a_killed_holder_is_replaced_at_once(
    shards: str, archive: str, tmp_path: Path
) -> None:
    uri = tracking.sqlite_uri(str(tmp_path / "store"))
    options = TrainOptions(shards, str(tmp_path), "run", uri)
    trials = SweepOptions(
        Space.read(str(Path(__file__).parents[2] / "tune/space.py"), tiny()), shards, str(tmp_path), "run", uri
    )
    with Holder(str(tmp_path / "run")) as holder:
        with refused(holder):
            train(tiny(), options)
        with refused(holder):
            sweep(trials)
        with refused(holder):
            run_demo(str(tmp_path / "run"))
        catalogue, references = (storage.join(archive, f"{name}.parquet") for name in ("catalogue", "references"))
        with refused(holder):
            shard_archive(catalogue, str(tmp_path / "run"), TILE, references)
        assert {path.name for path in (tmp_path / "run").iterdir()} == {"_locks"}
    with Holder(str(tmp_path / "root" / "archive")) as holder, refused(holder):
        demo_archive(str(tmp_path / "root"))
    began = time.monotonic()
    with held(str(tmp_path / "run"), "the next"):
        assert time.monotonic() - began < 5
    assert runs(uri) == []


def test_a_holder_that_is_about_to_end_is_waited_for(tmp_path: Path) -> None:
    with Holder(str(tmp_path)) as holder:
        threading.Timer(1, holder.process.kill).start()
        with held(str(tmp_path), "a trial", seconds=60):
            pass


def test_shards_that_are_whole_are_read_while_they_are_held(shards: str, archive: str) -> None:
    catalogue, references = (storage.join(archive, f"{name}.parquet") for name in ("catalogue", "references"))
    with held(shards, "another"):
        assert shard_archive(catalogue, shards, TILE, references).tiles


def take_over(folder: str) -> None:
    """As another driver does that found this one dead: its entry is removed, and the run has a new holder."""
    for entry in Path(folder, "_locks").glob("*.json"):
        entry.unlink()
    known = RunFile.read(folder)
    assert known is not None
    assert known.run_id is not None
    known.started(known.run_id, "another")


def test_a_driver_that_lost_its_run_registers_and_closes_nothing(
    trained: tuple[TrainOptions, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(trained[0], name="lost")
    register = publishing._register

    def lose(*arguments: object) -> str:
        take_over(options.folder)
        return register(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(publishing, "_register", lose)
    with pytest.raises(TrainingError, match="another command resumed this run"):
        train(tiny(epochs=1), options)
    client = mlflow.MlflowClient(tracking_uri=options.tracking)
    known = RunFile.read(options.folder)
    assert known is not None
    assert (known.finished, known.holder) == (False, "another")
    assert client.get_run(known.run_id).info.status == "RUNNING"  # another driver writes to it
    assert client.search_model_versions(f"run_id='{known.run_id}'") == []


def test_a_driver_that_lost_its_run_ends_its_workers(trained: tuple[TrainOptions, object]) -> None:
    options = replace(trained[0], name="ended")
    epochs: list[float] = []

    def on_epoch(report: dict[str, float]) -> None:
        epochs.append(report["epoch"])
        if len(epochs) == 1:
            take_over(options.folder)

    with pytest.raises(TrainingError, match="another command resumed this run"):
        train(tiny(epochs=8), options, on_epoch)
    assert len(epochs) < 4
    listed = [entry["name"] for entry in json.loads(Path(options.folder, "checkpoints.json").read_text())]
    assert max(int(name[:4]) for name in listed) <= len(epochs) + 1
    known = RunFile.read(options.folder)
    assert known is not None
    assert not known.finished
