"""Metrics of a run whose store fails for a while, by real failures of real stores."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hisem import tracking
from hisem.errors import TrackingError
from hisem.tracking import outbox, start_run
from tests.tracking.conftest import Server, client_of, database_of


@contextmanager
def without_metrics(uri: str) -> Iterator[None]:
    """The store refuses metrics: their table is away. A lock would do, after MLflow's 20 seconds."""
    path = database_of(uri)
    with sqlite3.connect(path) as database:
        database.execute("ALTER TABLE metrics RENAME TO away")
    yield
    with sqlite3.connect(path) as database:
        database.execute("ALTER TABLE away RENAME TO metrics")


def history(client: Any, run: tracking.Run, name: str = "loss") -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client.get_metric_history(run.run_id, name)]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_metrics_outlive_an_outage(
    store: str, client: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outbox, "PAUSE_SECONDS", 0)
    run = start_run(store, "outage")
    run.metrics({"loss": 4.0}, 0)
    with without_metrics(store):
        run.metrics({"loss": 3.0}, 1)
        run.step_metrics({7: {"loss": 2.5}, 8: {"loss": 2.25}})
    assert history(client, run) == [(0, 4.0)]
    run.metrics({"loss": 2.0}, 2)
    assert history(client, run) == [(0, 4.0), (1, 3.0), (2, 2.0)]
    assert history(client, run, "step/loss") == [(7, 2.5), (8, 2.25)]
    (told,) = warnings(caplog)  # once in an outage
    assert "no such table: metrics" in told
    with without_metrics(store):
        run.metrics({"loss": 1.0}, 3)
    run.end()
    assert len(warnings(caplog)) == 2
    assert history(client, run)[-1] == (3, 1.0)


def test_a_failing_store_is_left_alone_for_a_while(store: str, client: Any) -> None:
    run = start_run(store, "pause")
    with without_metrics(store):
        run.metrics({"loss": 1.0}, 0)
    run.metrics({"loss": 2.0}, 1)
    assert history(client, run) == []
    run.end()
    assert history(client, run) == [(0, 1.0), (1, 2.0)]


def test_what_was_never_taken_is_counted(store: str, client: Any, caplog: pytest.LogCaptureFixture) -> None:
    run = start_run(store, "lost")
    with without_metrics(store):
        run.metrics({"loss": 1.0, "other": 2.0}, 0)
        run.step_metrics({1: {"loss": 1.0}})
        run.end()
    assert "3 metric points could not be logged" in warnings(caplog)[-1]
    assert client.get_run(run.run_id).info.status == "FINISHED"


def test_a_point_that_is_sent_again_is_one_point(store: str, client: Any) -> None:
    run = start_run(store, "twice")
    sent: list[Any] = []

    def send(points: list[Any]) -> None:
        client.log_batch(run.run_id, metrics=points)
        sent.append(points)
        if len(sent) == 1:
            raise TrackingError("the answer is lost")

    run._outbox = outbox.Outbox(send)
    run.metrics({"loss": 1.0}, 0)
    run.end()
    assert sent[0] == sent[1]
    assert history(client, run) == [(0, 1.0)]


@pytest.mark.slow
def test_a_server_that_is_stopped_and_started_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run = start_run(server.uri, "server")
    run.metrics({"loss": 3.0}, 0)
    server.stop()
    try:
        run.metrics({"loss": 2.0}, 1)
        run.metrics({"loss": 1.5}, 2)
        with pytest.raises(TrackingError, match=f"{server.uri}: cannot be used"):
            start_run(server.uri, "another")
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(TrackingError, match=server.uri):
            run.folder(tmp_path, "bundle")
        with pytest.raises(TrackingError, match=server.uri):
            tracking.register(run, "digest", {})
    finally:
        server.start()
    run.metrics({"loss": 1.0}, 3)
    run.end()
    assert history(client_of(server.uri), run) == [(0, 3.0), (1, 2.0), (2, 1.5), (3, 1.0)]
    assert len([told for told in warnings(caplog) if "Metrics are kept" in told]) == 1
