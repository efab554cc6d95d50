"""A sweep whose driver is killed goes on: finished trials stay finished, running ones go on from their checkpoints."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import psutil
import pyarrow.parquet as pq
import pytest

from tests.faults.conftest import ROOT, Driver, Start
from tests.faults.light_sweep import EPOCHS, TRIALS

SAMPLES = 3
Row = tuple[float, int, str]
"""What was drawn for a trial, the epoch at which it ended, and its error."""


def light_sweep(folder: Path, until: Callable[[str], bool] = lambda log: False, **variables: str) -> tuple[str, bool]:
    """Run `light_sweep.py` and SIGKILL it as soon as `until` its output is true; the output, and whether it ended."""
    folder.mkdir(exist_ok=True)
    log = folder / "log.txt"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("light_sweep.py")), str(folder)],
            env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    limit = time.monotonic() + 300
    while process.poll() is None:
        if until(log.read_text()) or time.monotonic() > limit:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert time.monotonic() < limit, log.read_text()
            return log.read_text(), False
        time.sleep(0.02)
    assert process.returncode == 0, log.read_text()
    return log.read_text(), True


def first_epochs(count: int) -> Callable[[str], bool]:
    """Whether `count` trials have passed their first epoch, by the output."""
    return lambda log: log.count(f"epoch 1/{EPOCHS}") >= count


def rows(log: str) -> list[Row]:
    return sorted((rate, epoch, error) for rate, epoch, error in json.loads(log.splitlines()[-1]))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_that_was_killed_stops_the_trials_that_an_undisturbed_one_stops(tmp_path: Path) -> None:
    undisturbed = rows(light_sweep(tmp_path / "undisturbed")[0])
    assert len(undisturbed) == TRIALS
    assert 2 <= sum(epoch < EPOCHS for _, epoch, _ in undisturbed) <= TRIALS - 2

    killed = tmp_path / "killed"
    for passed in (5, 2):  # trials whose first epoch this process sees before it is killed
        log, ended = light_sweep(killed, first_epochs(passed))
        assert not ended, log
    log, ended = light_sweep(killed)
    assert ended
    assert "goes on where it stopped" in log
    assert rows(log) == undisturbed


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_trial_that_the_memory_monitor_kills_is_one_failed_trial(tmp_path: Path) -> None:
    (tmp_path / "light").mkdir()
    (tmp_path / "light" / "die").touch()
    used = psutil.virtual_memory()
    threshold = (used.total - used.available + 3 * 2**30) / used.total
    log, ended = light_sweep(
        tmp_path, RAY_memory_usage_threshold=f"{threshold:.4f}", RAY_memory_monitor_refresh_ms="100"
    )
    assert ended
    found = rows(log)
    assert len(found) == TRIALS
    errors = [error for _, _, error in found if error]
    assert 1 <= len(errors) < TRIALS  # one, unless others take this machine's memory meanwhile
    assert all("low on memory" in error for error in errors)
    assert "Traceback" not in log


def trial_process(driver: Driver) -> psutil.Process:
    """The process of the trial that runs."""
    processes = psutil.Process(driver.process.pid).children(recursive=True)
    (found,) = [process for process in processes if process.cmdline()[:1] == ["ray::ResourceTrainable.train"]]
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_trial_whose_process_is_killed_is_one_failed_trial(start: Start, tmp_path: Path) -> None:
    """As by the kernel, while its workers train: what they reserve is free for the next trial."""
    flags = ("--samples", "2", "--concurrent", "1", "--training.epochs", "3", "--training.no-meteor")
    driver = start("sweep", *flags, script="tune/sweep.py")
    driver.wait_for(r"trial (\w+)  epoch 1/3")
    trial_process(driver).kill()
    text = driver.end()
    table = pq.read_table(tmp_path / "storage" / "sweep" / "trials.parquet").to_pylist()
    failed, other = sorted(table, key=lambda row: row["status"] != "failed")
    assert failed["status"] == "failed"
    assert "died" in failed["error"]
    assert other["status"] in ("finished", "stopped")  # the other may have been better after one epoch
    assert other["epochs"] >= 1
    assert "Traceback" not in text


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
    table = pq.read_table(tmp_path / "storage" / "sweep" / "trials.parquet").to_pylist()
    assert len(table) == SAMPLES
    assert {row["status"] for row in table} <= {"finished", "stopped"}
    assert "finished" in {row["status"] for row in table}
    assert {name: (trials / name / "checkpoints.json").stat().st_mtime_ns for name in over} == stamps
    for row in table:  # no epoch was reported twice or left out
        assert len(row["curve"]["thresholds"]) > 2
    reports = pq.read_table(tmp_path / "storage" / "sweep" / "reports.parquet").to_pylist()
    for row in table:
        epochs = [report["epoch"] for report in reports if report["trial"] == row["name"]]
        assert epochs == list(range(1, row["epochs"] + 1))
        assert row["epochs"] == 3 or row["status"] == "stopped"

    client = mlflow.MlflowClient(tracking_uri=second.tracking)
    experiment = client.get_experiment_by_name("hisem")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert "RUNNING" not in {run.info.status for run in runs}
    assert {row["name"] for row in table} <= {run.info.run_name for run in runs}
    assert sum(run.info.run_name == "sweep" for run in runs) == 1
