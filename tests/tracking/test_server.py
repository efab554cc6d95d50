"""A tracking server as the README has it: who is let in, and what is told of a login."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest

from hisem.errors import TrackingError
from hisem.tracking import start_run
from tests.tracking.conftest import PASSWORD, Server, client_of

pytestmark = pytest.mark.slow


def status(uri: str, **headers: str) -> int:
    """What a plain request of a list of experiments is answered with."""
    request = urllib.request.Request(f"{uri}/api/2.0/mlflow/experiments/search?max_results=1", headers=headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_strangers_and_foreign_names_are_turned_away(server: Server) -> None:
    assert status(server.uri) == 401
    assert status(server.uri, Host="rebound.example") == 403


def test_a_login_comes_from_the_environment_and_is_not_told(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    run = start_run(server.uri, "logged in")
    run.params({"a": 1})
    run.end()
    kept = client_of(server.uri).get_run(run.run_id)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong-" + PASSWORD)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError, match=r"cannot be used by MLflow .*401") as refused:
        start_run(server.uri, "not logged in")
    for text in (str(kept.to_dictionary()), repr(run), str(refused.value), caplog.text, *capfd.readouterr()):
        assert PASSWORD not in text
