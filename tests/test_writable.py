"""Outputs that cannot be written to are refused before any work is done; those that can are left as they were."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hisem.errors import StorageError
from hisem.writable import require_writable

ROOT = Path(__file__).resolve().parents[1]
AS_USER = [] if os.geteuid() else ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
"""Root writes everywhere."""


def content(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("name", ["", "new", "new/deeper/still", "with space/\u00fc"])
@pytest.mark.parametrize("folder", [True, False])
def test_what_can_be_written_is_left_as_it_was(tmp_path: Path, name: str, folder: bool) -> None:
    (tmp_path / "there.txt").write_text("x", encoding="utf-8")
    require_writable(str(tmp_path / name / ("" if folder else "pairs.csv")), folder=folder)
    require_writable(f"file://{tmp_path}/new", folder=folder)
    assert content(tmp_path) == ["there.txt"]


@pytest.mark.parametrize(
    ("name", "folder"), [("file", True), ("file/below", True), ("file/pairs.csv", False), ("folder", False)]
)
def test_a_file_in_place_of_a_folder_and_the_other_way(tmp_path: Path, name: str, folder: bool) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match=name):
        require_writable(str(tmp_path / name), folder=folder)
    assert content(tmp_path) == ["file", "folder"]


@pytest.mark.parametrize("path", ["/proc/hisem", "/proc/hisem/table", "/dev/null", "/dev/null/table", "/sys/x"])
def test_where_the_system_lets_nobody_write(path: str) -> None:
    with pytest.raises(StorageError):
        require_writable(path)


def test_a_folder_without_permission(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):  # pytest makes its own readable by their owner alone
        if folder.stat().st_mode & 0o005 != 0o005:
            folder.chmod(folder.stat().st_mode | 0o055)
    shut = tmp_path / "shut"
    shut.mkdir(mode=0o555)
    script = f"from hisem.writable import require_writable; require_writable({str(shut / 'table')!r})"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [*AS_USER, sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)
    assert b"StorageError" in done.stderr
    assert b"cannot be written to" in done.stderr


def test_a_bucket_has_to_be_there(bucket: str) -> None:
    require_writable(f"{bucket}/table")
    require_writable(f"{bucket}/pairs.parquet", folder=False)
    with pytest.raises(StorageError, match="no bucket"):
        require_writable("s3://no-such-bucket-of-hisem/table")


OUTPUTS = {
    "pair.py": ["--items", "{gone}", "--output", "{shut}/pairs.parquet"],
    "tile.py": ["--catalog", "{gone}.csv", "--output", "{shut}/shards"],
    "caption.py": ["--catalog", "{gone}.csv", "--model", "{gone}", "--output", "{shut}/table"],
    "evaluate.py": ["--data", "{gone}", "--model", "{gone}", "--output", "{shut}/page"],
    "train.py": ["--data", "{gone}", "--storage", "{shut}"],
    "synthesize.py": ["--output", "{shut}/archive"],
    "demo.py": ["--output", "{shut}/demo"],
    "import_checkpoint.py": ["{gone}", "--vocab", "{gone}", "--output", "{shut}/bundle"],
    "sweep.py": ["--data", "{gone}", "--storage", "{shut}"],
}


@pytest.mark.slow
@pytest.mark.parametrize("command", OUTPUTS)
def test_every_command_finds_it_before_its_input(tmp_path: Path, command: str) -> None:
    shut = tmp_path / "shut"
    shut.write_text("a file", encoding="utf-8")
    path = ROOT / ("tune" if command == "sweep.py" else "pipelines") / command
    arguments = [part.format(gone=tmp_path / "gone", shut=shut) for part in OUTPUTS[command]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HISEM_STORAGE": str(tmp_path / "storage")}
    done = subprocess.run(
        [sys.executable, str(path), *arguments], env=environment, capture_output=True, timeout=240, check=False
    )
    *_, last = done.stderr.decode().splitlines()
    assert (done.returncode, last.startswith(f"error: {shut}")) == (1, True), last
