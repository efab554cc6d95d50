"""Where MLflow keeps things, and what is told of a store that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hisem import tracking
from hisem.errors import TrackingError
from hisem.tracking import resolve_model, start_run


@pytest.mark.parametrize("uri", ["nonsense", "foo://host", "sqlite:////proc/none/x.db", "postgresql://localhost:1/x"])
def test_nonsense_is_no_store(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrackingError, match=f"{uri}: cannot be used by MLflow"):
        start_run(uri, "x")
    with pytest.raises(TrackingError, match="cannot be used by MLflow"):
        resolve_model("models:/hisem@champion", uri, tmp_path / "scratch")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text(json.dumps(["no database"] * 100))
    with pytest.raises(TrackingError, match="not a usable SQLite database"):
        start_run(f"sqlite:///{tmp_path}/x.db", "x")


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


@pytest.mark.parametrize(
    "uri",
    [
        "http://ann:pa55word@127.0.0.1:1",
        "postgresql://ann:pa55word@127.0.0.1:1/x?sslkey=pa55word",
        "https://127.0.0.1:1/?token=pa55word",
    ],
)
def test_a_password_in_the_uri_is_refused_and_not_told(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for use in (
        lambda: start_run(uri, "x"),
        lambda: resolve_model("models:/hisem@champion", uri, tmp_path),
        lambda: resolve_model("models:/hisem/1", None, tmp_path),
        lambda: tracking.champion(uri),
        tracking.default_uri,
    ):
        with pytest.raises(TrackingError, match=r"127\.0\.0\.1:1.*MLFLOW_TRACKING_PASSWORD") as caught:
            use()
        assert "pa55word" not in str(caught.value)
        assert "ann" not in str(caught.value)


def test_a_password_in_the_storage_root_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("HISEM_STORAGE", "s3://ann:pa55word@bucket/hisem")
    with pytest.raises(TrackingError, match=r"HISEM_STORAGE=s3://bucket/hisem is remote"):
        tracking.default_uri()
