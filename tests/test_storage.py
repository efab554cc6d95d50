"""Paths and URIs: local ones, `file://`, and a remote file system that lives in memory."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import fsspec  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from hisem import storage
from hisem.errors import StorageError

CONTENT = {"part-0.parquet": b"0", "deep/part-1.parquet": b"1", "note.txt": b"2"}
HIDDEN = {"_index/index.parquet": b"3", ".tmp.parquet": b"4", "deep/_x/part-2.parquet": b"5"}


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The root of a file system behind a URI, without network."""
    memory = fsspec.filesystem("memory")
    arrow = pafs.PyFileSystem(pafs.FSSpecHandler(memory))
    real = storage.filesystem

    def filesystem(uri: str | Path) -> tuple[pafs.FileSystem, str]:
        text = storage.absolute(uri)
        return (arrow, "/" + text.removeprefix("mem://")) if text.startswith("mem://") else real(uri)

    monkeypatch.setattr(storage, "filesystem", filesystem)
    yield "mem://bucket/archive"
    if memory.exists("/bucket"):
        memory.rm("/bucket", recursive=True)


@pytest.fixture(params=["path", "file", "remote"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder as a path, as a `file://` URI, and far away."""
    folder = tmp_path / "with space %20"
    if request.param == "remote":
        return str(request.getfixturevalue("remote"))
    return str(folder) if request.param == "path" else f"file://{folder}"


def test_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert storage.absolute("a/b") == f"{tmp_path}/a/b"
    assert storage.absolute(Path("a")) == f"{tmp_path}/a"
    assert storage.absolute("/a/b/") == "/a/b"
    assert storage.absolute("~/a") == "/home/me/a"
    assert storage.absolute("file:///a/b") == "/a/b"
    assert storage.absolute("s3://bucket/a/") == "s3://bucket/a"
    assert storage.absolute("s3://") == "s3://"
    assert [storage.is_remote(uri) for uri in ("a", "/a", "file:///a", "s3://b/a", "gs://b")] == [False] * 3 + [
        True
    ] * 2


def test_default_storage_is_never_the_working_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for unset in (
        lambda: monkeypatch.delenv("HISEM_STORAGE", raising=False),
        lambda: monkeypatch.setenv("HISEM_STORAGE", ""),
    ):
        unset()
        assert storage.default_storage() == "/home/me/hisem"
    monkeypatch.setenv("HISEM_STORAGE", "s3://bucket/hisem/")
    assert storage.default_storage() == "s3://bucket/hisem"
    monkeypatch.setenv("HISEM_STORAGE", "~/elsewhere")
    assert storage.default_storage() == "/home/me/elsewhere"


def test_join() -> None:
    assert storage.join("s3://b/", "/x/", "y.parquet") == "s3://b/x/y.parquet"
    assert storage.join("/a", "b") == "/a/b"
    assert storage.join("/", "b") == "/b"
    assert storage.join(Path("/a")) == "/a"


def test_files_are_written_listed_read_and_deleted(root: str) -> None:
    assert storage.list_files(root) == []
    assert not storage.exists(root)
    for name, content in (CONTENT | HIDDEN).items():
        storage.write_bytes(storage.join(root, name), content)
    base = storage.filesystem(root)[1].rstrip("/")
    assert storage.list_files(root) == sorted(f"{base}/{name}" for name in CONTENT)
    assert storage.list_files(root + "/", ".parquet") == [f"{base}/deep/part-1.parquet", f"{base}/part-0.parquet"]
    # A hidden folder hides nothing from those who ask for it.
    assert storage.list_files(storage.join(root, "_index")) == [f"{base}/_index/index.parquet"]
    assert {name: storage.read_bytes(storage.join(root, name)) for name in CONTENT | HIDDEN} == CONTENT | HIDDEN
    storage.write_bytes(storage.join(root, "note.txt"), b"new")
    assert storage.read_bytes(storage.join(root, "note.txt")) == b"new"
    storage.delete(storage.join(root, "note.txt"))
    storage.delete(storage.join(root, "deep"))
    assert storage.list_files(root) == [f"{base}/part-0.parquet"]
    storage.delete(storage.join(root, "note.txt"))
    assert storage.exists(root)
    assert not storage.exists(storage.join(root, "deep"))


def test_tables_survive_the_round_trip(root: str) -> None:
    table = pa.table({"a": pa.array([1, None], pa.int16()), "b": [["x"], []]})
    uri = storage.join(root, "acquired=2024-05-01", "t.parquet")
    storage.write_parquet(table, uri)
    assert storage.read_parquet(uri).equals(table)  # without a column for the folder's name
    assert storage.read_parquet(uri, ["b"]).column_names == ["b"]


def test_folders_go_up_and_come_down(root: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name, content in CONTENT.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    storage.upload(source, storage.join(root, "bundle"))
    came = storage.download(storage.join(root, "bundle"), tmp_path / "copy")
    assert {str(path.relative_to(came)): path.read_bytes() for path in came.rglob("*") if path.is_file()} == CONTENT
    # What is local is used where it lies.
    assert came == tmp_path / "copy" if storage.is_remote(root) else not (tmp_path / "copy").exists()


def test_readers_of_a_folder_never_meet_a_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed while writing leaves its temporary file behind."""
    seen: list[str] = []

    class Killed(BaseException):
        pass

    class Filesystem:
        """The local one, which ends the process instead of moving a file."""

        def __getattr__(self, name: str) -> object:
            return getattr(pafs.LocalFileSystem(), name)

        def move(self, source: str, to: str) -> None:
            seen.append(source)
            assert Path(source).read_bytes() == b"half"
            assert storage.list_files(tmp_path) == []
            raise Killed

        def delete_file(self, path: str) -> None:
            """The dead clean nothing."""

    monkeypatch.setattr(storage, "filesystem", lambda uri: (Filesystem(), str(uri)))
    with pytest.raises(Killed):
        storage.write_bytes(f"{tmp_path}/t.parquet", b"half")
    monkeypatch.undo()
    (left,) = seen
    assert os.listdir(tmp_path) == [Path(left).name]
    assert storage.list_files(tmp_path) == []
    storage.write_parquet(pa.table({"a": [1]}), tmp_path / "t.parquet")
    assert pq.read_table(str(tmp_path)).column("a").to_pylist() == [1]


class Broken:
    """The local file system, which fails at one step."""

    def __init__(self, step: str) -> None:
        self.step = step

    def __getattr__(self, name: str) -> object:
        def fail(*args: object, **kwargs: object) -> None:
            raise OSError(28, "No space left on device")

        return fail if name == self.step else getattr(pafs.LocalFileSystem(), name)


@pytest.mark.parametrize("step", ["create_dir", "open_output_stream", "move"])
def test_a_failed_write_keeps_the_old_content_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    file = tmp_path / "t.json"
    file.write_bytes(b"old")
    monkeypatch.setattr(storage, "filesystem", lambda uri: (Broken(step), str(uri)))
    with pytest.raises(StorageError, match=rf"{file}: cannot be written .*No space left"):
        storage.write_bytes(str(file), b"new")
    assert os.listdir(tmp_path) == ["t.json"]
    assert file.read_bytes() == b"old"


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []

    class Filesystem:
        def __getattr__(self, name: str) -> object:
            return getattr(pafs.LocalFileSystem(), name)

        def open_output_stream(self, path: str) -> pa.NativeFile:
            names.append(path)
            return pafs.LocalFileSystem().open_output_stream(path)

    monkeypatch.setattr(storage, "filesystem", lambda uri: (Filesystem(), str(uri)))
    for _ in range(2):
        storage.write_bytes(f"{tmp_path}/t", b"")
    assert len(set(names)) == 2


def test_what_cannot_be_done_is_a_storage_error(tmp_path: Path) -> None:
    file, folder, absent = tmp_path / "file.txt", tmp_path / "folder", tmp_path / "absent"
    file.write_text("x")
    folder.mkdir()
    attempts = {
        "read": lambda: storage.read_bytes(absent),
        "read ": lambda: storage.read_bytes(folder),
        "listed": lambda: storage.list_files(file),
        "created as a folder": lambda: storage.make_dir(file),
        "written": lambda: storage.write_bytes(file / "below", b""),
        "written ": lambda: storage.write_bytes(folder, b""),
        "written  ": lambda: storage.upload(absent, tmp_path / "copy"),
        "read as Parquet": lambda: storage.read_parquet(file),
        "read as Parquet ": lambda: storage.read_parquet(absent),
        "read as Parquet  ": lambda: storage.read_parquet(pq_file(tmp_path), ["b"]),
    }
    for deed, attempt in attempts.items():
        with pytest.raises(StorageError, match=f"{tmp_path}.*: cannot be {deed.strip()} "):
            attempt()
    assert sorted(os.listdir(folder)) == []
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]


def pq_file(folder: Path) -> Path:
    pq.write_table(pa.table({"a": [1]}), folder / "a.parquet")
    return folder / "a.parquet"


@pytest.mark.parametrize("uri", ["foo://x/y", "http://host/x", "://"])
def test_uris_that_arrow_lacks(uri: str) -> None:
    for use in (storage.exists, storage.list_files, storage.read_bytes, storage.delete, storage.make_dir):
        with pytest.raises(StorageError, match=f"{uri}: not a path or URI that can be opened"):
            use(uri)


def test_a_remote_that_fails_is_a_storage_error(remote: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=f"{remote}/no: cannot be downloaded"):
        storage.download(f"{remote}/no", tmp_path / "copy")
    with pytest.raises(StorageError, match=f"{remote}/no: cannot be read"):
        storage.read_bytes(f"{remote}/no")


def test_make_dir_twice(root: str) -> None:
    for _ in range(2):
        storage.make_dir(storage.join(root, "a", "b"))
    assert storage.exists(storage.join(root, "a", "b"))


NAMES = [
    "a b.tif",
    "100%.tif",
    "a%20b.tif",
    "ä/ü.tif",
    "q?x=1#y.tif",
    "a+b&c;d.tif",
    "new\nline.tif",
    "'quoted\".tif",
    "*[1].tif",
]


@pytest.mark.parametrize("name", NAMES)
def test_file_uris_name_the_path_that_they_are_made_of(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    uri = path.as_uri()
    rest = uri.removeprefix("file://")
    for form in (uri, f"file://localhost{rest}", f"file:{rest}", f"FILE://{rest}", f"file://LOCALHOST{rest}"):
        assert storage.absolute(form) == str(path)
        assert not storage.is_remote(form)
    storage.write_bytes(uri, b"x")
    assert path.read_bytes() == storage.read_bytes(uri) == b"x"
    assert storage.exists(uri)
    assert storage.absolute(storage.absolute(uri)) == str(path)


@pytest.mark.parametrize("uri", ["file:a.tif", "file:./a.tif", "file://host/a.tif", "file://a.tif", "file:", "file://"])
def test_file_uris_of_other_hosts_or_relative_paths_are_refused(uri: str) -> None:
    with pytest.raises(StorageError, match="a file on this machine is named file:///"):
        storage.absolute(uri)


def test_a_home_that_does_not_exist_is_a_storage_error() -> None:
    with pytest.raises(StorageError, match="without '~'"):
        storage.absolute("~nobody-of-this-name/x")


def test_damaged_parquet_is_one_error_that_names_the_file(tmp_path: Path) -> None:
    """Any byte of the pages, the footer and its length; what is read in spite of it is what was written."""
    table = pa.table(
        {
            "id": [f"p{n}" for n in range(50)],
            "text": ["the scene is the same"] * 50,
            "image": [bytes([n]) * 99 for n in range(50)],
        }
    )
    path = tmp_path / "t.parquet"
    storage.write_parquet(table, path)
    sound = path.read_bytes()
    rng = random.Random(0)
    refused = 0
    for number in range(400):
        content = bytearray(sound)
        if number % 4:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        else:
            del content[rng.randrange(len(content)) :]
        path.write_bytes(content)
        try:
            found = storage.read_parquet(path, table.column_names)
        except StorageError as error:
            refused += str(error).startswith(f"{path}: cannot be read as Parquet")
            continue
        # Names and figures of the footer have no checksum; values of pages do.
        assert all(found.column(name).to_pylist() == table.column(name).to_pylist() for name in found.column_names)
    assert refused > 200


def test_text_that_is_not_utf8_is_damage(tmp_path: Path) -> None:
    column = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(bytes([0, 0, 0, 0, 1, 0, 0, 0])), pa.py_buffer(b"\xff")]
    )
    pq.write_table(pa.table({"id": column}), tmp_path / "t.parquet")
    with pytest.raises(StorageError, match=r"t\.parquet: cannot be read as Parquet.*restore it"):
        storage.read_parquet(tmp_path / "t.parquet")


def test_a_name_that_is_not_utf_8_is_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.json")).write_text("{}", encoding="utf-8")
    (tmp_path / "a.json").write_text("{}", encoding="utf-8")
    assert [Path(path).name for path in storage.list_files(tmp_path, ".json")] == ["a.json"]
    assert "not UTF-8" in caplog.text


def test_an_empty_part_in_a_bucket_is_refused() -> None:
    with pytest.raises(StorageError, match="empty part"):
        storage.filesystem("s3://bucket/x//table")
