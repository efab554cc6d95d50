"""MLflow: the only file that imports it. Runs, artifacts, and `models:/...` to a folder.

By default a SQLite store under the storage root, no service to start; `MLFLOW_TRACKING_URI` or a flag
names a tracking server instead.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hisem import storage
from hisem.errors import TrackingError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXPERIMENT = "hisem"
PARAMS_PER_BATCH = 100
"""MLflow's limit."""

REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")


def default_uri() -> str:
    """`$MLFLOW_TRACKING_URI`, else a SQLite file under the storage root (which must then be local)."""
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    root = storage.default_storage()
    if storage.is_remote(root):
        raise TrackingError(
            f"HISEM_STORAGE={root} is remote, where no SQLite file can live: name a tracking server with "
            "MLFLOW_TRACKING_URI or --tracking."
        )
    return sqlite_uri(root)


def sqlite_uri(folder: str) -> str:
    """The tracking URI of a SQLite store in a local folder, created if absent."""
    path = Path(storage.absolute(folder))
    path.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{path / 'mlflow.db'}"


@dataclass
class Run:
    """One MLflow run, written to by one process."""

    uri: str
    run_id: str

    def __post_init__(self) -> None:
        self._client = _client(self.uri)

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters. One that was logged before keeps its value, as MLflow has it; where a resumed run
        differs (in its workers, say), the tag `resumed.NAME` holds the new value.
        """
        from mlflow.entities import Param

        with _expected(self.uri):
            known = self._client.get_run(self.run_id).data.params
            fresh = [Param(name, str(value)) for name, value in values.items() if name not in known]
            for start in range(0, len(fresh), PARAMS_PER_BATCH):
                self._client.log_batch(self.run_id, params=fresh[start : start + PARAMS_PER_BATCH])
        self.tags({f"resumed.{name}": str(v) for name, v in values.items() if known.get(name, str(v)) != str(v)})

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics of one step."""
        from mlflow.entities import Metric
        from mlflow.utils.time import get_current_time_millis

        now = get_current_time_millis()
        logged = [Metric(name, float(value), now, step) for name, value in values.items()]
        with _expected(self.uri):
            self._client.log_batch(self.run_id, metrics=logged)

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags."""
        with _expected(self.uri):
            for name, value in values.items():
                self._client.set_tag(self.run_id, name, value)

    def folder(self, local: Path, name: str) -> None:
        """Log a local folder as the artifact folder `name`."""
        with _expected(self.uri):
            self._client.log_artifacts(self.run_id, str(local), name)

    def file(self, local: Path, name: str) -> None:
        """Log a local file into the artifact folder `name`."""
        with _expected(self.uri):
            self._client.log_artifact(self.run_id, str(local), name)

    def figure(self, figure: Figure, name: str) -> None:
        """Log a matplotlib figure as the artifact `name` (ends in .png)."""
        with _expected(self.uri):
            self._client.log_figure(self.run_id, figure, name)

    def end(self, status: str = "FINISHED") -> None:
        """Close the run: `FINISHED`, `FAILED` or `KILLED`."""
        with _expected(self.uri):
            self._client.set_terminated(self.run_id, status)


def start_run(uri: str, name: str, run_id: str | None = None) -> Run:
    """A new run called `name`, or the one with `run_id` where the store still has it."""
    from mlflow.exceptions import MlflowException

    client = _client(uri)
    if run_id is not None:
        try:
            client.update_run(run_id, status="RUNNING")  # refused for a run that was deleted
            return Run(uri, run_id)
        except MlflowException:
            logging.getLogger(__name__).warning("MLflow run %s is not in %s: a new run is opened.", run_id, uri)
    with _expected(uri):
        experiment = client.get_experiment_by_name(EXPERIMENT)
        experiment_id = experiment.experiment_id if experiment else _create_experiment(client, uri)
        created = client.create_run(experiment_id, run_name=name)
    return Run(uri, created.info.run_id)


def resolve_model(reference: str, uri: str | None, to: Path) -> Path:
    """A local bundle folder for a path, a URI, or `models:/name@alias` and `models:/name/version`."""
    if not reference.startswith("models:/"):
        if not storage.exists(reference):
            raise TrackingError(f"{reference}: no such model bundle. Give a folder, a URI or models:/NAME@ALIAS.")
        return storage.download(reference, to)
    store = uri or default_uri()
    name, version = _version(reference, store)
    client = _client(store)
    import mlflow

    with _expected(f"{reference} in {store}", "found"):
        # MLflow would look for models:/ in the registry of the whole process, not in this one.
        source = client.get_model_version_download_uri(name, version)
        return Path(mlflow.artifacts.download_artifacts(source, dst_path=str(to), tracking_uri=store))


def pin_model(reference: str, uri: str | None) -> str:
    """`reference` with a registry's alias resolved to its version, which does not move; others as they are."""
    if not reference.startswith("models:/"):
        return reference
    name, version = _version(reference, uri or default_uri())
    return f"models:/{name}/{version}"


def model_identity(reference: str, uri: str | None, digest: str) -> tuple[str, str]:
    """Name and version to stamp on captions: the registry's own, an alias resolved to its version; for a
    folder or URI its last name (of a run's `bundle`, the run's) and the beginning of the bundle's digest.
    """
    if not reference.startswith("models:/"):
        parts = storage.absolute(reference).split("/")
        return parts[-2] if parts[-1] == "bundle" else parts[-1], digest[:12]
    return _version(reference, uri or default_uri())


def _version(reference: str, store: str) -> tuple[str, str]:
    """Name and version of the registered model that `models:/...` stands for."""
    match = REGISTERED.fullmatch(reference)
    if match is None:
        raise TrackingError(f"{reference}: name a registered model as models:/NAME@ALIAS or models:/NAME/VERSION.")
    if match["version"]:
        return match["name"], match["version"]
    client = _client(store)
    with _expected(f"{reference} in {store}", "found"):
        return match["name"], str(client.get_model_version_by_alias(match["name"], match["alias"]).version)


def _create_experiment(client: Any, uri: str) -> str:
    """Artifacts of a SQLite store lie beside its file; a server decides for itself."""
    if not uri.startswith("sqlite:///"):
        return str(client.create_experiment(EXPERIMENT))
    folder = Path(uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts"
    return str(client.create_experiment(EXPERIMENT, artifact_location=folder.as_uri()))


def _client(uri: str) -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)  # the first use creates tables and tells of each
    from mlflow import MlflowClient

    with _expected(uri):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def _expected(what: str, deed: str = "used") -> Iterator[None]:
    """What MLflow, its database and its artifact store raise as the `TrackingError` that people meet."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:  # ImportError: a database's driver
        reason = str(error).strip().split("\n", 1)[0]
        raise TrackingError(f"{what}: cannot be {deed} by MLflow ({type(error).__name__}: {reason}).") from error
