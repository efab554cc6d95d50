"""A training run whose driver is killed goes on where it stopped, as if nothing had been."""

import json
import signal
import time
from pathlib import Path

import mlflow
import pytest

from hisem.captions import lock
from tests.faults.conftest import Start

EPOCHS = ("--training.epochs", "4")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_driver_resumes_with_the_losses_of_an_uninterrupted_run(start: Start) -> None:
    one = (*EPOCHS, "--workers", "1", "--checkpoint-minutes", "0.01")  # checkpoints inside epochs, too
    whole = start("whole", *one)
    first = start("killed", *one)
    first.wait_for("epoch 2 done")
    first.kill()
    second = start("killed", *one)
    text = second.end()
    whole.end()
    assert "worker(s) start after step" in text or "start at epoch 3" in text
    assert "epoch 1 done" not in text
    assert "epoch 4 done" in text
    assert second.losses() == pytest.approx(whole.losses(), abs=1e-6)

    client = mlflow.MlflowClient(tracking_uri=second.tracking)
    experiment = client.get_experiment_by_name("hisem")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "attributes.run_name = 'killed'")
    assert [run.info.status for run in runs] == ["FINISHED"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_of_two_drivers_trains_and_a_suspended_one_changes_nothing_more(start: Start) -> None:
    flags = ("--training.epochs", "25", "--workers", "1")  # it still trains when the second one starts
    first = start("shared", *flags)
    first.wait_for("epoch 1 done")
    second = start("shared", *flags)
    assert second.process.wait(timeout=120) == 1
    refused = second.log.read_text()
    assert f"training run shared (process {first.process.pid} on " in refused
    assert "Traceback" not in refused

    first.process.send_signal(signal.SIGSTOP)
    time.sleep(lock.STALE + 5)  # until it counts as dead
    third = start("shared", *flags)
    third.end()
    first.process.send_signal(signal.SIGCONT)
    assert first.process.wait(timeout=200) == 1
    text = first.log.read_text()
    assert "Traceback" not in text
    assert "bundle:" not in text

    client = mlflow.MlflowClient(tracking_uri=third.tracking)
    (run,) = client.search_runs([client.get_experiment_by_name("hisem").experiment_id])
    assert run.info.status == "FINISHED"
    assert len(client.search_model_versions("")) == 1
    folder = Path(third.tracking.removeprefix("sqlite:///")).parent / "shared"
    state = json.loads((folder / "hisem_run.json").read_text())
    assert (state["finished"], state["run_id"]) == (True, run.info.run_id)
    listed = {entry["name"] for entry in json.loads((folder / "checkpoints.json").read_text())}
    assert {path.name for path in (folder / "checkpoints").iterdir()} == listed
