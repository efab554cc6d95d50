"""Sweeps on a local Ray: what their tables, bundles, MLflow runs and `best.yaml` hold."""

from __future__ import annotations

import shutil
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import mlflow
import pyarrow.parquet as pq
import pytest
import ray.tune
import yaml

from hisem import cli, tracking
from hisem.config import from_dict, to_dict
from hisem.distributed.sweep import SweepOptions, SweepSummary, sweep
from hisem.distributed.trainer import TrainOptions, train
from hisem.distributed.trial import EPOCH, TrialOrders, TrialRun
from hisem.errors import ConfigError, ResourceError
from hisem.model.hisem import HiSem
from hisem.report.sweep import Status, Trial
from hisem.training.checkpoints import Checkpoints
from hisem.training.evaluation import read_results, router_curve
from hisem.training.execution import Execution
from hisem.training.options import parse_experiment
from hisem.training.recipe import Experiment
from hisem.training.search import Search
from hisem.training.space import Space
from tests.distributed.conftest import tiny
from tests.distributed.prometheus import Labels, scrape

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # three training runs, one after the other

GRID = """
def space(trial, base):
    experts = trial.suggest_categorical("experts", [2, 5])
    rate = trial.suggest_categorical("rate", [3e-3, 1e-9] if experts == 2 else [3e-3])
    moe = {"experts": experts, "groups": 2, "groups_kept": 1, "top_k": 1}
    return {"model": {"hasd": {"moe": moe}}, "training": {"learning_rate": rate}}
"""
RUN = ("run", "grid")


@dataclass
class Sweep:
    """A sweep that is done."""

    options: SweepOptions
    summary: SweepSummary
    scraped: list[dict[Labels, float]]


def space(tmp_path: Path, source: str = GRID) -> Space:
    (tmp_path / "space.py").write_text(source)
    return Space.read(str(tmp_path / "space.py"), tiny(epochs=3, label_routing_epochs=3, metric="rouge_l"))


class Scraper(threading.Thread):
    """Fetches what a sweep tells of its trials, over and over; `seen` are the answers, first to last."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: list[dict[Labels, float]] = []
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.5):
            found = {key: value for key, value in scrape()[1].get("ray_hisem_trials", {}).items() if RUN in key}
            if found or self.seen:
                self.seen.append(found)

    def end(self) -> None:
        """Stop once the last states have come through, which Ray sends on some seconds later."""
        until = time.monotonic() + 60
        while self._waits() and time.monotonic() < until:
            time.sleep(0.2)
        self._over.set()
        self.join()
        while self.seen and not self.seen[-1]:
            self.seen.pop()

    def _waits(self) -> bool:
        """Whether by the last answer there are trials that are not over."""
        last = self.seen[-1] if self.seen else {}
        return any(last.get((RUN, ("state", state))) for state in ("waiting", "running"))


@pytest.fixture(scope="session")
def swept(shards: str, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Sweep:
    """A grid of three trials, one after the other: one learns, one does not, and 5 experts in 2 groups cannot be."""
    root = tmp_path_factory.mktemp("sweep")
    search = Search(3, search="grid", concurrent=1)
    options = SweepOptions(space(root), shards, str(root), "grid", tracking.sqlite_uri(str(root)), search)
    scraper = Scraper()
    scraper.start()
    summary = sweep(options)
    scraper.end()
    return Sweep(options, summary, scraper.seen)


def by_kind(swept: Sweep) -> dict[Status, Trial]:
    return {trial.status: trial for trial in swept.summary.trials}


def test_a_trial_that_is_worse_is_stopped_and_leaves_nothing_behind(swept: Sweep) -> None:
    trials = by_kind(swept)
    assert trials["finished"].parameters == {"experts": 2, "rate": 3e-3}
    assert trials["finished"].epochs == 3
    assert trials["stopped"].parameters == {"experts": 2, "rate": 1e-9}
    assert 1 <= trials["stopped"].epochs < 3
    assert trials["stopped"].metrics["rouge_l"] < trials["finished"].metrics["rouge_l"]
    until = time.monotonic() + 60  # the workers of a stopped trial end after its driver
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < until, "a stopped trial holds CPUs"
        time.sleep(0.5)


def test_a_trial_that_is_over_is_not_trained_on_where_ray_tune_has_forgotten_it(swept: Sweep, shards: str) -> None:
    options, stopped = swept.options, by_kind(swept)["stopped"]
    trials = Path(options.folder) / "trials"
    shutil.copytree(trials / stopped.name, trials / "default")  # what Ray calls a trial outside a sweep
    files = {path: path.stat().st_mtime_ns for path in (trials / "default").rglob("*")}
    orders = TrialOrders(options.space, shards, options.folder, options.tracking, "", options.execution)
    trial = ray.tune.with_parameters(TrialRun, orders=orders)({})
    reports = [trial.train()]
    while not reports[-1]["done"]:
        reports.append(trial.train())
    trial.stop()
    assert [report[EPOCH] for report in reports] == list(range(1, stopped.epochs + 1))
    assert {path: path.stat().st_mtime_ns for path in (trials / "default").rglob("*")} == files
    shutil.rmtree(trials / "default")


def test_a_trial_that_fails_is_a_row_with_its_error(swept: Sweep) -> None:
    failed = by_kind(swept)["failed"]
    assert failed.parameters == {"experts": 5, "rate": 3e-3}
    assert "groups=2: must divide experts=5" in failed.error
    assert failed.metrics == {}
    rows = pq.read_table(f"{swept.options.folder}/trials.parquet").to_pylist()
    assert [(row["name"], row["error"]) for row in rows] == [(t.name, t.error) for t in swept.summary.trials]
    reports = pq.read_table(f"{swept.options.folder}/reports.parquet").to_pylist()
    assert [(row["trial"], row["epoch"]) for row in reports] == [
        (trial.name, epoch) for trial in swept.summary.trials for epoch in range(1, trial.epochs + 1)
    ]


def test_a_sweep_shows_its_trials_by_state_at_any_time(swept: Sweep) -> None:
    assert all(swept.scraped)  # Ray drops a gauge that nobody sets again
    assert {0.0, 1.0} == {found.get((RUN, ("state", "running"))) for found in swept.scraped}
    ended = {"waiting": 0.0, "running": 0.0, "over": 2.0, "failed": 1.0}
    assert swept.scraped[-1] == {(RUN, ("state", state)): count for state, count in ended.items()}


def test_the_bundle_of_each_trial_has_the_threshold_of_the_highest_bleu(swept: Sweep) -> None:
    for trial in swept.summary.trials:
        if trial.status == "failed":
            continue
        run = Path(swept.options.folder) / "trials" / trial.name
        best = Checkpoints(str(run), keep=1).best()
        assert best is not None
        curve = router_curve(read_results(run / "checkpoints" / best.name / "validation.parquet"))
        assert curve is not None
        model = HiSem.from_pretrained(run / "bundle")
        assert model.change_threshold == trial.threshold == curve.best().threshold
        assert model.config.hasd.moe.experts == trial.parameters["experts"]
        assert curve.best().bleu_4 == max(curve.bleu_4)


def test_mlflow_has_a_parent_and_a_child_for_each_trial(swept: Sweep) -> None:
    client = mlflow.MlflowClient(tracking_uri=swept.options.tracking)
    experiment = client.get_experiment_by_name("hisem")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    children = [run for run in runs if run.info.run_id != swept.summary.run_id]
    status = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
    assert {run.info.run_name: run.info.status for run in children} == {
        trial.name: status[trial.status] for trial in swept.summary.trials
    }
    assert len(children) == 3
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {swept.summary.run_id}
    assert client.get_run(swept.summary.run_id).info.status == "FINISHED"
    (failed,) = [run for run in children if run.info.status == "FAILED"]
    assert "must divide" in failed.data.tags["error"]
    figures = {file.path for file in client.list_artifacts(swept.summary.run_id, "figures")}
    assert figures == {f"figures/{name}.png" for name in ("parallel", "parameters", "thresholds", "speed")}


def test_best_yaml_trains_the_best_trial_again(swept: Sweep, shards: str, tmp_path: Path) -> None:
    best = by_kind(swept)["finished"]

    @dataclass(frozen=True)
    class Options(cli.Common):
        preset: str = "demo"
        config: str | None = None
        experiment: Annotated[Experiment, cli.FLAT] = field(default_factory=Experiment)

    parsed = parse_experiment(Options, "", ["--config", f"{swept.options.folder}/best.yaml"])
    experiment = parsed.experiment  # type: ignore[attr-defined]
    assert experiment.model.hasd.threshold == best.threshold
    assert experiment.model.hasd.moe.experts == best.parameters["experts"]
    plain = yaml.safe_load(Path(f"{swept.options.folder}/best.yaml").read_text())
    assert from_dict(Experiment, plain, "best.yaml") == experiment

    again = train(
        experiment,
        TrainOptions(
            shards,
            str(tmp_path),
            "again",
            tracking.sqlite_uri(str(tmp_path)),
            register="",
            execution=Execution(workers=1),
        ),
    )
    reports = pq.read_table(f"{swept.options.folder}/reports.parquet").to_pylist()
    losses = [row["train_loss"] for row in reports if row["trial"] == best.name]
    assert [report["train_loss"] for report in again.history] == pytest.approx(losses, rel=1e-5)
    # The threshold decides no loss of an epoch whose paths the labels choose, only what is said.
    assert best.curve is not None
    assert best.threshold is not None
    assert again.metrics["val_bleu_4"] == pytest.approx(best.curve.at(best.threshold).bleu_4, abs=1e-4)


def test_a_sweep_that_is_done_shows_the_same_trials(swept: Sweep) -> None:
    again = sweep(swept.options)
    assert again.finished_before
    assert again.trials == swept.summary.trials


def test_trials_that_failed_are_run_again_when_asked_for(swept: Sweep) -> None:
    again = sweep(replace(swept.options, search=replace(swept.options.search, retry_failed=True)))
    assert not again.finished_before
    assert [(t.name, t.status, t.metrics) for t in again.trials] == [
        (t.name, t.status, t.metrics) for t in swept.summary.trials
    ]


def test_another_sweep_of_the_same_name_is_refused(swept: Sweep, tmp_path: Path) -> None:
    other = replace(swept.options, space=space(tmp_path, GRID.replace("[2, 5]", "[2, 4]")))
    with pytest.raises(ConfigError, match=r"started otherwise \(space\)"):
        sweep(other)
    with pytest.raises(ConfigError, match=r"samples: 3 then, 4 now"):
        sweep(replace(swept.options, search=Search(4, search="grid")))


def test_a_grid_that_is_larger_than_the_samples_is_refused(swept: Sweep) -> None:
    with pytest.raises(ConfigError, match="the grid has 3 trials, --samples allows 2"):
        sweep(replace(swept.options, name="small", search=Search(2, search="grid")))


def test_a_budget_that_the_cluster_cannot_meet_is_refused(swept: Sweep) -> None:
    with pytest.raises(ResourceError, match=r"4 trial.* at once of 2 worker.* needs 9 CPUs, the cluster has 2"):
        sweep(
            replace(
                swept.options,
                name="large",
                search=Search(8, concurrent=4),
                execution=Execution(workers=2, cpus_per_worker=1.0),
            )
        )
    with pytest.raises(ResourceError, match="needs 1 GPUs, the cluster has 0"):
        sweep(replace(swept.options, name="gpu", execution=Execution(workers=1, gpu=True), search=Search(2)))


def test_the_options_of_a_search_are_checked() -> None:
    for wrong in ({"samples": 0}, {"concurrent": 0}, {"time_budget": 0.0}, {"seed": -1}):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))} is"):
            Search(**wrong)  # type: ignore[arg-type]
    assert to_dict(Search())["asha"] is True
