"""One MLflow run: parameters, metrics, tags and artifacts."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hisem.errors import TrackingError
from hisem.tracking import sqlite_store
from hisem.tracking.outbox import Outbox
from hisem.tracking.store import client, expected

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

EXPERIMENT = "hisem"
PARAMS_PER_BATCH = 100
"""MLflow's limit."""

GONE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""What MLflow says of a run that it does not have, and of one that was deleted."""


@dataclass
class Run:
    """One MLflow run, written to by one process, by one of its threads at a time."""

    uri: str
    run_id: str

    def __post_init__(self) -> None:
        self._client = client(self.uri)
        self._outbox = Outbox(self._send)

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters. One that was logged before keeps its value, as MLflow has it; where a resumed run
        differs (in its workers, say), the tag `resumed.NAME` holds the new value.
        """
        from mlflow.entities import Param

        with expected(self.uri):
            known = self._client.get_run(self.run_id).data.params
            fresh = [Param(name, str(value)) for name, value in values.items() if name not in known]
            for start in range(0, len(fresh), PARAMS_PER_BATCH):
                self._client.log_batch(self.run_id, params=fresh[start : start + PARAMS_PER_BATCH])
        self.tags({f"resumed.{name}": str(v) for name, v in values.items() if known.get(name, str(v)) != str(v)})

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics of one step of their axis: an epoch.

        A store that fails raises nothing: metrics are kept and sent with later ones, at the latest by `end`.
        """
        self._log({step: values})

    def step_metrics(self, points: Mapping[int, Mapping[str, float]]) -> None:
        """Log metrics of several optimizer steps, `{step: {name: value}}`, in one request; else as `metrics`.

        Their names become `step/NAME`: a metric has one axis, and steps must not stand among epochs.
        """
        self._log({step: {f"step/{name}": v for name, v in values.items()} for step, values in points.items()})

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags."""
        from mlflow.entities import RunTag

        with expected(self.uri):
            self._client.log_batch(self.run_id, tags=[RunTag(name, value) for name, value in values.items()])

    def tag(self, name: str) -> str | None:
        """The value of a tag, None where it is not set."""
        with expected(self.uri):
            value: str | None = self._client.get_run(self.run_id).data.tags.get(name)
        return value

    def provenance(self, versions: Mapping[str, str], git: Mapping[str, str]) -> None:
        """Tag the run with what `hisem.provenance` found: `version.NAME`, and git's state under MLflow's names."""
        from mlflow.utils import mlflow_tags

        names = {
            "commit": mlflow_tags.MLFLOW_GIT_COMMIT,
            "branch": mlflow_tags.MLFLOW_GIT_BRANCH,
            "dirty": mlflow_tags.MLFLOW_GIT_DIRTY,
        }
        found = {names.get(name, f"git.{name}"): value for name, value in git.items()}
        self.tags({f"version.{name}": value for name, value in versions.items()} | found)

    def folder(self, local: Path, name: str) -> None:
        """Log a local folder as the artifact folder `name`."""
        with expected(self.uri):
            self._client.log_artifacts(self.run_id, str(local), name)

    def file(self, local: Path, name: str) -> None:
        """Log a local file into the artifact folder `name`."""
        with expected(self.uri):
            self._client.log_artifact(self.run_id, str(local), name)

    def figure(self, figure: Figure, name: str) -> None:
        """Log a matplotlib figure as the artifact `name` (ends in .png)."""
        with expected(self.uri):
            self._client.log_figure(self.run_id, figure, name)

    def end(self, status: str = "FINISHED") -> None:
        """Close the run: `FINISHED`, `FAILED` or `KILLED`. Says how many metrics the store did not take."""
        self._outbox.close()
        with expected(self.uri):
            self._client.set_terminated(self.run_id, status)

    def _log(self, points: Mapping[int, Mapping[str, float]]) -> None:
        from mlflow.entities import Metric
        from mlflow.utils.time import get_current_time_millis

        now = get_current_time_millis()
        self._outbox.put([Metric(n, float(v), now, step) for step, values in points.items() for n, v in values.items()])

    def _send(self, metrics: list[Any]) -> None:
        with expected(self.uri):
            self._client.log_batch(self.run_id, metrics=metrics)


def start_run(uri: str, name: str, run_id: str | None = None, parent: str | None = None) -> Run:
    """A new run called `name`, a child of the run `parent`, or the one with `run_id` where the store still has it."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    store = client(uri)
    with expected(uri):
        if run_id is not None:
            try:
                store.update_run(run_id, status="RUNNING")
                return Run(uri, run_id)
            except MlflowException as error:
                if error.error_code not in GONE:
                    raise
                log.warning("MLflow run %s is not in %s: a new run is opened.", run_id, uri)
        experiment_id = _experiment_id(store, uri)
        tags = {MLFLOW_PARENT_RUN_ID: parent} if parent else None
        created = store.create_run(experiment_id, tags=tags, run_name=name)
    return Run(uri, created.info.run_id)


def end_if_open(uri: str, run_id: str, status: str) -> None:
    """End a run that whoever wrote to it has left open; one that was ended, or is gone, stays as it is."""
    from mlflow.exceptions import MlflowException

    store = client(uri)
    with expected(uri):
        try:
            if store.get_run(run_id).info.status == "RUNNING":
                store.set_terminated(run_id, status)
        except MlflowException as error:
            if error.error_code not in GONE:
                raise


def fail_child(uri: str, name: str, parent: str, error: str) -> None:
    """End the child `name` of the run `parent` as failed, tagged with the `error`; one that never began is made."""
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    store = client(uri)
    with expected(uri):
        experiment_id = store.get_run(parent).info.experiment_id
        found = store.search_runs(
            [experiment_id], f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent}' and attributes.run_name = '{name}'"
        )
        children = [run.info.run_id for run in found] or [start_run(uri, name, parent=parent).run_id]
        for run_id in children:
            store.set_tag(run_id, "error", error)
            store.set_terminated(run_id, "FAILED")


def _experiment_id(store: Any, uri: str) -> str:
    """Return the id of the experiment EXPERIMENT, which is created where it is absent.

    Raises `TrackingError` for one that was deleted, since MLflow neither logs to it nor creates another of its name.
    """
    from mlflow.exceptions import MlflowException

    experiment = store.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        try:
            return str(_create_experiment(store, uri))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        experiment = store.get_experiment_by_name(EXPERIMENT)  # another process has created it since
    if experiment.lifecycle_stage != "active":
        raise TrackingError(
            f"{uri}: the experiment {EXPERIMENT} was deleted there. Restore it with: MLFLOW_TRACKING_URI="
            f"{shlex.quote(uri)} mlflow experiments restore --experiment-id {experiment.experiment_id}; or name "
            "another --tracking."
        )
    return str(experiment.experiment_id)


def _create_experiment(store: Any, uri: str) -> str:
    """Create the experiment: artifacts of a SQLite store are beside its file, a server decides for itself."""
    database = sqlite_store.path_of(uri)
    if database is None:
        return str(store.create_experiment(EXPERIMENT))
    folder = database.absolute().parent / "mlartifacts"
    return str(store.create_experiment(EXPERIMENT, artifact_location=folder.as_uri()))
