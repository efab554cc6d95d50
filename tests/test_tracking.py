"""MLflow through our one file: a store on disk, runs, and bundles by registry name."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hisem import tracking
from hisem.errors import TrackingError
from hisem.tracking import EXPERIMENT, model_identity, resolve_model, start_run

BUNDLE = {"config.json": '{"format": 1}', "model.safetensors": "weights"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A SQLite store in a folder with awkward characters."""
    return tracking.sqlite_uri(str(tmp_path_factory.mktemp("a b%") / "new"))


@pytest.fixture(scope="module")
def client(store: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=store, registry_uri=store)


@pytest.fixture(scope="module")
def registered(store: str, client: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two versions of the model `hisem`, the first of them champion."""
    client.create_registered_model("hisem")
    for number in (1, 2):
        folder = tmp_path_factory.mktemp("bundle")
        for name, content in BUNDLE.items():
            (folder / name).write_text(f"{content}{number}")
        run = start_run(store, f"train {number}")
        run.folder(folder, "bundle")
        run.end()
        source = client.get_run(run.run_id).info.artifact_uri
        client.create_model_version("hisem", f"{source}/bundle", run.run_id)
    client.set_registered_model_alias("hisem", "champion", "1")
    return "hisem"


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
    beside = Path(store.removeprefix("sqlite:///")).parent / "mlartifacts" / run.run_id / "artifacts"
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


@pytest.mark.parametrize(
    ("reference", "version"), [("models:/hisem@champion", 1), ("models:/hisem/1", 1), ("models:/hisem/2", 2)]
)
def test_registry_names_become_folders_and_versions(
    store: str, registered: str, tmp_path: Path, reference: str, version: int
) -> None:
    folder = resolve_model(reference, store, tmp_path / "scratch")
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        name: f"{content}{version}" for name, content in BUNDLE.items()
    }
    assert folder.is_relative_to(tmp_path / "scratch")
    assert model_identity(reference, store, "d" * 64) == (registered, str(version))


def test_alias_moves_with_the_registry(store: str, client: Any, registered: str, tmp_path: Path) -> None:
    client.set_registered_model_alias(registered, "candidate", "1")
    assert model_identity("models:/hisem@candidate", store, "")[1] == "1"
    client.set_registered_model_alias(registered, "candidate", "2")
    assert model_identity("models:/hisem@candidate", store, "")[1] == "2"
    folder = resolve_model("models:/hisem@candidate", store, tmp_path)
    assert (folder / "config.json").read_text() == BUNDLE["config.json"] + "2"


def test_store_is_the_default_one_where_none_is_named(
    store: str, registered: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    assert (resolve_model("models:/hisem@champion", None, tmp_path) / "config.json").exists()
    assert model_identity("models:/hisem@champion", None, "") == ("hisem", "1")


@pytest.mark.parametrize("lookup", [lambda *args: resolve_model(*args), lambda r, u, to: model_identity(r, u, "")])
@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("models:/hisem@nobody", "cannot be found .*alias nobody not found"),
        ("models:/other@champion", "cannot be found .*other"),
        ("models:/hisem", "models:/NAME@ALIAS or models:/NAME/VERSION"),
        ("models:/hisem/latest", "models:/NAME@ALIAS or models:/NAME/VERSION"),
        ("models:/", "models:/NAME@ALIAS or models:/NAME/VERSION"),
    ],
)
def test_what_the_registry_lacks(
    store: str, registered: str, tmp_path: Path, reference: str, told: str, lookup: Callable[..., object]
) -> None:
    with pytest.raises(TrackingError, match=f"^{reference}.*{told}"):
        lookup(reference, store, tmp_path)


def test_a_version_that_is_not_there(store: str, registered: str, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match=r"models:/hisem/9 in sqlite.*cannot be found .*9"):
        resolve_model("models:/hisem/9", store, tmp_path)


def test_folders_are_used_where_they_lie(tmp_path: Path) -> None:
    bundle = tmp_path / "runs" / "bundle"
    bundle.mkdir(parents=True)
    for reference in (str(bundle), f"file://{bundle}", f"{bundle}/"):
        assert resolve_model(reference, None, tmp_path / "scratch") == bundle
        assert model_identity(reference, None, "0123456789abcdef") == ("runs", "0123456789ab")
    assert not (tmp_path / "scratch").exists()
    with pytest.raises(TrackingError, match=f"{tmp_path}/none: no such model bundle.*models:/NAME@ALIAS"):
        resolve_model(f"{tmp_path}/none", None, tmp_path)


@pytest.mark.parametrize(
    "uri", ["nonsense", "foo://host", "sqlite:////proc/none/x.db", "postgresql://nobody@localhost:1/x"]
)
def test_nonsense_is_no_store(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrackingError, match=f"{uri}: cannot be used by MLflow"):
        start_run(uri, "x")
    with pytest.raises(TrackingError, match="cannot be used by MLflow"):
        resolve_model("models:/hisem@champion", uri, tmp_path / "scratch")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text(json.dumps(["no database"] * 100))
    with pytest.raises(TrackingError, match="not a database"):
        start_run(f"sqlite:///{tmp_path}/x.db", "x")


def test_a_store_that_breaks_during_a_run(tmp_path: Path, store: str) -> None:
    run = start_run(store, "broken")
    run.run_id = "f" * 32
    (tmp_path / "a").write_text("x")
    for use in (
        lambda: run.params({"a": 1}),
        lambda: run.metrics({"a": 1}, 0),
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


def test_default_uri(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("HISEM_STORAGE", str(tmp_path / "root"))
    assert tracking.default_uri() == f"sqlite:///{tmp_path}/root/mlflow.db"
    assert (tmp_path / "root").is_dir()
    monkeypatch.setenv("HISEM_STORAGE", "s3://bucket/hisem")
    with pytest.raises(TrackingError, match=r"HISEM_STORAGE=s3://bucket/hisem is remote.*MLFLOW_TRACKING_URI"):
        tracking.default_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert tracking.default_uri() == "http://server:5000"


def test_the_database_is_one_that_sqlite_reads(store: str, registered: str) -> None:
    with sqlite3.connect(store.removeprefix("sqlite:///")) as database:
        names = database.execute("select name from registered_models").fetchall()
    assert names == [("hisem",)]
