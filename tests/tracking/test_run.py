"""Runs: what is logged is there, also after a restart."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from hisem.errors import TrackingError
from hisem.tracking import EXPERIMENT, start_run
from tests.tracking.conftest import database_of


def test_a_run_keeps_what_is_logged(store: str, client: Any, tmp_path: Path) -> None:
    run = start_run(store, "mine")
    run.params({f"p{number}": number for number in range(130)} | {"model.size": [64, 64], "none": None})
    run.metrics({"loss": 2, "val/bleu_4": 0.25}, step=0)
    run.metrics({"loss": 1.5, "val/bleu_4": math.nan}, step=1)
    run.tags({"kind": "test"})
    assert client.get_run(run.run_id).info.status == "RUNNING"
    run.end()

    there = client.get_run(run.run_id)
    assert there.info.status == "FINISHED"
    assert there.info.run_name == "mine"
    assert client.get_experiment(there.info.experiment_id).name == EXPERIMENT
    assert len(there.data.params) == 132
    assert (there.data.params["p129"], there.data.params["model.size"]) == ("129", "[64, 64]")
    assert [(m.step, m.value) for m in client.get_metric_history(run.run_id, "loss")] == [(0, 2), (1, 1.5)]
    assert len(client.get_metric_history(run.run_id, "val/bleu_4")) == 2
    assert there.data.tags["kind"] == "test"


def test_artifacts_lie_beside_the_database(store: str, client: Any, tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    run = start_run(store, "artifacts")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.json").write_text("{}")
    run.folder(tmp_path, "bundle")
    run.file(tmp_path / "deep" / "a.json", "figures")
    run.figure(Figure(), "figures/curve.png")
    run.end("FAILED")
    assert client.get_run(run.run_id).info.status == "FAILED"
    beside = database_of(store).parent / "mlartifacts" / run.run_id / "artifacts"
    files = {str(path.relative_to(beside)) for path in beside.rglob("*") if path.is_file()}
    assert files == {"bundle/deep/a.json", "figures/a.json", "figures/curve.png"}
    assert (beside / "figures" / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_resuming_opens_the_same_run_again(store: str, client: Any) -> None:
    first = start_run(store, "resumed")
    first.params({"workers": 2, "epochs": 3})
    first.metrics({"loss": 3.0}, step=0)
    first.end("KILLED")
    second = start_run(store, "resumed", first.run_id)
    assert second.run_id == first.run_id
    assert client.get_run(first.run_id).info.status == "RUNNING"
    second.params({"workers": 4, "epochs": 3, "late": 1})  # MLflow never changes a parameter
    second.metrics({"loss": 2.0}, step=1)
    second.end()
    there = client.get_run(first.run_id)
    assert there.data.params == {"workers": "2", "epochs": "3", "late": "1"}
    assert {k: v for k, v in there.data.tags.items() if k.startswith("resumed")} == {"resumed.workers": "4"}
    assert [m.value for m in client.get_metric_history(first.run_id, "loss")] == [3.0, 2.0]
    assert there.info.status == "FINISHED"


def test_a_run_that_is_gone_is_opened_anew(store: str, client: Any, caplog: pytest.LogCaptureFixture) -> None:
    deleted = start_run(store, "deleted").run_id
    client.delete_run(deleted)
    for gone in ("0" * 32, deleted):
        run = start_run(store, "again", gone)
        assert run.run_id != gone
        assert f"MLflow run {gone} is not in {store}" in caplog.text
        assert client.get_run(run.run_id).info.run_name == "again"


def test_a_store_that_breaks_during_a_run(tmp_path: Path, store: str) -> None:
    run = start_run(store, "broken")
    run.run_id = "f" * 32
    (tmp_path / "a").write_text("x")
    for use in (
        lambda: run.params({"a": 1}),
        lambda: run.tags({"a": "1"}),
        lambda: run.folder(tmp_path, "x"),
        lambda: run.file(tmp_path / "a", "x"),
        run.end,
    ):
        with pytest.raises(TrackingError, match="ffff"):
            use()


def test_a_store_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = start_run("sqlite:///mine.db", "relative")
    (tmp_path / "a").write_text("x")
    run.file(tmp_path / "a", "files")
    assert (tmp_path / "mlartifacts" / run.run_id / "artifacts" / "files" / "a").read_text() == "x"


def test_steps_have_an_axis_of_their_own(store: str, client: Any) -> None:
    run = start_run(store, "steps")
    run.metrics({"loss": 9.0}, step=1)
    points = {step: {"loss": 1 / step, "rate": 0.5} for step in range(1, 1201)}  # more than MLflow takes at once
    run.step_metrics(points)
    run.end()
    logged = client.get_metric_history(run.run_id, "step/loss")
    assert {point.step: point.value for point in logged} == {step: 1 / step for step in range(1, 1201)}
    assert len(logged) == 1200
    assert [(point.step, point.value) for point in client.get_metric_history(run.run_id, "loss")] == [(1, 9.0)]


def test_provenance_stands_under_the_names_of_mlflow(store: str, client: Any) -> None:
    run = start_run(store, "provenance")
    run.provenance({"torch": "2.13.0", "python": "3.11"}, {"commit": "c0ffee", "branch": "b", "dirty": "no"})
    tags = client.get_run(run.run_id).data.tags
    assert {name: value for name, value in tags.items() if name.startswith(("version.", "mlflow.source.git"))} == {
        "version.torch": "2.13.0",
        "version.python": "3.11",
        "mlflow.source.git.commit": "c0ffee",
        "mlflow.source.git.branch": "b",
        "mlflow.source.git.dirty": "no",
    }
    run.provenance({}, {"commit": "bad", "commit_source": "HISEM_GIT_COMMIT"})
    assert (run.tag("mlflow.source.git.commit"), run.tag("git.commit_source")) == ("bad", "HISEM_GIT_COMMIT")
    assert run.tag("nothing") is None
