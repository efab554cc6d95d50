"""Rasters, masks and catalogues behind URIs: equal to the same files on disk, and read sparingly."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine

from hisem import storage
from hisem.archive import addresses
from hisem.archive.bands import open_scene_raster
from hisem.archive.catalogue import read_catalogue, write_catalogue
from hisem.archive.gdal import gdal_env
from hisem.archive.grid import Window, windows
from hisem.archive.index import index_pair
from hisem.archive.options import ReadOptions
from hisem.archive.pairing import PairRequest, pair_archive
from hisem.archive.raster import open_raster
from hisem.archive.reader import PairReader
from hisem.archive.tiles import read_tiles
from hisem.errors import CatalogueError, RasterError

Noise = Callable[..., npt.NDArray[np.uint8]]
Write = Callable[..., str]

HALF_OFF = Affine(10.0, 0.0, 500_005.0, 0.0, -10.0, 3_999_995.0)
TILED = {"tiled": True, "blockxsize": 128, "blockysize": 128}


@pytest.fixture(autouse=True)
def _plain_http(monkeypatch: pytest.MonkeyPatch) -> None:
    """http stands for https, which the server here does not speak."""
    monkeypatch.setattr(addresses, "SCHEMES", (*addresses.SCHEMES, "http"))


@pytest.fixture
def put(tmp_path: Path, bucket: str) -> Callable[..., str]:
    """Copies files of the test's folder into the bucket and returns the URI of the first."""

    def put(*paths: str) -> str:
        uris = [storage.join(bucket, str(Path(path).relative_to(tmp_path))) for path in paths]
        for path, uri in zip(paths, uris, strict=True):
            storage.write_bytes(uri, Path(path).read_bytes())
        return uris[0]

    return put


@pytest.fixture
def archive(write_raster: Write, noise: Noise, tmp_path: Path) -> str:
    """A folder with two pairs in a catalogue with relative paths: tiled, mosaicked, warped, masked."""
    pixels = noise(bands=4, height=160, width=150)
    write_raster("before/left.tif", pixels[:, :, :80], **TILED)
    write_raster("before/right.tif", pixels[:, :, 80:], transform=Affine(10, 0, 500_800, 0, -10, 4_000_000), **TILED)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False):
        hole = np.full((160, 150), 255, np.uint8)
        hole[20:60, 30:70] = 0
        path = write_raster("after/scene.tif", noise(bands=4, height=160, width=150, seed=1), mask=hole, **TILED)
        assert Path(f"{path}.msk").exists()
    write_raster("after/warped.tif", noise(bands=4, height=160, width=150, seed=2), transform=HALF_OFF, **TILED)
    clouds = np.zeros((1, 160, 150), np.uint8)
    clouds[:, 100:, 100:] = 1
    write_raster("clouds.tif", clouds)
    (tmp_path / "pairs.csv").write_text(
        "pair_id,before,after,before_time,after_time,after_mask\n"
        "same,before/left.tif|before/right.tif,after/scene.tif,2024-01-01,2025-01-01,clouds.tif\n"
        "warped,./before/left.tif,after/../after/warped.tif,2024-01-01,2025-01-01,\n"
    )
    write_catalogue(read_catalogue(str(tmp_path / "pairs.csv")), str(tmp_path / "absolute.parquet"))
    return str(tmp_path)


def tiles(catalogue: str, options: ReadOptions) -> dict[str, Any]:
    return {
        tile.row["tile_id"]: tile
        for pair in read_catalogue(catalogue).to_pylist()
        for tile in read_tiles(index_pair(pair, 64, options), 64, options)
    }


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize(
    "options",
    [
        ReadOptions(bands=("1", "2", "3")),
        ReadOptions(bands=("4", "1", "2"), scaling="percentiles", resolution=7.0),
    ],
)
def test_an_archive_in_a_bucket_gives_the_tiles_it_gives_on_disk(
    archive: str, bucket: str, suffix: str, options: ReadOptions
) -> None:
    shutil.copytree(archive, f"{archive}/copy")
    storage.upload(Path(archive) / "copy", bucket)
    local, remote = f"{archive}/pairs.csv", f"{bucket}/pairs.csv"
    if suffix == "parquet":
        remote = f"{bucket}/other/pairs.parquet"
        write_catalogue(read_catalogue(f"{bucket}/pairs.csv"), remote)
    here, there = tiles(local, options), tiles(remote, options)
    assert list(here) == list(there)
    assert [tile.status for tile in here.values()].count("ok") >= 10
    for tile_id, tile in here.items():
        other = there[tile_id]
        assert other.row["before"][0].startswith(f"{bucket}/before/")
        assert (tile.status, tile.before_valid, tile.after_valid) == (
            other.status,
            other.before_valid,
            other.after_valid,
        )
        assert np.array_equal(tile.before, other.before)  # both None where skipped
        assert np.array_equal(tile.after, other.after)
    assert min(tile.after_valid for tile in there.values()) < 0.8  # .msk and clouds were seen


@pytest.mark.parametrize("name", ["scene", "scene.img", "scene.odd"])
def test_envi_finds_its_header_in_a_bucket(
    put: Callable[..., str], noise: Noise, tmp_path: Path, s3_server: Any, name: str
) -> None:
    pixels = noise(bands=4)
    with rasterio.open(
        tmp_path / name, "w", driver="ENVI", count=4, height=96, width=80, dtype="uint8", crs="EPSG:32633",
        transform=HALF_OFF,
    ) as raster:  # fmt: skip
        raster.write(pixels)
    header = tmp_path / f"{Path(name).stem}.hdr"
    uri = put(str(tmp_path / name), str(header))
    for at in (uri, uri.replace("s3:/", s3_server.address)):
        with open_scene_raster(at, ("4", "2", "1"), ReadOptions()) as view, gdal_env():
            assert np.array_equal(view.read(), pixels[[3, 1, 0]])


def test_a_world_file_is_found_in_a_bucket(put: Callable[..., str], write_raster: Write, noise: Noise) -> None:
    path = write_raster("a.png", noise(), transform=HALF_OFF)
    uri = put(path, *(str(found) for found in Path(path).parent.glob("a.*") if str(found) != path))
    with open_raster(path) as here, open_raster(uri) as there:
        assert here.transform == there.transform == HALF_OFF


def downloaded(requests: list[dict[str, Any]]) -> int:
    """Bytes that were asked for of rasters."""
    ranges = [request["range"] for request in requests if request["path"].endswith(".tif") and request["range"]]
    return sum(int(end) - int(start) + 1 for start, end in (re.findall(r"(\d+)-(\d+)", text)[0] for text in ranges))


@pytest.mark.parametrize("scheme", ["s3", "http"])
@pytest.mark.parametrize("bands", [("1", "2", "3"), ("3", "2", "1")])
def test_one_tile_of_a_large_raster_costs_little(
    put: Callable[..., str], write_raster: Write, noise: Noise, s3_server: Any, scheme: str, bands: tuple[str, ...]
) -> None:
    path = write_raster("big.tif", noise(height=2048, width=2048), tiled=True, blockxsize=256, blockysize=256)
    uri = put(path)
    if scheme == "http":
        uri = uri.replace("s3:/", s3_server.address)
    s3_server.requests()
    window = Window(512, 1024, 256, 256)
    options = ReadOptions(bands=bands)
    with PairReader([uri], [uri], 256, options) as reader, PairReader([path], [path], 256, options) as local:
        opening = s3_server.requests()
        assert np.array_equal(reader.read(window).before, local.read(window).before)
        reading = s3_server.requests()
    assert len(opening) <= 16  # of a hundred names that drivers would ask for
    assert downloaded(opening) <= 32_768
    assert downloaded(reading) <= 3 * 256 * 256 * 3
    assert downloaded(opening + reading) < Path(path).stat().st_size / 15
    assert not [request for request in opening + reading if request["method"] == "GET" and request["path"] == "/"]


@pytest.mark.parametrize("scheme", ["s3", "http"])
@pytest.mark.parametrize("status", [500, 503])
def test_a_server_that_fails_now_and_then_is_asked_again(
    put: Callable[..., str], write_raster: Write, noise: Noise, s3_server: Any, scheme: str, status: int
) -> None:
    pixels = noise()
    uri = put(write_raster("a.tif", pixels))
    if scheme == "http":
        uri = uri.replace("s3:/", s3_server.address)
    s3_server.fail("a.tif", status, times=2)
    with PairReader([uri], [uri], 32) as reader:
        s3_server.fail("a.tif", status, times=2)
        for window in windows(96, 80, 32):
            rows, cols = window.slices(reader.grid.extent)
            assert np.array_equal(reader.read(window).before, pixels[:, rows, cols].transpose(1, 2, 0))


def failure(uri: str) -> str:
    """Why `uri` cannot be opened, twice: GDAL words its first failure in another way than those after it."""
    began = time.monotonic()
    messages = []
    for _ in range(2):
        with pytest.raises(RasterError) as raised:
            open_raster(uri)
        messages.append(str(raised.value))
    assert time.monotonic() - began < 20
    told = {re.sub(r"\(.*\)", "", message) for message in messages}
    assert len(told) == 1, told
    assert messages[0].startswith(f"{uri}: ")
    return messages[0]


@pytest.mark.parametrize("scheme", ["s3", "http"])
def test_each_failure_is_told_by_its_cause(
    put: Callable[..., str],
    write_raster: Write,
    noise: Noise,
    s3_server: Any,
    bucket: str,
    scheme: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "junk.tif").write_bytes(b"no raster")
    for name in ("a", "b", "c"):
        put(write_raster(f"{name}.tif", noise()))
    put(str(tmp_path / "junk.tif"))
    root = bucket if scheme == "s3" else bucket.replace("s3:/", s3_server.address)
    assert "It is not there" in failure(f"{root}/missing.tif")
    assert "copy it again" in failure(f"{root}/junk.tif")
    s3_server.fail("/a.tif", 403)
    assert "Access is refused" in failure(f"{root}/a.tif")
    s3_server.fail("/b.tif", 503)
    assert "The server is failing" in failure(f"{root}/b.tif")
    monkeypatch.setenv("GDAL_HTTP_LOW_SPEED_TIME", "1")
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "0")
    s3_server.fail("/c.tif", 503, seconds=4)
    assert "cannot be reached" in failure(f"{root}/c.tif")
    if scheme == "http":
        assert "cannot be reached" in failure("http://127.0.0.1:9/a.tif")
        return
    assert "It is not there" in failure("s3://no-such-bucket/a.tif")
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
        assert "cannot be reached" in failure(f"{bucket}/d.tif")
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "wrong")
        message = failure(f"{bucket}/e.tif")
        assert "Access is refused" in message
        assert "secret-of-the-tests" not in message


def test_a_raster_that_is_refused_later_is_a_failed_tile(
    put: Callable[..., str], write_raster: Write, noise: Noise, s3_server: Any
) -> None:
    uri = put(write_raster("a.tif", noise(height=512, width=512), **TILED))
    pair = {"pair_id": "p", "before": [uri], "after": [uri]}
    index = index_pair(pair, 256)
    s3_server.fail("a.tif", 403)
    found = list(read_tiles(index, 256))
    assert [tile.status for tile in found] == ["failed"] * 4
    assert "its store failed" in str(found[-1].error)


@pytest.mark.parametrize(
    "uri", ["https://me:pw@host/a.tif", "https://host/a.tif?X-Amz-Signature=pw", "s3://KEY:pw@bucket/a.tif"]
)
def test_secrets_get_neither_into_catalogues_nor_into_messages(tmp_path: Path, uri: str) -> None:
    (tmp_path / "c.csv").write_text(f"pair_id,before,after,before_time,after_time\np,/a.tif,{uri},,\n")
    with pytest.raises(CatalogueError, match="into the environment") as raised:
        read_catalogue(str(tmp_path / "c.csv"))
    assert "pw" not in str(raised.value)
    (tmp_path / "c.csv").write_text("pair_id,before,after,before_time,after_time\np,/a.tif,/b.tif,,\n")
    table = read_catalogue(str(tmp_path / "c.csv"))
    table = table.set_column(table.column_names.index("after"), table.schema.field("after"), [[[uri]]])
    with pytest.raises(CatalogueError, match="into the environment"):
        write_catalogue(table, str(tmp_path / "d.csv"))
    with pytest.raises(RasterError, match="into the environment") as refused:
        open_raster(uri)
    assert "pw" not in str(refused.value)


def test_what_the_environment_sets_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "9")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://minio.example:9000/")
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    with gdal_env():
        settings = rasterio.env.getenv()
    assert "GDAL_HTTP_MAX_RETRY" not in settings
    assert settings["GDAL_DISABLE_READDIR_ON_OPEN"] == "TRUE"
    assert settings["AWS_S3_ENDPOINT"] == "minio.example:9000"
    assert settings["AWS_HTTPS"] == "YES"
    assert not [name for name in settings if "KEY" in name or "TOKEN" in name]


def test_a_misnamed_server_fails_what_needs_it_alone(
    write_raster: Write, noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "minio:9000")
    with pytest.raises(RasterError, match="AWS_ENDPOINT_URL_S3: found minio:9000"):
        open_raster("s3://bucket/a.tif")
    open_raster(write_raster("a.tif", noise())).close()


def test_stac_items_in_a_bucket_are_paired_into_a_catalogue_there(
    bucket: str, write_raster: Write, noise: Noise, put: Callable[..., str]
) -> None:
    for year in (2024, 2025):
        put(write_raster(f"items/{year}/scene.tif", noise(seed=year)))
        item = {
            "type": "Feature",
            "stac_version": "1.0.0",
            "id": f"scene-{year}",
            "collection": "aerial",
            "geometry": {
                "type": "Polygon",
                "coordinates": [[[15, 36], [15.1, 36], [15.1, 36.1], [15, 36.1], [15, 36]]],
            },
            "bbox": [15, 36, 15.1, 36.1],
            "properties": {"datetime": f"{year}-06-01T10:00:00Z"},
            "links": [],
            "assets": {"visual": {"href": "./scene.tif"}},
        }
        storage.write_bytes(f"{bucket}/items/{year}/item.json", json.dumps(item).encode())
    summary = pair_archive(
        f"{bucket}/items", f"{bucket}/out/pairs.parquet", PairRequest(max_days=500), datetime.now(UTC)
    )
    assert (summary.pairs, summary.acquisitions) == (1, 2)
    (pair,) = read_catalogue(f"{bucket}/out/pairs.parquet").to_pylist()
    assert pair["before"] == [f"{bucket}/items/2024/scene.tif"]
    assert [tile.status for tile in read_tiles(index_pair(pair, 64), 64)] == ["ok"] * 4
    assert storage.exists(f"{bucket}/out/pairs.left_out.csv")
