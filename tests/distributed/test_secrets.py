"""What the environment keeps secret: after a tiling, a training and a captioning it stands nowhere."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from hisem import storage
from hisem.archive.catalogue import read_catalogue, write_catalogue
from hisem.distributed.archive import shard_archive
from hisem.distributed.nightly import caption_archive, caption_job
from tests.distributed.conftest import TILE

PASSWORD = "marked-password-of-a-tracking-server"
SECRETS = ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "RAY_AUTH_TOKEN")


def texts(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """What stands in every file below a folder, Parquet as rows."""
    for path in folder.rglob("*"):
        if not path.is_file():  # sockets of Ray, too
            continue
        content = path.read_bytes()
        if content[:4] == b"PAR1":
            table = pq.ParquetFile(path).read()
            content += repr((table.to_pylist(), table.schema.metadata)).encode()
        yield path, content


def holders(folder: Path, secrets: dict[str, bytes]) -> list[tuple[str, str]]:
    """Which files hold which secret."""
    return [(str(path), name) for path, text in texts(folder) for name, secret in secrets.items() if secret in text]


def test_no_secret_of_the_environment_is_left_anywhere(
    archive, trained, bundle, bucket, ray_cluster, tmp_path, monkeypatch, caplog, capfd
):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "someone")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    secrets = {name: os.environ[name].encode() for name in SECRETS}
    caplog.set_level(logging.DEBUG)

    pairs = read_catalogue(f"{archive}/catalogue.parquet").slice(0, 1)
    for name in ("before", "after"):
        (uri,) = pairs.column(name).to_pylist()[0]
        remote = storage.join(bucket, name + ".tif")
        storage.write_bytes(remote, storage.read_bytes(uri))
        number = pairs.column_names.index(name)
        pairs = pairs.set_column(number, pairs.schema.field(name), [[[remote]]])
    write_catalogue(pairs, f"{bucket}/catalogue.csv")
    storage.upload(bundle, f"{bucket}/bundle")
    shard_archive(f"{bucket}/catalogue.csv", f"{bucket}/shards", TILE)
    job = caption_job(
        f"{bucket}/catalogue.csv",
        f"{bucket}/bundle",
        f"{bucket}/table",
        tile_size=TILE,
        tracking_uri=trained[0].tracking,
        scratch=tmp_path / "scratch",
    )
    night = caption_archive(*job).night
    assert night.statuses["ok"] == 16

    storage.download(bucket, tmp_path / "bucket")
    assert holders(tmp_path, secrets) == []
    assert {path.suffix for path, _ in texts(tmp_path)} >= {".parquet", ".json", ".html", ".csv"}
    runs = Path(trained[0].storage).parent  # and their MLflow store
    assert {path.suffix for path, _ in texts(runs)} >= {".db", ".safetensors", ".png"}
    assert holders(runs, secrets) == []
    logs = Path(ray._private.worker._global_node.get_session_dir_path())
    assert any(logs.rglob("raylet.out"))
    assert holders(logs, secrets) == []
    for text in (caplog.text, *capfd.readouterr()):
        assert not [name for name, secret in secrets.items() if secret.decode() in text]


def test_a_secret_in_a_table_would_be_seen(tmp_path):
    storage.write_parquet(pa.table({"caption": ["x " + PASSWORD] * 100}), tmp_path / "a.parquet")
    assert holders(tmp_path, {"it": PASSWORD.encode()}) == [(str(tmp_path / "a.parquet"), "it")]
