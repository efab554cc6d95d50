"""What `ray job submit --working-dir .` sends to a cluster, as Ray itself packs it."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package

ROOT = Path(__file__).parents[2]
WANTED = {"hisem/storage.py", "pipelines/train.py", "tune/space.py", "pyproject.toml"}
UNWANTED = {
    ".env",
    ".env.production",
    ".git/config",
    ".venv/bin/python",
    "aws-credentials.json",
    "demo/archive/scene.tif",
    "hisem/__pycache__/storage.pyc",
    "mlflow.db",
    "server.key",
    "tests/test_cli.py",
}


def test_a_job_is_sent_the_code_and_neither_data_nor_secrets(tmp_path: Path) -> None:
    folder = tmp_path / "checkout"
    for name in WANTED | UNWANTED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    for name in (".gitignore", ".rayignore"):
        shutil.copy(ROOT / name, folder)
    package = tmp_path / "package.zip"
    create_package(str(folder), package, include_gitignore=True, excludes=get_runtime_env_default_excludes())
    names = {name for name in zipfile.ZipFile(package).namelist() if not name.endswith("/")}
    assert names == WANTED | {".gitignore", ".rayignore"}
