"""Storage on an S3-compatible server: what is written, what is left behind, and what its failures say."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from hisem import object_store, storage
from hisem.errors import StorageError

MULTIPART = 12_000_000
"""Bytes of which Arrow makes several parts."""


def objects(bucket: str) -> dict[str, int]:
    """Every key of a bucket with its size, markers of folders included."""
    fs, root = storage.filesystem(bucket)
    found = fs.get_file_info(pafs.FileSelector(root, recursive=True))
    return {info.path.removeprefix(f"{root}/"): info.size for info in found if info.type == pafs.FileType.File}


@pytest.mark.parametrize("size", [0, 5, MULTIPART])
def test_a_file_is_one_object_and_nothing_else(bucket: str, s3_server: Any, size: int) -> None:
    uri = storage.join(bucket, "deep/in it/ä %20.bin")
    assert not storage.exists(uri)
    s3_server.requests()
    for content in (b"old", bytes(size)):
        storage.write_bytes(uri, content)
        assert storage.read_bytes(uri) == content
    seen = s3_server.requests()
    assert {request["path"] for request in seen} == {f"/{uri.removeprefix('s3://')}"}
    assert not [request for request in seen if request["method"] == "DELETE"]
    assert objects(bucket) == {"deep/in it/ä %20.bin": size}


def test_files_are_listed_and_deleted_as_on_disk(bucket: str, tmp_path: Path) -> None:
    listings = []
    for root in (storage.join(bucket, "archive"), str(tmp_path / "archive")):
        assert storage.list_files(root) == []
        assert not storage.exists(root)
        for name in ("a.parquet", "deep/b.parquet", "_index/c.parquet", ".d.parquet", "e.txt"):
            storage.write_bytes(storage.join(root, name), b"x")
        assert storage.is_folder(storage.join(root, "deep"))
        assert not storage.is_folder(storage.join(root, "a.parquet"))
        storage.delete(storage.join(root, "e.txt"))
        storage.delete(storage.join(root, "absent.txt"))
        for _ in range(2):
            storage.make_dir(storage.join(root, "empty"))
        base = storage.filesystem(root)[1]
        listings.append([path.removeprefix(base) for path in storage.list_files(root)])
        storage.delete(root)
        assert storage.list_files(root) == []
    assert listings[0] == listings[1] == ["/a.parquet", "/deep/b.parquet"]


def test_folders_go_up_and_come_down(bucket: str, tmp_path: Path) -> None:
    content = {"a.json": b"{}", "deep/b.bin": bytes(MULTIPART)}
    for name, data in content.items():
        storage.write_bytes(tmp_path / "source" / name, data)
    storage.upload(tmp_path / "source", storage.join(bucket, "bundle"))
    came = storage.download(storage.join(bucket, "bundle"), tmp_path / "copy")
    assert {str(path.relative_to(came)): path.read_bytes() for path in came.rglob("*") if path.is_file()} == content


def test_keys_that_lead_out_of_a_folder_are_refused(bucket: str, s3_server: Any, tmp_path: Path) -> None:
    storage.write_bytes(f"{bucket}/bundle/a.json", b"{}")
    # Clients tidy such a path up; a server takes any key.
    signature = (
        "AWS4-HMAC-SHA256 Credential=testing/20250101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
    )
    connection = http.client.HTTPConnection(s3_server.address.removeprefix("http://"))
    connection.request("PUT", f"/{bucket[5:]}/bundle/%2E%2E/%2E%2E/evil.txt", b"evil", {"Authorization": signature})
    assert connection.getresponse().status == 200
    assert "bundle/../../evil.txt" in objects(bucket)
    with pytest.raises(StorageError, match=r"holds the key '.*bundle/\.\./\.\./evil\.txt'"):
        storage.download(f"{bucket}/bundle", tmp_path / "deep" / "copy")
    assert not list(tmp_path.rglob("evil.txt"))


def test_a_store_that_fails_now_and_then_is_asked_again(bucket: str, s3_server: Any) -> None:
    uri, content = storage.join(bucket, "a.bin"), bytes(10_000)
    s3_server.fail("a.bin", 503, times=1)
    storage.write_bytes(uri, content)
    assert storage.read_bytes(uri) == content


USES: list[Callable[[str], Any]] = [
    storage.read_bytes,
    lambda uri: storage.write_bytes(uri, b"x"),
    lambda uri: storage.write_parquet(pa.table({"a": [1]}), uri),
    storage.read_parquet,
]


@pytest.mark.parametrize("use", USES)
def test_what_a_store_refuses_and_what_it_lacks_are_told_apart(
    bucket: str, s3_server: Any, monkeypatch: pytest.MonkeyPatch, use: Callable[[str], Any]
) -> None:
    began = time.monotonic()
    with pytest.raises(StorageError, match=r"s3://no-such-bucket/a\.parquet: cannot be .*It is not there"):
        use("s3://no-such-bucket/a.parquet")
    s3_server.fail("a.parquet", 403)
    with pytest.raises(StorageError, match="Access is refused"):
        use(f"{bucket}/a.parquet")
    s3_server.work()
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "wrong")
        with pytest.raises(StorageError, match="Access is refused") as raised:
            use(f"{bucket}/a.parquet")
        assert "secret-of-the-tests" not in str(raised.value)
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
        with pytest.raises(StorageError, match="cannot be reached"):
            use(f"{bucket}/a.parquet")
    assert time.monotonic() - began < 60


def test_a_missing_object_is_named(bucket: str) -> None:
    with pytest.raises(StorageError, match=rf"{bucket}/no\.csv: cannot be read .*It is not there"):
        storage.read_bytes(f"{bucket}/no.csv")


@pytest.mark.parametrize(
    ("variable", "value"),
    [("AWS_ENDPOINT_URL", "minio:9000"), ("AWS_ENDPOINT_URL_S3", "https://me:secret-word@minio")],
)
def test_an_endpoint_that_is_none(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.setenv(variable, value)
    with pytest.raises(StorageError, match=f"{variable}: found .*address is needed") as raised:
        storage.exists("s3://bucket/a")
    assert "secret-word" not in str(raised.value)


@pytest.mark.parametrize("uri", ["s3://bucket/a?region=x", "s3:///a"])
def test_s3_uris_that_are_none(uri: str) -> None:
    with pytest.raises(StorageError, match="s3://BUCKET/PATH is needed"):
        storage.exists(uri)


SECRETS = {
    "https://me:pw@host/a.tif": "https://host/a.tif",
    "s3://KEY:pw@bucket/a.tif": "s3://bucket/a.tif",
    "https://b.s3.amazonaws.com/a.tif?X-Amz-Credential=K&X-Amz-Signature=pw": "https://b.s3.amazonaws.com/a.tif?***",
    "https://b.blob.core.windows.net/a.tif?se=2026&sp=r&sig=pw": "https://b.blob.core.windows.net/a.tif?***",
    "https://storage.googleapis.com/b/a.tif?X-Goog-Signature=pw": "https://storage.googleapis.com/b/a.tif?***",
    "https://host/a.tif?access_token=pw": "https://host/a.tif?***",
    "https://host/a.tif?api_key=pw": "https://host/a.tif?***",
    "https://host/a.tif?key=pw&format=tif": "https://host/a.tif?***",
}
HARMLESS = [
    "https://host/a.tif?versionId=3&signed=no",
    "https://host/me@home/a.tif",
    "s3://bucket/a@2x.tif",
    "/data/token=1/a.tif",
    "https://host/collection?key_frame=1&design=2",
]


def test_secrets_in_uris_are_refused_and_not_repeated() -> None:
    for uri, shown in SECRETS.items():
        assert object_store.has_secret(uri), uri
        assert object_store.masked(uri) == shown
        with pytest.raises(StorageError, match="into the environment") as raised:
            storage.filesystem(uri)
        assert str(raised.value).startswith(f"{shown}: ")
        assert "pw" not in str(raised.value)
    for uri in HARMLESS:
        assert not object_store.has_secret(uri), uri
        assert object_store.masked(uri) == uri


def test_pickled_file_systems_hold_no_credentials(bucket: str) -> None:
    import pickle

    fs, path = storage.filesystem(bucket)
    sent = pickle.dumps(fs)
    assert b"secret-of-the-tests" not in sent
    assert pickle.loads(sent).get_file_info(path).type == pafs.FileType.Directory
