"""MLflow's SQLite file: where it is made, that it is whole, and what is reported of one that is not."""

from __future__ import annotations

import os
import random
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest

from hisem import tracking
from hisem.errors import ConfigError, TrackingError
from hisem.tracking import sqlite_store, start_run
from tests.tracking.conftest import client_of

FIRST_COMMAND = """
import sys
from hisem import tracking
run = tracking.start_run(tracking.sqlite_uri(sys.argv[1]), sys.argv[2])
run.metrics({"loss": 1.0}, 0)
run.end()
"""
"""What the first command does with a new store."""


def start(folder: Path, name: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(
        [sys.executable, "-c", FIRST_COMMAND, str(folder), name],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def names_of_runs(folder: Path) -> list[str]:
    client = client_of(tracking.sqlite_uri(str(folder)))
    return sorted(
        run.info.run_name for run in client.search_runs([client.get_experiment_by_name("hisem").experiment_id])
    )


@pytest.mark.parametrize(
    "name",
    ["?", "a?b=c#d", "a%20b", "100%", "ü é 衛星 #;&=@:'\"\\[a]*"],
    ids=["mark", "query", "code", "percent", "rest"],
)
def test_database_and_artifacts_are_in_the_folder_that_is_named(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    uri = tracking.sqlite_uri(str(folder))
    run = start_run(uri, "first")
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "config.json").write_text("{}")
    run.folder(tmp_path / "scratch", "bundle")
    version = tracking.register(run, "d" * 64, {})
    run.end()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["scratch", name])
    assert {path.name for path in folder.iterdir()} == {"mlflow.db", "mlartifacts", ".mlflow.db.lock"}
    assert (folder / "mlartifacts" / run.run_id / "artifacts" / "bundle" / "config.json").read_text() == "{}"
    to = tmp_path / "scratch" / "to"
    assert (tracking.resolve_model(f"models:/hisem/{version}", uri, to) / "config.json").read_text() == "{}"
    with sqlite3.connect(folder / "mlflow.db") as database:
        assert database.execute("SELECT name FROM runs").fetchall() == [("first",)]


def test_a_path_that_no_uri_can_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no MLflow database can be made there"):
        tracking.sqlite_uri(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a store with one run."""
    folder = tmp_path_factory.mktemp("whole")
    start_run(tracking.sqlite_uri(str(folder)), "kept").end()
    return folder / "mlflow.db"


def sql(*statements: str) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        with sqlite3.connect(path) as database:
            for statement in statements:
                database.execute(statement)

    return apply


def cut(share: float) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, int(path.stat().st_size * share))


def overwrite(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


FIRST_REVISION = "451aebb31d03"
DAMAGE: dict[str, Callable[[Path], None]] = {
    "empty": lambda path: os.truncate(path, 0),
    "cut after its header": lambda path: os.truncate(path, 100),
    "cut to half": cut(0.5),
    "text": lambda path: overwrite(path, b"no database " * 100),
    "zeros": lambda path: overwrite(path, bytes(path.stat().st_size)),
    "without versions": sql("DROP TABLE alembic_version"),
    "without a version": sql("DELETE FROM alembic_version"),
    "in the midst of migrations": sql(f"UPDATE alembic_version SET version_num = '{FIRST_REVISION}'"),
    "of a newer MLflow": sql("UPDATE alembic_version SET version_num = 'ffffffffffff'"),
    "without a table": sql("DROP TABLE model_versions"),
    "a folder": replace_by_folder,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_store_that_cannot_be_used_is_named_and_kept(kind: str, whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    shutil.copy(whole, path)
    DAMAGE[kind](path)
    os.utime(path, (0, 0))
    before = path.read_bytes() if path.is_file() else None
    began = time.monotonic()
    with pytest.raises(TrackingError) as refused:
        start_run(tracking.sqlite_uri(str(tmp_path)), "x")
    message = str(refused.value)
    assert message.startswith(f"{path}: ")
    assert "aside" in message or "another --tracking" in message
    if kind in ("without versions", "without a version", "without a table"):
        assert "holds 1 run(s)" in message
    assert time.monotonic() - began < 10  # MLflow alone tries for minutes
    assert (path.read_bytes() if path.is_file() else None) == before


def test_the_command_for_an_older_store_upgrades_it(whole: Path, tmp_path: Path) -> None:
    from mlflow.store.db.utils import _get_latest_schema_revision

    path = tmp_path / "a b?" / "mlflow.db"
    path.parent.mkdir()
    shutil.copy(whole, path)
    sql(f"UPDATE alembic_version SET version_num = '{FIRST_REVISION}'")(path)
    os.utime(path, (0, 0))
    with pytest.raises(TrackingError, match="older MLflow") as refused:
        start_run(tracking.sqlite_uri(str(path.parent)), "x")
    (command,) = [part for part in str(refused.value).split(": ") if part.startswith("mlflow db upgrade")]
    words = shlex.split(command.removesuffix(". Where that fails"))
    assert words[:3] == ["mlflow", "db", "upgrade"]
    assert sqlite_store.path_of(words[3]) == path
    sql(f"UPDATE alembic_version SET version_num = '{_get_latest_schema_revision()}'")(path)
    start_run(words[3], "x")


def test_tables_that_another_program_is_making_are_waited_for(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mlflow.db"
    path.touch()
    monkeypatch.setattr(time, "sleep", lambda seconds: shutil.copy(whole, path))
    start_run(tracking.sqlite_uri(str(tmp_path)), "second").end()
    assert names_of_runs(tmp_path) == ["kept", "second"]


def test_what_killed_processes_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".mlflow.db.0123.tmp").write_bytes(b"half")
    (tmp_path / ".mlflow.db.0123.tmp-journal").write_bytes(b"half")
    start_run(tracking.sqlite_uri(str(tmp_path)), "x").end()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mlflow.db.lock", "mlflow.db"]


def test_a_store_that_is_replaced_is_checked_again(tmp_path: Path, whole: Path) -> None:
    uri = tracking.sqlite_uri(str(tmp_path))
    start_run(uri, "x").end()
    (tmp_path / "mlflow.db").rename(tmp_path / "aside.db")
    (tmp_path / "other").write_text("no database " * 100)
    (tmp_path / "other").rename(tmp_path / "mlflow.db")
    with pytest.raises(TrackingError, match="not a usable SQLite database"):
        start_run(uri, "x")


def test_a_deleted_experiment_is_named_and_can_be_restored(tmp_path: Path) -> None:
    uri = tracking.sqlite_uri(str(tmp_path))
    first = start_run(uri, "first")
    client = client_of(uri)
    experiment = client.get_experiment_by_name("hisem").experiment_id
    client.delete_experiment(experiment)
    for resumed in (None, first.run_id):
        with pytest.raises(TrackingError, match=f"hisem was deleted.*restore --experiment-id {experiment}"):
            start_run(uri, "second", resumed)
    client.restore_experiment(experiment)
    assert start_run(uri, "second", first.run_id).run_id == first.run_id


def test_a_healthy_run_prints_nothing_of_mlflow(tmp_path: Path) -> None:
    process = start(tmp_path, "x")
    output, _ = process.communicate(timeout=120)
    assert (process.returncode, output) == (0, b"")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_first_commands_at_once_all_succeed(tmp_path: Path) -> None:
    for count in (2, 4):
        folder = tmp_path / str(count)
        started = [start(folder, f"run {number}") for number in range(count)]
        for process in started:
            output, _ = process.communicate(timeout=200)
            assert process.returncode == 0, output.decode()
        assert names_of_runs(folder) == [f"run {number}" for number in range(count)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_kill_at_any_moment_leaves_a_store_that_works(tmp_path: Path) -> None:
    began = time.monotonic()
    process = start(tmp_path / "timed", "x")
    process.communicate(timeout=200)
    whole = time.monotonic() - began
    draw = random.Random(2)
    cut_off = 0
    for number in range(9):
        folder = tmp_path / str(number)
        process = start(folder, "killed")
        time.sleep(draw.uniform(0.4, 1.0) * whole)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        cut_off += not (folder / "mlflow.db").exists()
        process = start(folder, "next")
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output.decode()
        assert "next" in names_of_runs(folder)
    assert cut_off  # else no kill came while the file was made


def test_the_versions_that_the_checks_know_are_those_of_mlflow(whole: Path) -> None:
    """The checks read MLflow's internals: a new MLflow that moves them fails here."""
    assert sqlite_store._schema(FIRST_REVISION)[1]
    assert {"runs", "experiments", "model_versions"} <= sqlite_store._tables()
    assert mlflow.__version__
