"""Conditional writes to a local folder: durable, and without what killed processes left."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from hisem import storage
from hisem.conditional import LocalFiles, PlainFiles, files_of, write_durably
from hisem.errors import ConflictError, StorageError

HEX = "0123456789abcdef" * 2


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done to the disk, in order: files are named by what they are at that moment."""
    done: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def syncing(descriptor: int) -> None:
        fsync(descriptor)
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
        done.append(f"sync folder {name}" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync file")

    def renaming(self: Path, target: Path) -> Path:
        done.append(f"rename to {Path(target).name}")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(Path, "rename", renaming)
    return done


@pytest.mark.parametrize(
    "write",
    [
        lambda root, name: LocalFiles(str(root)).put(name, b"x", None),
        lambda root, name: write_durably(f"{root}/{name}", b"x"),
    ],
)
def test_a_written_file_is_on_the_disk_before_its_name_and_its_name_before_the_call_returns(
    tmp_path: Path, steps: list[str], write: Callable[[Path, str], object]
) -> None:
    (tmp_path / "_locks").mkdir()
    write(tmp_path, "new/folder/file")
    assert (tmp_path / "new" / "folder" / "file").read_bytes() == b"x"
    assert steps == [
        f"sync folder {tmp_path.name}",
        "sync folder new",
        "sync file",
        "rename to file",
        "sync folder folder",
    ]


def test_temporary_files_of_killed_runs_are_removed_from_the_named_folders_alone(tmp_path: Path) -> None:
    gone = [f".a.json.{HEX}.tmp", f"captions/x/y/.p.parquet.{HEX}.tmp", f"_nights/.n.{HEX}.tmp"]
    kept = [f"captions/p.{HEX}.tmp", "captions/.p.tmp", f"other/.p.parquet.{HEX}.tmp", "captions/p.parquet", ".env"]
    for name in gone + kept:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "captions" / f".folder.{HEX}.tmp").mkdir()
    LocalFiles(str(tmp_path)).clear((".", "captions", "_nights", "absent"))
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} - {"_locks/.guard"}
    assert left == set(kept)


def test_a_killed_write_of_the_storage_is_recognized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def dying(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dying)
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(Killed):
            LocalFiles(str(tmp_path)).put("a", b"", None)
    assert len(list(tmp_path.glob(".a.*.tmp"))) == 1
    LocalFiles(str(tmp_path)).clear((".",))
    assert list(tmp_path.glob(".a.*.tmp")) == []


def test_a_storage_without_conditions_checks_before_it_writes(tmp_path: Path) -> None:
    files = PlainFiles(str(tmp_path))
    first = files.put("a", b"1", None)
    with pytest.raises(ConflictError):
        files.put("a", b"2", None)
    second = files.put("a", b"2", first)
    with pytest.raises(ConflictError):
        files.remove("a", first, b"")
    files.remove("a", second, b"")
    assert files.read("a") is None
    assert not files.conditional


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for act in (
        lambda: files_of(str(tmp_path / "file")).put("a", b"", None),
        lambda: write_durably(f"{tmp_path}/file/a", b""),
    ):
        with pytest.raises(StorageError, match=str(tmp_path)):
            act()
    assert storage.read_bytes(tmp_path / "file") == b""
