"""One odd file is one failed row: whatever an open or a read raises, and whatever stands in a raster's place."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.enums import Resampling
from rasterio.io import DatasetReader

from hisem.archive import bands
from hisem.archive.gdal import raster_errors
from hisem.archive.index import index_pair
from hisem.archive.options import ReadOptions
from hisem.archive.raster import open_raster
from hisem.archive.reader import range_columns
from hisem.archive.tiles import read_tiles
from hisem.captions.failures import kind_of
from hisem.errors import RasterError, StorageError
from hisem.schemas import FAILED

Write = Callable[..., str]
Noise = Callable[..., Any]

CLASSES: tuple[Exception, ...] = (
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    OverflowError("big"),
    MemoryError(),
    KeyError("x"),
    RecursionError("deep"),
    struct.error("short"),
    AttributeError("none"),
    ZeroDivisionError("zero"),
)


def pair(path: str) -> dict[str, Any]:
    return {"pair_id": "p", "before": [path], "after": [path]}


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: type(error).__name__)
def test_any_class_of_exception_becomes_one_of_ours_with_the_file_and_the_cause(error: Exception) -> None:
    with (
        pytest.raises(RasterError, match=r"^/d/a\.tif: cannot be read \(.+\)\. \w.+\.$"),
        raster_errors("/d/a.tif", "cannot be read"),
    ):
        raise error


def test_our_own_errors_and_an_interrupt_pass() -> None:
    for error in (StorageError("full"), KeyboardInterrupt()):
        with pytest.raises(type(error)), raster_errors("/d/a.tif", "cannot be read"):
            raise error


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("call", ["tags", "colorinterp", "overviews", "block_shapes", "crs", "read"])
def test_whatever_a_dataset_raises_is_a_failed_row(
    write_raster: Write, noise: Noise, monkeypatch: pytest.MonkeyPatch, call: str, error: Exception
) -> None:
    class Broken(DatasetReader):
        pass

    def fail(*_: Any, **__: Any) -> None:
        raise error

    plain = call in ("tags", "overviews", "read")
    setattr(Broken, call, fail if plain else property(fail))
    path = write_raster("a.tif", noise())
    index = index_pair(pair(path), 96)
    monkeypatch.setattr("hisem.archive.raster.DatasetReader", Broken)
    if call != "read":
        with pytest.raises(RasterError, match=r"a\.tif"):
            index_pair(pair(path), 96)
    if call == "overviews":
        return  # which only an index asks for
    assert {tile.status for tile in read_tiles(index, 96)} == {FAILED}
    options = ReadOptions(scaling="percentiles")
    assert range_columns(pair(path), options) == {"before_range": None, "after_range": None}


def test_a_broken_character_in_metadata_is_a_failed_row(write_raster: Write, noise: Noise, tmp_path: Path) -> None:
    path = write_raster("a.tif", noise())
    with rasterio.open(path, "r+") as raster:
        raster.set_band_description(1, "abcdefgh")
        raster.update_tags(NOTE="ijklmnop")
    for text in (b"abcdefgh", b"ijklmnop"):
        broken = tmp_path / f"{text.decode()}.tif"
        broken.write_bytes(Path(path).read_bytes().replace(text, b"\xff\xfe" + text[2:]))
        with pytest.raises(RasterError) if text == b"abcdefgh" else open_raster(str(broken)):
            index_pair(pair(str(broken)), 96, ReadOptions(bands=("abcdefgh",)))


@pytest.mark.parametrize("samples", [0, 1, 2, 3, 7, 255, 65535])
def test_wrong_extra_samples_are_a_failed_row_or_read(
    write_raster: Write, noise: Noise, tmp_path: Path, samples: int
) -> None:
    pixels = noise(4)
    path = write_raster("a.tif", pixels, photometric="RGB")
    data = bytearray(Path(path).read_bytes())
    (first,) = struct.unpack_from("<I", data, 4)
    for number in range(struct.unpack_from("<H", data, first)[0]):
        place = first + 2 + 12 * number
        if struct.unpack_from("<H", data, place)[0] == 338:
            struct.pack_into("<IHH", data, place + 4, 1, samples, 0)
    changed = tmp_path / "b.tif"
    changed.write_bytes(data)
    try:
        index = index_pair(pair(str(changed)), 96)
    except RasterError:
        return
    for tile in read_tiles(index, 96):
        if tile.after is not None and samples != 2:
            assert np.array_equal(tile.after[:96, :80], pixels[:3].transpose(1, 2, 0))


@pytest.mark.parametrize(("compression", "codec"), [(50002, "JXL"), (34661, "JBIG"), (34712, "JP2000"), (7777, "7777")])
def test_a_codec_that_gdal_lacks_is_no_damage(
    write_raster: Write, noise: Noise, tmp_path: Path, compression: int, codec: str
) -> None:
    data = bytearray(Path(write_raster("a.tif", noise(), compress="deflate")).read_bytes())
    (first,) = struct.unpack_from("<I", data, 4)
    for number in range(struct.unpack_from("<H", data, first)[0]):
        place = first + 2 + 12 * number
        if struct.unpack_from("<H", data, place)[0] == 259:
            struct.pack_into("<H", data, place + 8, compression)
    other = tmp_path / "b.tif"
    other.write_bytes(data)
    with pytest.raises(RasterError, match=codec) as raised:
        open_raster(str(other))
    assert kind_of(str(raised.value)) == "unsuitable"


@pytest.mark.parametrize("process", [0xC3, 0xC5, 0xCB])
def test_a_jpeg_of_another_process_is_no_damage(write_raster: Write, noise: Noise, process: int) -> None:
    path = Path(write_raster("a.jpg", noise(), crs=None, transform=None))
    data = path.read_bytes()
    place = data.index(b"\xff\xc0") + 1
    path.write_bytes(data[:place] + bytes([process]) + data[place + 1 :])
    with pytest.raises(RasterError) as raised:
        open_raster(str(path))
    assert kind_of(str(raised.value)) == "unsuitable"


def test_a_missing_envi_header_is_named(tmp_path: Path, noise: Noise) -> None:
    path = tmp_path / "scene.img"
    with rasterio.open(path, "w", driver="ENVI", height=96, width=80, count=3, dtype="uint8") as raster:
        raster.write(noise())
    (tmp_path / "scene.hdr").rename(tmp_path / "elsewhere.hdr")
    with pytest.raises(RasterError, match=r"scene\.hdr") as raised:
        open_raster(str(path))
    assert kind_of(str(raised.value)) == "missing"


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tif")
    (tmp_path / "folder.tif").mkdir()
    (tmp_path / "link.tif").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.tif"))
        for name in ("pipe.tif", "folder.tif", "link.tif", "socket.tif"):
            with pytest.raises(RasterError):
                open_raster(str(tmp_path / name))


NAMES = (
    "{name}.ovr",
    "{name}.msk",
    "{name}.aux.xml",
    "{name}.aux",
    "{name}.OVR",
    "{name}.hdr",
    "{stem}.hdr",
    "{stem}.aux",
    "{stem}.tfw",
    "{stem}.wld",
    "{stem}.pgw",
    "{stem}.tab",
    "{stem}.xml",
    "{stem}.RPB",
    "{stem}_RPC.TXT",
    "{stem}_MTL.txt",
    "{stem}.imd",
    "METADATA.DIM",
    "summary.txt",
    "DIM_{stem}.XML",
)


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pipes_and_devices_beside_a_raster_are_refused_unopened(
    write_raster: Write, noise: Noise, tmp_path: Path, kind: str
) -> None:
    """In another process, which an open of a pipe would keep until the end of its time."""
    scene = write_raster("scene.tif", noise())
    paths = []
    for number, name in enumerate(NAMES):
        folder = tmp_path / str(number)
        folder.mkdir()
        paths.append(shutil.copy(scene, folder))
        beside = folder / name.format(name="scene.tif", stem="scene")
        os.mkfifo(beside) if kind == "pipe" else beside.symlink_to("/dev/zero")
    script = (
        "import sys\nfrom hisem.archive.raster import open_raster\nfrom hisem.errors import RasterError\n"
        "for path in sys.argv[1:]:\n"
        "    try: open_raster(path); print('opened', path)\n"
        "    except RasterError as error: assert 'named pipe' in str(error), error\n"
    )
    found = subprocess.run([sys.executable, "-c", script, *paths], capture_output=True, text=True, timeout=120)
    assert (found.returncode, found.stdout) == (0, ""), found.stderr


def test_sockets_and_pipes_of_other_names_are_no_hindrance(write_raster: Write, noise: Noise, tmp_path: Path) -> None:
    path = write_raster("scene.tif", noise())
    os.mkfifo(tmp_path / "clr-debug-pipe-1")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "scene.tif.sock"))
        open_raster(path).close()


def test_a_grid_of_an_absurd_size_is_refused_before_it_is_counted_out(write_raster: Write, noise: Noise) -> None:
    path = write_raster("a.tif", noise())
    with pytest.raises(RasterError, match="tiles"):
        index_pair(pair(path), 1, ReadOptions(resolution=1e-6))


def test_overviews_make_no_difference_to_what_is_opened(write_raster: Write, noise: Noise) -> None:
    path = write_raster("a.tif", noise(height=256, width=256))
    with rasterio.open(path, "r+") as raster:
        raster.build_overviews([2, 4], Resampling.average)
    with bands.open_scene_raster(path, ("1", "2", "3"), ReadOptions()) as raster:
        assert raster.overviews(1) == [2, 4]
