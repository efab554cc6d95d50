"""A training run whose driver is killed goes on where it stopped, as if nothing had been."""

import mlflow
import pytest

from tests.faults.conftest import Start

EPOCHS = ("--training.epochs", "4")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_driver_resumes_with_the_losses_of_an_uninterrupted_run(start: Start) -> None:
    one = (*EPOCHS, "--workers", "1", "--checkpoint-minutes", "0.01")  # checkpoints inside epochs, too
    whole = start("whole", *one)
    whole.wait_for("epoch 1 done")  # beside the other one from here on: two that make one MLflow store damage it
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
