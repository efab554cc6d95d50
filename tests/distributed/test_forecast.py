"""What a dry run tells, against what the run then does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hisem import storage
from hisem.archive.catalogue import read_catalogue
from hisem.archive.options import ReadOptions
from hisem.captions.options import Captioning
from hisem.distributed import budget
from hisem.distributed.archive import shard_archive
from hisem.distributed.captioner import CaptionOptions
from hisem.distributed.forecast import Forecast, Sample, _hours, forecast_captions, forecast_shards
from hisem.distributed.nightly import caption_archive
from hisem.errors import ResourceError, StorageError

TILE = 32


def size_on_disk(catalogue: str) -> int:
    rows = read_catalogue(catalogue).to_pylist()
    files = {path for row in rows for path in (*row["before"], *row["after"])}
    return sum(Path(path).stat().st_size for path in files if Path(path).exists())


def checked(forecast: Forecast, catalogue: str, tiles: int) -> None:
    assert (forecast.pairs, forecast.tiles, sum(forecast.failed.values())) == (7, tiles, 1)
    assert "nowhere.tif" in next(iter(forecast.failed))
    assert (forecast.raster_bytes, forecast.unsized) == (size_on_disk(catalogue), 1)
    assert forecast.pixel_bytes == tiles * 2 * TILE * TILE * 3
    assert 0 < forecast.hours < 0.1


@pytest.mark.parametrize("options", [ReadOptions(), ReadOptions(scaling="percentiles")])
def test_what_would_be_sharded(archive, ray_cluster, options):
    catalogue = storage.join(archive, "with_gone.parquet")
    forecast = forecast_shards(catalogue, TILE, storage.join(archive, "references.parquet"), options)
    checked(forecast, catalogue, 6 * 16)
    cpus = int(budget.most()["CPU"])
    assert "32 tiles were read" in forecast.assumption
    assert f"the cluster has {cpus} CPU(s) and none of them is at other work" in forecast.assumption


def test_what_would_be_captioned_leaves_the_output_alone(archive, bundle, ray_cluster, tmp_path):
    catalogue = storage.join(archive, "with_gone.parquet")
    pairs = read_catalogue(catalogue)
    options = CaptionOptions(str(tmp_path / "out"), bundle, "tiny", "1", TILE, captioning=Captioning(batch_size=8))
    checked(forecast_captions(pairs, options), catalogue, 6 * 16)
    assert not (tmp_path / "out").exists()
    caption_archive(pairs.slice(0, 2), options)
    before = {path: storage.read_bytes(path) for path in storage.list_files(tmp_path / "out")}
    again = forecast_captions(pairs, options)
    checked(again, catalogue, 4 * 16)
    assert again.already == 2 * 16
    assert {path: storage.read_bytes(path) for path in storage.list_files(tmp_path / "out")} == before
    with pytest.raises(StorageError, match="its tiles were read with"):
        forecast_captions(pairs, CaptionOptions(**{**vars(options), "reading": ReadOptions(bands=("1",))}))


def test_nothing_to_do_takes_no_time_but_the_index(archive, bundle, ray_cluster, tmp_path):
    gone = read_catalogue(storage.join(archive, "with_gone.parquet")).slice(6)
    forecast = forecast_captions(gone, CaptionOptions(str(tmp_path), bundle, "tiny", "1", TILE))
    assert (forecast.pairs, forecast.tiles, forecast.pixel_bytes) == (1, 0, 0)


def test_skipped_tiles_are_not_counted_as_captioned(archive, bundle, ray_cluster, tmp_path, monkeypatch):
    """The sample is the whole archive, so that what would be skipped is known exactly."""
    scenes = read_catalogue(storage.join(archive, "catalogue.parquet"))
    reading = ReadOptions(min_valid=1.0)
    whole = Captioning(batch_size=128)  # of which a sample has blocks
    options = CaptionOptions(str(tmp_path / "out"), bundle, "tiny", "1", TILE, captioning=whole, reading=reading)
    forecast = forecast_captions(scenes, options)
    night = caption_archive(scenes, options).night
    assert night.statuses["skipped"] > 0
    read, captioned = re.findall(r"(\d+) tiles took .* the (\d+) of them that are not skipped", forecast.assumption)[0]
    assert 0 < int(captioned) < int(read)
    assert forecast.usable < forecast.tiles == sum(night.statuses.values())
    monkeypatch.setattr("hisem.distributed.forecast.TILES", 128)
    shards = forecast_shards(storage.join(archive, "catalogue.parquet"), TILE, None, reading)
    assert shards.usable < shards.tiles


def test_hours_add_up(archive, ray_cluster):
    from hisem.distributed.index import index_archive

    index, _ = index_archive(read_catalogue(storage.join(archive, "catalogue.parquet")), TILE)
    sample = Sample(tiles=8, pairs=2, measuring=20.0, reading=4.0)
    # 6 pairs at 10 s on 4 CPUs, 96 tiles at 0.5 s, and 7 s of indexing
    assert 3600 * _hours(index, sample, 7.0, 4, 0.5) == pytest.approx(7 + 15 + 48)


def test_a_cluster_without_cpus_is_told_before_it_hangs(archive, bundle, ray_cluster, monkeypatch, tmp_path):
    monkeypatch.setattr(budget, "present", lambda: {"CPU": 0.0, "GPU": 0.0})
    monkeypatch.setattr(budget, "_reported", lambda: None)
    catalogue = storage.join(archive, "catalogue.parquet")
    for run in (
        lambda: shard_archive(catalogue, str(tmp_path / "out"), TILE),
        lambda: forecast_shards(catalogue, TILE),
    ):
        with pytest.raises(ResourceError, match="tiling needs 1 CPUs, the cluster has 0: 1 are missing"):
            run()
    with pytest.raises(ResourceError, match=r"captioning with \d captioner.*needs \d CPUs"):
        caption_archive(read_catalogue(catalogue), CaptionOptions(str(tmp_path), bundle, "tiny", "1", TILE))
    assert not (tmp_path / "out").exists()
