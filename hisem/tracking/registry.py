"""The model registry: versions, the alias `champion`, and `models:/...` to a local folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hisem import storage
from hisem.errors import TrackingError
from hisem.tracking.run import Run
from hisem.tracking.store import client, default_uri, expected

MODEL = "hisem"
"""The registered model that training adds versions to."""

DEMO = "hisem-demo"
"""The registered model of what is trained on synthetic data, so that the alias of `MODEL` stays with real data."""

CHAMPION = "champion"
"""The alias of the version that captions by default."""

BUNDLE = "bundle"
"""The run's artifact folder that becomes a version."""

DIGEST = "digest"
"""The version's tag that holds its bundle's digest."""

REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")


@dataclass(frozen=True)
class ModelVersion:
    """A version of a registered model."""

    name: str
    version: str
    tags: dict[str, str]

    @property
    def reference(self) -> str:
        """As `resolve_model` takes it."""
        return f"models:/{self.name}/{self.version}"


def register(run: Run, digest: str, tags: Mapping[str, str], name: str = MODEL) -> str:
    """Make the run's artifact `bundle` a version of the registered model `name`; the version's number.

    `digest` is the bundle's and is tagged, with `tags`. A second call for the same run and digest gives the
    version that is there. Raises `TrackingError` where the run has no bundle.
    """
    from mlflow.exceptions import MlflowException

    store = client(run.uri)
    with expected(run.uri):
        for there in store.search_model_versions(f"run_id='{run.run_id}'"):
            if there.name == name and there.tags.get(DIGEST) == digest:
                return str(there.version)
        if not store.list_artifacts(run.run_id, BUNDLE):
            raise TrackingError(f"{run.uri}: run {run.run_id} has no artifact {BUNDLE} to register; log it first.")
        try:
            store.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"{store.get_run(run.run_id).info.artifact_uri}/{BUNDLE}"
        created = store.create_model_version(name, source, run.run_id, tags={**tags, DIGEST: digest})
    return str(created.version)


def champion(uri: str, name: str = MODEL) -> ModelVersion | None:
    """The version that has the alias `champion`, None where no version of the model has it.

    Raises `TrackingError` where there is no registered model `name`.
    """
    store = client(uri)
    with expected(uri, f"models:/{name}"):
        version = store.get_registered_model(name).aliases.get(CHAMPION)
        if version is None:
            return None
        return ModelVersion(name, str(version), dict(store.get_model_version(name, str(version)).tags))


def set_champion(uri: str, version: str, name: str = MODEL) -> None:
    """Give the alias `champion` to a version, and take it from any other."""
    with expected(uri, f"models:/{name}/{version}"):
        client(uri).set_registered_model_alias(name, CHAMPION, version)


def tag_version(uri: str, version: str, tags: Mapping[str, str], name: str = MODEL) -> None:
    """Set tags of a version."""
    store = client(uri)
    with expected(uri, f"models:/{name}/{version}"):
        for tag, value in tags.items():
            store.set_model_version_tag(name, version, tag, value)


def resolve_model(reference: str, uri: str | None, to: Path) -> Path:
    """A local bundle folder for a path, a URI, or `models:/name@alias` and `models:/name/version`."""
    if not reference.startswith("models:/"):
        if not storage.exists(reference):
            raise TrackingError(f"{reference}: no such model bundle. Give a folder, a URI or models:/NAME@ALIAS.")
        return storage.download(reference, to)
    uri = uri or default_uri()
    name, version = _version(reference, uri)
    store = client(uri)
    import mlflow

    with expected(uri, reference):
        # MLflow would look for models:/ in the registry of the whole process, not in this one.
        source = store.get_model_version_download_uri(name, version)
        return Path(mlflow.artifacts.download_artifacts(source, dst_path=str(to), tracking_uri=uri))


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


def _version(reference: str, uri: str) -> tuple[str, str]:
    """Name and version of the registered model that `models:/...` stands for."""
    match = REGISTERED.fullmatch(reference)
    if match is None:
        raise TrackingError(f"{reference}: name a registered model as models:/NAME@ALIAS or models:/NAME/VERSION.")
    if match["version"]:
        return match["name"], match["version"]
    store = client(uri)
    with expected(uri, reference):
        return match["name"], str(store.get_model_version_by_alias(match["name"], match["alias"]).version)
