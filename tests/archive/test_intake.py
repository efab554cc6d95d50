"""Rasters from strangers: what they refer to, what their headers claim, and what memory that takes."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from rasterio.shutil import copy as copy_raster

from hisem import storage
from hisem.archive import addresses
from hisem.archive.gdal import gdal_env
from hisem.archive.grid import Window
from hisem.archive.index import index_pair
from hisem.archive.options import ReadOptions
from hisem.archive.raster import open_raster
from hisem.archive.reader import PairReader
from hisem.archive.scaling import percentile_ranges
from hisem.errors import RasterError

Noise = Callable[..., npt.NDArray[np.uint8]]
Write = Callable[..., str]

FLAT = np.full((3, 64, 64), 5, np.uint8)


@pytest.mark.parametrize(
    "uri",
    [
        "/vsicurl/http://169.254.169.254/latest/meta-data/",
        "/vsizip//data/a.zip/a.tif",
        "/vsis3/bucket/a.tif",
        "/vsistdin/",
        "http://169.254.169.254/latest/meta-data/",
        "ftp://host/a.tif",
        "zip+https://host/a.zip!a.tif",
        "az://container/a.tif",
        "GTIFF_DIR:1:https://host/a.tif",
    ],
)
def test_addresses_of_other_kinds_are_not_opened(uri: str) -> None:
    with pytest.raises(RasterError, match=r"a raster is named by its path, or by a URI of s3://, gs://, https://"):
        open_raster(uri)


def test_a_login_in_an_address_that_is_not_opened_is_not_repeated() -> None:
    for uri in ("http://me:pw@host/a.tif", "/vsicurl/https://me:pw@host/a.tif"):
        with pytest.raises(RasterError) as raised:
            open_raster(uri)
        assert "pw" not in str(raised.value)


@pytest.mark.parametrize("driver", ["VRT", "HFA", "BMP", "NITF", "WMS"])
def test_other_formats_are_not_opened(write_raster: Write, tmp_path: Path, driver: str) -> None:
    path = tmp_path / "scene.tif"
    if driver == "WMS":
        path.write_text("<GDAL_WMS><Service name='TMS'><ServerUrl>http://127.0.0.1:9/</ServerUrl></Service></GDAL_WMS>")
    else:
        copy_raster(write_raster("source.tif", FLAT), path, driver=driver)
    with pytest.raises(RasterError, match=r"cannot be opened .* Readable are GeoTIFF"):
        open_raster(str(path))


def vrt(source: str, side: int) -> str:
    """A document that shows another raster's pixels."""
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{band}"><SimpleSource><SourceFilename>{source}</SourceFilename>'
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"
        for band in (1, 2, 3)
    )
    return f'<VRTDataset rasterXSize="{side}" rasterYSize="{side}">{bands}</VRTDataset>'


@pytest.mark.parametrize(("suffix", "side"), [(".ovr", 32), (".msk", 64), (".OVR", 32), (".MSK", 64)])
def test_overviews_and_masks_that_are_documents_are_refused(write_raster: Write, suffix: str, side: int) -> None:
    secret = write_raster("secret.tif", np.full((3, side, side), 77, np.uint8))
    path = write_raster("scene.tif", FLAT)
    Path(path + suffix).write_text(vrt(secret, side))
    with pytest.raises(RasterError, match=rf"scene\.tif\{suffix}: is no plain GeoTIFF"):
        open_raster(path)


@pytest.mark.parametrize("holder", ["", ".msk", ".aux.xml"])
def test_a_reference_to_overviews_elsewhere_is_refused_unasked(
    write_raster: Write, bucket: str, s3_server: Any, holder: str
) -> None:
    storage.write_bytes(f"{bucket}/a.tif", Path(write_raster("a.tif", FLAT)).read_bytes())
    elsewhere = f"/vsicurl/{s3_server.address}/{bucket.removeprefix('s3://')}/a.tif"
    path = write_raster("scene.tif", FLAT)
    if holder == ".aux.xml":
        item = f'<MDI key="OVERVIEW_FILE">{elsewhere}</MDI>'
        Path(path + holder).write_text(f'<PAMDataset><Metadata domain="OVERVIEWS">{item}</Metadata></PAMDataset>')
    else:
        if holder:
            Path(write_raster("mask.tif", FLAT[:1])).rename(path + holder)
        with rasterio.open(path + holder, "r+", driver="GTiff") as raster:
            raster.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=elsewhere)
    s3_server.requests()
    with pytest.raises(RasterError, match="names another file for its overviews"):
        open_raster(path)
    assert s3_server.requests() == []


def test_own_overviews_and_masks_beside_a_raster_are_read(write_raster: Write, noise: Noise) -> None:
    hole = np.full((96, 80), 255, np.uint8)
    hole[:48] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False, TIFF_USE_OVR=True):
        path = write_raster("scene.tif", noise(), mask=hole)
        with rasterio.open(path, "r+") as raster:
            raster.build_overviews([2])
    assert Path(f"{path}.msk").exists()
    assert Path(f"{path}.ovr").exists()
    with open_raster(path) as raster:
        assert raster.overviews(1) == [2]
        assert np.array_equal(raster.read_masks(1), hole)
        assert percentile_ranges([raster], [], (0, 100)).shape == (3, 2)


@pytest.mark.parametrize("name", ["scene.aux", "scene.AUX", "scene.tif.aux"])
def test_an_erdas_file_beside_a_raster_is_refused(write_raster: Write, noise: Noise, tmp_path: Path, name: str) -> None:
    path = write_raster("scene.tif", noise())
    (tmp_path / name).write_text("what LaTeX calls so")
    open_raster(path).close()
    copy_raster(path, tmp_path / "other.img", driver="HFA")
    (tmp_path / "other.img").rename(tmp_path / name)
    with pytest.raises(RasterError, match=rf"{name}: is an ERDAS file"):
        open_raster(path)


def test_files_beside_files_beside_files_are_refused(write_raster: Write) -> None:
    path = write_raster("scene.tif", FLAT)
    for suffix in (".msk", ".msk.ovr"):
        Path(write_raster("other.tif", FLAT[:1])).rename(path + suffix)
    open_raster(path).close()
    Path(write_raster("other.tif", FLAT[:1])).rename(f"{path}.msk.ovr.ovr")
    with pytest.raises(RasterError, match=r"scene\.tif\.msk\.ovr\.ovr: .* too many"):
        open_raster(path)


@pytest.fixture
def at(write_raster: Write, bucket: str, s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Puts a raster of 64 x 64 pixels into the bucket, and gives its address of a scheme."""
    # http stands for https, which the server here does not speak.
    monkeypatch.setattr(addresses, "SCHEMES", (*addresses.SCHEMES, "http"))
    content = Path(write_raster("scene.tif", FLAT)).read_bytes()

    def at(scheme: str, name: str = "scene.tif") -> str:
        storage.write_bytes(f"{bucket}/{name}", content)
        return f"{bucket}/{name}" if scheme == "s3" else f"{bucket.replace('s3:/', s3_server.address)}/{name}"

    return at


@pytest.mark.parametrize("suffix", [".OVR", ".MSK"])
def test_documents_behind_uris_are_refused(at: Callable[..., str], bucket: str, suffix: str) -> None:
    uri = at("http")
    storage.write_bytes(f"{bucket}/scene.tif{suffix}", vrt("/etc/passwd", 64).encode())
    with pytest.raises(RasterError, match=rf"scene\.tif\{suffix}: is no plain GeoTIFF"):
        open_raster(uri)


def test_a_server_that_has_a_raster_at_every_address_is_refused(at: Callable[..., str]) -> None:
    uri = at("http")
    for depth in range(1, 5):
        at("http", "scene.tif" + ".ovr" * depth)
    with pytest.raises(RasterError, match=r"scene\.tif\.ovr\.ovr\.ovr: .* too many"):
        open_raster(uri)


@pytest.mark.parametrize("scheme", ["s3", "http"])
@pytest.mark.parametrize("suffix", [".ovr", ".msk"])
def test_a_store_that_does_not_say_whether_there_is_a_mask(
    at: Callable[..., str], s3_server: Any, scheme: str, suffix: str
) -> None:
    uri = at(scheme)
    s3_server.fail(suffix, 503)
    for _ in range(2):
        with pytest.raises(RasterError, match=rf"scene\.tif\{suffix}: .* The server is failing: try again later"):
            open_raster(uri)
    s3_server.work()
    uri = at(scheme, "other.tif")
    s3_server.fail(suffix, 403)  # as a bucket that must not be listed says of what is absent
    with open_raster(uri) as raster:
        assert np.array_equal(raster.read(), FLAT)


def test_pages_in_place_of_what_is_absent_are_passed_over(at: Callable[..., str], bucket: str) -> None:
    uri = at("http")
    for suffix in (".ovr", ".OVR", ".msk", ".MSK"):
        storage.write_bytes(f"{bucket}/scene.tif{suffix}", b"\n<!DOCTYPE html><html><body>Not here</body></html>")
    with open_raster(uri) as raster:
        assert raster.overviews(1) == []
        assert raster.read_masks(1).all()
    uri = at("http", "other.tif")
    storage.write_bytes(f"{bucket}/other.tif.msk", b"<!doctype html>" + vrt("/etc/passwd", 64).encode())
    with pytest.raises(RasterError, match=r"other\.tif\.msk: is no plain GeoTIFF"):
        open_raster(uri)


def test_a_raster_behind_an_address_with_a_query_is_read(at: Callable[..., str], s3_server: Any) -> None:
    uri = f"{at('http')}?download=1"
    s3_server.requests()
    with open_raster(uri) as raster, gdal_env():
        assert np.array_equal(raster.read(), FLAT)
        assert raster.overviews(1) == []
    assert {request["path"].rpartition("/")[2] for request in s3_server.requests()} == {"scene.tif"}


def test_erdas_files_behind_uris_are_not_asked_for(at: Callable[..., str], s3_server: Any) -> None:
    uri = at("http")
    s3_server.requests()
    options = ReadOptions(bands=("3", "2", "1"), scaling="percentiles")
    with PairReader([uri], [uri], 32, options) as reader:
        reader.read(Window(0, 0, 32, 32))
    paths = [request["path"] for request in s3_server.requests()]
    assert paths
    assert not [path for path in paths if path.lower().endswith(".aux")]


def image(side: int, tile: int, kind: int, branch: int = 0, behind: int = 0) -> bytes:
    """The directory of one image in a TIFF: `side` x `side` pixels in tiles.

    `kind` is 0, 1 for an overview, or 4 for a mask; `branch` and `behind` are offsets of others.
    """
    bits = 1 if kind == 4 else 8
    tags = [(254, kind), (256, side), (257, side), (258, bits), (259, 1), (262, 4 if kind == 4 else 1), (277, 1)]
    tags += [(322, tile), (323, tile), (324, 4000), (325, 4096), *([(330, branch)] if branch else [])]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return struct.pack("<H", len(tags)) + entries + struct.pack("<I", behind)


@pytest.mark.parametrize("holder", ["", ".ovr", ".msk"])
@pytest.mark.parametrize("place", ["chain", "branch"])
@pytest.mark.parametrize("kind", [1, 4])
def test_overviews_and_masks_are_bounded(
    write_raster: Write, tmp_path: Path, holder: str, place: str, kind: int
) -> None:
    second = 8 + len(image(64, 64, 0, branch=1))

    def two(tile: int) -> bytes:
        first = image(64, 64, 0, **{"branch" if place == "branch" else "behind": second})
        return (b"II*\0" + struct.pack("<I", 8) + first).ljust(second, b"\0") + image(
            64 if kind == 4 else 32, tile, kind
        )

    path = tmp_path / "scene.tif" if holder == "" else Path(write_raster("scene.tif", FLAT[:1]))
    Path(f"{path}{holder}").write_bytes(two(64).ljust(8096, b"\0"))
    open_raster(str(path)).close()
    Path(f"{path}{holder}").write_bytes(two(32_768).ljust(8096, b"\0"))
    with pytest.raises(RasterError, match=rf"scene\.tif{holder}: is stored in blocks of 32768 x 32768 pixels"):
        open_raster(str(path))


def tile_bomb(path: Path, side: int) -> None:
    """A TIFF of one tile of `side` x `side` RGB zeros: 1.8 GB in 2 MB for 24,576."""
    piece = bytes(2**22)
    deflate = zlib.compressobj(9, wbits=-15)
    once = deflate.compress(piece) + deflate.flush(zlib.Z_FULL_FLUSH)
    total = side * side * 3
    assert total % len(piece) == 0
    data = b"\x78\xda" + once * (total // len(piece)) + b"\x03\x00" + struct.pack(">I", total % 65521 << 16 | 1)
    tags = [(256, side), (257, side), (258, 0), (259, 8), (262, 2), (277, 3), (322, side), (323, side)]
    tags += [(324, 0), (325, len(data))]
    behind = 8 + 2 + 12 * len(tags) + 4
    values = dict(tags) | {258: behind, 324: behind + 6}
    ifd = struct.pack("<H", len(tags))
    for tag, value in values.items():
        ifd += struct.pack("<HHII", tag, 3 if tag == 258 else 4, 3 if tag == 258 else 1, value)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + ifd + bytes(4) + struct.pack("<HHH", 8, 8, 8) + data)


def jp2_bomb(path: Path, side: int) -> None:
    """A JPEG 2000 of 300 bytes that claims one tile of `side` x `side`."""
    with rasterio.open(path, "w", driver="JP2OpenJPEG", count=3, height=256, width=256, dtype="uint8") as raster:
        raster.write(np.zeros((3, 256, 256), np.uint8))
    content = bytearray(path.read_bytes())
    header, size = content.index(b"ihdr") + 4, content.index(b"\xff\x51") + 6
    for at in (header, size, size + 16):  # image header; image and tile in the codestream
        content[at : at + 8] = struct.pack(">II", side, side)
    path.write_bytes(content)


def png_bomb(path: Path, side: int) -> None:
    """A PNG that claims `side` x `side` pixels, of which a few rows are there."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes((side * 3 + 1) * 100))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


READER = """
import json, resource, sys
from hisem.archive.index import index_pair
from hisem.archive.reader import PairReader
from hisem.archive.grid import Window
from hisem.errors import RasterError

def read(path):
    try:
        index_pair({"pair_id": "p", "before": [path], "after": [path]}, 8192)
        with PairReader([path], [path], 64) as reader:
            reader.read(Window(0, 0, 64, 64))
    except RasterError as error:
        return str(error)
    return ""

harmless, *bombs = sys.argv[1:]
assert not read(harmless)
peaks = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]
told = []
for bomb in bombs:
    told.append(read(bomb))
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(json.dumps([told, [(peak - peaks[0]) // 1024 for peak in peaks[1:]]]))
"""


def test_bombs_are_refused_before_they_take_memory(write_raster: Write, tmp_path: Path) -> None:
    bombs = {"a.png": png_bomb, "b.tif": tile_bomb, "c.jp2": jp2_bomb}
    sides = {"b.tif": 24_576}
    for name, make in bombs.items():
        make(tmp_path / name, sides.get(name, 100_000))
        assert (tmp_path / name).stat().st_size < 2_000_000
    paths = [write_raster("harmless.tif", FLAT), *(str(tmp_path / name) for name in bombs)]
    done = subprocess.run([sys.executable, "-c", READER, *paths], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    told, megabytes = json.loads(done.stdout)
    assert "a.png: claims 100000 x 100000 pixels, more than the 268435456 of a PNG" in told[0]
    assert "b.tif: is stored in blocks of 24576 x 24576 pixels, of which one takes 1811939328 bytes" in told[1]
    assert "c.jp2: claims 100000 x 100000 pixels, more than the 1073741824 of a JP2OpenJPEG" in told[2]
    assert max(megabytes) < 50, megabytes


def test_the_largest_that_is_let_in_takes_bounded_memory(write_raster: Write, tmp_path: Path) -> None:
    tile_bomb(tmp_path / "a.tif", 8192)
    jp2_bomb(tmp_path / "b.jp2", 32_768)
    paths = [write_raster("harmless.tif", FLAT), str(tmp_path / "a.tif"), str(tmp_path / "b.jp2")]
    done = subprocess.run([sys.executable, "-c", READER, *paths], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    told, megabytes = json.loads(done.stdout)
    assert told[0] == ""
    assert "damaged" in told[1]
    assert max(megabytes) < 1000, megabytes


def test_an_envi_header_that_claims_more_than_its_file_has(tmp_path: Path) -> None:
    (tmp_path / "scene").write_bytes(bytes(1000))
    (tmp_path / "scene.hdr").write_text(
        "ENVI\nsamples = 100000\nlines = 100000\nbands = 3\nheader offset = 0\nfile type = ENVI Standard\n"
        "data type = 1\ninterleave = bsq\nbyte order = 0\n"
    )
    with pytest.raises(RasterError):
        index_pair({"pair_id": "p", "before": [str(tmp_path / "scene")], "after": [str(tmp_path / "scene")]}, 8192)


def test_schemes_that_are_opened_are_those_of_the_readme() -> None:
    assert [
        uri for uri in ("s3://b/a.tif", "gs://b/a.tif", "https://h/a.tif", "/a.tif") if addresses.objection(uri)
    ] == []
