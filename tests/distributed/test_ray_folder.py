"""The folder of a local Ray: what it cannot start in is named with the reason, and is no busy machine."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hisem.distributed import ray_folder
from hisem.errors import ResourceError

START = """
from hisem.distributed import session
try:
    with session.cluster():
        print("started")
except session.ResourceError as error:
    print(error)
"""


def start(folder: Path) -> str:
    """What a command that starts a local Ray in `folder` prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", START],
        env=environment | {"RAY_TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in done.stderr
    return done.stdout.strip()


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of a short path, which RAY_TMPDIR names."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        monkeypatch.setenv("RAY_TMPDIR", name)
        yield Path(name)


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Path]:
    """A disk of 1 MiB in its place."""
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("no disk can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_small_disk_is_named(small_disk: Path) -> None:
    text = start(small_disk)
    assert f"{small_disk}/ray" in text
    assert "full" in text
    with pytest.raises(OSError, match="No space"), (small_disk / "filler").open("wb") as filler:
        filler.write(b"0" * 2**21)
    with pytest.raises(ResourceError, match="full"):
        ray_folder.require_usable()


@pytest.mark.parametrize(
    ("code", "word"), [(errno.ENOSPC, "full"), (errno.EDQUOT, "full"), (errno.EROFS, "write"), (errno.EACCES, "write")]
)
def test_a_folder_that_takes_no_file_is_named(
    code: int, word: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(**_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refused)
    with pytest.raises(ResourceError, match=word) as caught:
        ray_folder.require_usable()
    assert str(folder) in str(caught.value)
    assert "RAY_TMPDIR" in str(caught.value)


def test_a_disk_with_too_little_room_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(shutil.disk_usage("/"))
    for free, usable in ((ray_folder.NEEDED - 1, False), (ray_folder.NEEDED, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage(2**40, 2**40 - free, free))
        if usable:
            ray_folder.require_usable()
        else:
            with pytest.raises(ResourceError, match="full"):
                ray_folder.require_usable()


def test_a_file_in_the_place_of_the_folder_is_named(folder: Path) -> None:
    (folder / "ray").touch()
    with pytest.raises(ResourceError, match="RAY_TMPDIR") as caught:
        ray_folder.require_usable()
    assert str(folder) in str(caught.value)


def test_a_path_that_is_too_long_for_sockets_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = ray_folder.LONGEST - len(f"{folder}/{{}}/ray/{ray_folder.SOCKET.format(os.getpid())}") + len("{}")
    monkeypatch.setenv("RAY_TMPDIR", str(folder / ("x" * room)))
    ray_folder.require_usable()
    monkeypatch.setenv("RAY_TMPDIR", str(folder / ("x" * (room + 1))))
    with pytest.raises(ResourceError, match="1 more than"):
        ray_folder.require_usable()
