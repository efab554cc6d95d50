"""A sweep whose driver is killed goes on: finished trials stay finished, running ones go on from their checkpoints."""

import re
from pathlib import Path

import mlflow
import pyarrow.parquet as pq
import pytest

from tests.faults.conftest import Start

SAMPLES = 3


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_sweep_goes_on(start: Start, tmp_path: Path) -> None:
    flags = ("--samples", str(SAMPLES), "--training.epochs", "3", "--training.no-meteor")
    first = start("sweep", *flags, script="tune/sweep.py")
    first.wait_for(r"is over  \[")
    first.wait_for(r"trial (\w+)  epoch 1/3", after=first.wait_for(r"is over  \[").end())
    first.kill()
    over = re.findall(r"trial (\w+) is over", first.log.read_text())
    trials = tmp_path / "storage" / "sweep" / "trials"
    stamps = {name: (trials / name / "checkpoints.json").stat().st_mtime_ns for name in over}

    second = start("sweep", *flags, script="tune/sweep.py")
    text = second.end()
    assert "goes on where it stopped" in text
    rows = pq.read_table(tmp_path / "storage" / "sweep" / "trials.parquet").to_pylist()
    assert len(rows) == SAMPLES
    assert {row["status"] for row in rows} <= {"finished", "stopped"}
    assert "finished" in {row["status"] for row in rows}
    assert {name: (trials / name / "checkpoints.json").stat().st_mtime_ns for name in over} == stamps
    for row in rows:  # no epoch was reported twice or left out
        assert len(row["curve"]["thresholds"]) > 2
    reports = pq.read_table(tmp_path / "storage" / "sweep" / "reports.parquet").to_pylist()
    for row in rows:
        epochs = [report["epoch"] for report in reports if report["trial"] == row["name"]]
        assert epochs == list(range(row["epochs"]))
        assert row["epochs"] == 3 or row["status"] == "stopped"

    client = mlflow.MlflowClient(tracking_uri=second.tracking)
    experiment = client.get_experiment_by_name("hisem")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert "RUNNING" not in {run.info.status for run in runs}
    assert {row["name"] for row in rows} <= {run.info.run_name for run in runs}
    assert sum(run.info.run_name == "sweep" for run in runs) == 1
