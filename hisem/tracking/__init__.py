"""MLflow: the only room that imports it. Runs, artifacts, the registry, and `models:/...` to a folder.

By default a SQLite store under the storage root, no service to start; `MLFLOW_TRACKING_URI` or a flag
names a tracking server instead.
"""

from hisem.tracking.registry import (
    DEMO,
    MODEL,
    ModelVersion,
    champion,
    model_identity,
    pin_model,
    register,
    resolve_model,
    set_champion,
    tag_version,
)
from hisem.tracking.run import EXPERIMENT, Run, end_if_open, fail_child, start_run
from hisem.tracking.store import default_uri, require_no_login, sqlite_uri

__all__ = [
    "DEMO",
    "EXPERIMENT",
    "MODEL",
    "ModelVersion",
    "Run",
    "champion",
    "default_uri",
    "end_if_open",
    "fail_child",
    "model_identity",
    "pin_model",
    "register",
    "require_no_login",
    "resolve_model",
    "set_champion",
    "sqlite_uri",
    "start_run",
    "tag_version",
]
