"""Versions of a registered model, the alias `champion`, and bundles by registry name."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hisem.errors import TrackingError
from hisem.tracking import (
    Run,
    champion,
    model_identity,
    register,
    resolve_model,
    set_champion,
    start_run,
    tag_version,
)
from tests.tracking.conftest import client_of, database_of

BUNDLE = {"config.json": '{"format": 1}', "model.safetensors": "weights"}


def run_with_bundle(uri: str, number: int, folder: Path) -> Run:
    """A run whose bundle differs by `number`."""
    folder.mkdir()
    for name, content in BUNDLE.items():
        (folder / name).write_text(f"{content}{number}")
    run = start_run(uri, f"train {number}")
    run.folder(folder, "bundle")
    run.end()
    return run


@pytest.fixture(scope="module")
def registered(store: str, client: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two versions of the model `hisem`, the first of them champion."""
    for number in (1, 2):
        run = run_with_bundle(store, number, tmp_path_factory.mktemp("bundles") / "bundle")
        assert register(run, f"digest{number}", {}) == str(number)
    client.set_registered_model_alias("hisem", "champion", "1")
    return "hisem"


@pytest.fixture(params=["sqlite", pytest.param("server", marks=pytest.mark.slow)])
def any_store(request: pytest.FixtureRequest) -> str:
    """The URI of a SQLite store, then of a tracking server."""
    if request.param == "sqlite":
        uri: str = request.getfixturevalue("store")
        return uri
    return request.getfixturevalue("server").uri


def test_a_run_and_its_bundle_are_registered_once(any_store: str, tmp_path: Path) -> None:
    first = run_with_bundle(any_store, 1, tmp_path / "one")
    second = run_with_bundle(any_store, 2, tmp_path / "two")
    assert register(first, "d1", {"metric": "bleu_4"}, "life") == "1"
    assert register(second, "d2", {}, "life") == "2"
    assert register(first, "d1", {"metric": "bleu_4"}, "life") == "1"  # as after a driver was killed
    assert register(first, "d1", {}, "other life") == "1"
    assert register(first, "trained on", {}, "life") == "3"

    there = client_of(any_store).get_model_version("life", "1")
    assert (there.run_id, there.tags) == (first.run_id, {"digest": "d1", "metric": "bleu_4"})
    for version in (1, 2):
        folder = resolve_model(f"models:/life/{version}", any_store, tmp_path / f"scratch{version}")
        assert {path.name: path.read_text() for path in folder.iterdir()} == {
            name: f"{content}{version}" for name, content in BUNDLE.items()
        }


def test_the_alias_and_the_tags_of_its_version(any_store: str, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match=r"models:/alias in .*cannot be found"):
        champion(any_store, "alias")
    run = run_with_bundle(any_store, 1, tmp_path / "one")
    register(run, "d1", {"metric": "bleu_4"}, "alias")
    register(run, "d2", {}, "alias")
    assert champion(any_store, "alias") is None
    set_champion(any_store, "1", "alias")
    tag_version(any_store, "1", {"score.bleu_4.abc": "0.5", "metric": "rouge_l"}, "alias")
    found = champion(any_store, "alias")
    assert found is not None
    assert (found.reference, found.tags["metric"], found.tags["score.bleu_4.abc"]) == (
        "models:/alias/1",
        "rouge_l",
        "0.5",
    )
    set_champion(any_store, "2", "alias")
    assert (found := champion(any_store, "alias")) is not None
    assert (found.version, found.tags) == ("2", {"digest": "d2"})
    client_of(any_store).delete_model_version("alias", "2")
    assert champion(any_store, "alias") is None
    with pytest.raises(TrackingError, match=r"models:/alias/7 in .*cannot be found"):
        set_champion(any_store, "7", "alias")


def test_a_run_without_bundle_is_not_registered(store: str, client: Any) -> None:
    run = start_run(store, "without")
    with pytest.raises(TrackingError, match=f"run {run.run_id} has no artifact bundle"):
        register(run, "d", {}, "without")
    assert client.search_registered_models("name = 'without'") == []


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


def test_the_database_is_one_that_sqlite_reads(store: str, registered: str) -> None:
    with sqlite3.connect(database_of(store)) as database:
        names = database.execute("select name from registered_models").fetchall()
    assert ("hisem",) in names
