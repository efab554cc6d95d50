"""Captioning and scoring on Ray, against the model in a plain loop."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import rasterio
import ray
import shapely
import torch
from matplotlib.figure import Figure
from PIL import Image

from hisem import storage
from hisem.archive.catalogue import read_catalogue, write_catalogue
from hisem.archive.index import index_pair
from hisem.archive.options import DEFAULTS, ReadOptions
from hisem.archive.tiles import read_tiles
from hisem.captions.options import Captioning
from hisem.captions.table import read_captions
from hisem.distributed import evaluator
from hisem.distributed.archive import shard_archive
from hisem.distributed.captioner import Captioner, CaptionOptions, read_pixels
from hisem.distributed.evaluator import draw_explanations, draw_samples, evaluate
from hisem.distributed.nightly import caption_archive, caption_job
from hisem.distributed.session import cluster
from hisem.distributed.shipping import ship
from hisem.errors import BundleError, ConfigError, RasterError, SchemaError, StorageError
from hisem.model.bundle import digest
from hisem.model.hisem import HiSem
from hisem.report.explanation import ExplainedTile
from hisem.schemas import CAPTION, FAILED
from hisem.text.metrics import caption_scores
from hisem.training.batches import image_tensor

TILE = 32


@pytest.fixture
def catalogue(archive):
    return read_catalogue(storage.join(archive, "with_gone.parquet"))


def options(bundle: Path, output: Path, reading: ReadOptions = DEFAULTS, **captioning: Any) -> CaptionOptions:
    asked = Captioning(batch_size=8, captioners=1, **captioning)
    return CaptionOptions(str(output), bundle, "tiny", "1", TILE, reading=reading, captioning=asked)


def test_rows_equal_the_model_in_a_plain_loop(catalogue, bundle, ray_cluster, tmp_path):
    night = caption_archive(catalogue, options(bundle, tmp_path)).night
    model = HiSem.from_pretrained(bundle)
    found = {row["tile_id"]: row for row in read_captions(str(tmp_path)).to_pylist()}
    assert len(found) == 6 * 16 + 1
    assert night.statuses["failed"] == 1
    for pair in catalogue.to_pylist():
        if pair["pair_id"] == "gone":
            continue
        for tile in read_tiles(index_pair(pair, TILE), TILE):
            row = found[tile.row["tile_id"]]
            for name, value in tile.quality().items():
                assert row[name] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value)
            assert row["geometry"] == tile.row["geometry"]
            if tile.before is None or tile.after is None:
                assert row["caption"] is None
                continue
            caption = model.caption(image_tensor(tile.before[None]), image_tensor(tile.after[None]))[0]
            assert row["caption"] == caption.text
            assert row["changed"] == caption.changed
            assert row["change_probability"] == pytest.approx(caption.change_probability, abs=1e-5)
            assert row["caption_logprob"] == pytest.approx(caption.logprob, abs=1e-3)
            assert row["model_digest"] == digest(bundle)
            assert len(row["change_map"]) == model.backbone.grid[0]
            assert (row["change_bbox"] is not None) == caption.changed
            assert row["second_caption"] is None
    gone = found["gone/pair"]
    assert gone["status"] == "failed"
    assert "nowhere.tif" in gone["error"]


def test_a_captioner_takes_precision_and_compilation(catalogue, bundle, ray_cluster, monkeypatch, tmp_path):
    compiled: list[HiSem] = []
    autocast: list[bool] = []
    caption = HiSem.caption

    def spied(model, *args, **flags):
        autocast.append(torch.is_autocast_enabled("cpu"))
        return caption(model, *args, **flags)

    monkeypatch.setattr(HiSem, "compile", lambda model: compiled.append(model))
    monkeypatch.setattr(HiSem, "caption", spied)
    tiles = pa.concat_tables(read_pixels(index_pair(catalogue.to_pylist()[0], TILE), TILE))
    for chosen in (options(bundle, tmp_path), options(bundle, tmp_path, precision="bf16", compile=True)):
        Captioner(ship(bundle), chosen, "digest")(tiles)
    assert autocast == [False, True]
    assert len(compiled) == 1


def test_captions_are_of_pixels_as_the_options_read_them(catalogue, bundle, ray_cluster, tmp_path):
    reading = ReadOptions(bands=("3", "2", "1"), scaling="percentiles")
    some = catalogue.slice(0, 2)
    caption_archive(some, options(bundle, tmp_path, reading))
    model = HiSem.from_pretrained(bundle)
    found = {row["tile_id"]: row for row in read_captions(str(tmp_path)).to_pylist()}
    for pair in some.to_pylist():
        for tile in read_tiles(index_pair(pair, TILE, reading), TILE, reading):
            if tile.before is not None and tile.after is not None:
                caption = model.caption(image_tensor(tile.before[None]), image_tensor(tile.after[None]))[0]
                probability = found[tile.row["tile_id"]]["change_probability"]
                assert probability == pytest.approx(caption.change_probability, abs=1e-5)
    with pytest.raises(StorageError, match=r"its tiles were read with .*percentiles"):
        caption_archive(some, options(bundle, tmp_path))
    with pytest.raises(ConfigError, match="overlap is 32"):
        options(bundle, tmp_path, ReadOptions(overlap=TILE))


def test_a_tile_on_which_the_model_fails_is_a_row_and_no_other_is(catalogue, bundle, monkeypatch, tmp_path, caplog):
    """A batch that fails is tried in halves, down to the tile."""
    tiles = pa.concat_tables(read_pixels(index_pair(catalogue.to_pylist()[0], TILE), TILE))
    captioner = Captioner(ship(bundle), options(bundle, tmp_path), "digest")
    expected = captioner(tiles).to_pylist()
    before = np.frombuffer(tiles.column("before_pixels")[5].as_py(), np.uint8)
    caption, sizes = HiSem.caption, []

    def failing(model, older, newer, *args, **flags):
        sizes.append(len(older))
        if any(np.array_equal(image.permute(1, 2, 0).flatten().numpy(), before) for image in older):
            raise torch.OutOfMemoryError("out of memory\nand more")
        return caption(model, older, newer, *args, **flags)

    monkeypatch.setattr(HiSem, "caption", failing)
    found = captioner(tiles).to_pylist()
    assert max(sizes) == 16
    for number, (row, good) in enumerate(zip(found, expected, strict=True)):
        if number == 5:
            assert row["status"] == FAILED
            assert row["error"] == "the model failed on this tile, alone too (OutOfMemoryError: out of memory)."
            assert row["caption"] is None
        else:
            assert (row["status"], row["caption"]) == (good["status"], good["caption"])
    (last,) = [record for record in caplog.records if "on 1 tile(s)" in record.message]
    assert last.tile_id == found[5]["tile_id"]


def test_an_output_that_is_not_finite_is_a_failed_row(catalogue, bundle, monkeypatch, tmp_path):
    tiles = pa.concat_tables(read_pixels(index_pair(catalogue.to_pylist()[0], TILE), TILE))
    caption = HiSem.caption

    def broken(*args, **flags):
        return [replace(one, logprob=float("nan")) for one in caption(*args, **flags)]

    monkeypatch.setattr(HiSem, "caption", broken)
    rows = Captioner(ship(bundle), options(bundle, tmp_path), "digest")(tiles)
    assert set(rows.column("status").to_pylist()) == {FAILED}
    assert "not finite" in rows.column("error")[0].as_py()


def test_changed_tiles_bring_small_pictures_where_a_page_is_made(catalogue, bundle, tmp_path):
    tiles = pa.concat_tables(read_pixels(index_pair(catalogue.to_pylist()[0], TILE), TILE))
    rows = Captioner(ship(bundle), options(bundle, tmp_path), "digest")(tiles).to_pylist()
    for row, image in zip(rows, tiles.column("after_pixels").to_pylist(), strict=True):
        if row["changed"]:
            with Image.open(io.BytesIO(row["after_thumbnail"])) as picture:
                pixels = np.frombuffer(image, np.uint8).reshape(TILE, TILE, 3)
                assert np.abs(np.asarray(picture).astype(int) - pixels).mean() < 12
        else:
            assert row["after_thumbnail"] is None
    without = Captioner(ship(bundle), options(bundle, tmp_path, page=False), "digest")(tiles)
    assert without.column("after_thumbnail").null_count == len(without)


def test_a_bundle_that_does_not_fit_is_told_before_ray(catalogue, bundle, shards, archive, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(bundle, broken)
    words = json.loads((broken / "vocabulary.json").read_text())
    (broken / "vocabulary.json").write_text(json.dumps({**words, "surplus": len(words)}))
    with pytest.raises(BundleError, match="not of the same model"):
        evaluate(shards, broken)
    with pytest.raises(BundleError, match="not of the same model"):
        caption_job(
            storage.join(archive, "catalogue.parquet"),
            str(broken),
            str(tmp_path / "out"),
            tracking_uri=None,
            scratch=tmp_path,
        )
    assert not (tmp_path / "out").exists()


def test_an_expected_error_comes_out_of_a_task_as_itself(ray_cluster):
    def fail(_: pa.Table) -> pa.Table:
        raise RasterError("a.tif: broken")

    with pytest.raises(RasterError, match=r"^a\.tif: broken"), cluster():
        ray.data.from_arrow(pa.table({"x": [1]})).map_batches(fail, batch_format="pyarrow").materialize()


def test_shards_without_training_split_are_scored(archive, bundle, ray_cluster, tmp_path):
    whole = read_catalogue(storage.join(archive, "catalogue.parquet"))
    write_catalogue(whole.filter(pc.equal(whole.column("split"), "test")), str(tmp_path / "test.parquet"))
    out = str(tmp_path / "out")
    shard_archive(str(tmp_path / "test.parquet"), out, TILE, storage.join(archive, "references.parquet"))
    assert {row.captioner for row in evaluate(out, bundle).rows} == {"HiSem", "always unchanged"}


def test_an_output_of_another_schema_is_refused_and_kept(catalogue, bundle, ray_cluster, tmp_path):
    foreign = storage.join(str(tmp_path), "captions", "acquired=2020-01-01", "part.parquet")
    storage.write_parquet(CAPTION.empty_table().drop_columns(["caption"]), foreign)
    content = storage.read_bytes(foreign)
    with pytest.raises(SchemaError, match="caption"):
        caption_archive(catalogue, options(bundle, tmp_path))
    assert storage.read_bytes(foreign) == content
    assert storage.list_files(tmp_path) == [foreign]


def test_levir_cd_scenes_are_the_levir_cc_tiles(shared_data):
    """The windows that are captioned equal the benchmark's PNGs pixel for pixel, by the data's id rule."""
    compared = 0
    for scene in range(1, 5):
        paths = {d: str(shared_data / "levir_cd_scenes" / d / f"test_{scene}.tif") for d in ("before", "after")}
        pair = {"pair_id": f"test_{scene}", "before": [paths["before"]], "after": [paths["after"]]}
        table = pa.concat_tables(read_pixels(index_pair(pair, 256), 256))
        assert table.num_rows == 16
        with rasterio.open(paths["before"]) as raster:
            whole = shapely.box(*raster.bounds)
        union = shapely.union_all(shapely.from_wkb(table.column("geometry").to_pylist()))
        assert union.symmetric_difference(whole).area < 1e-9 * whole.area
        for row in table.to_pylist():
            number = (scene - 1) * 16 + row["row_off"] // 256 * 4 + row["col_off"] // 256 + 1
            for date, letter in (("before", "A"), ("after", "B")):
                image = shared_data / f"levir_cc/images/test/{letter}/test_{number:06d}.png"
                if image.exists():
                    with rasterio.open(image) as png:
                        expected = png.read((1, 2, 3)).transpose(1, 2, 0)
                    pixels = np.frombuffer(row[f"{date}_pixels"], np.uint8).reshape(256, 256, 3)
                    assert np.array_equal(pixels, expected)
                    compared += 1
    assert compared >= 2 * 50


def test_scores_equal_those_of_a_plain_loop(shards, bundle, ray_cluster, tmp_path, monkeypatch):
    done = evaluate(shards, bundle, "test")
    again = caption_scores([r.caption for r in done.results], [r.references for r in done.results], meteor=False)
    assert done.all_tiles.captions.bleu_4 == again.bleu_4
    assert {row.captioner for row in done.rows} == {"HiSem", "always unchanged", "most frequent change"}
    assert len(done.results) == done.all_tiles.captions.count
    draw_samples(shards, done.results, "test", str(tmp_path / "samples.png"))
    figures: list[list[ExplainedTile]] = []

    def drawn(tiles, experts):
        figures.append(tiles)
        return Figure()

    monkeypatch.setattr(evaluator, "explanation_figure", drawn)
    changed = replace(done, results=[replace(result, caption=f"of {result.tile_id}") for result in done.results])
    draw_explanations(shards, changed.results, bundle, "test", str(tmp_path / "explained.png"))
    assert (tmp_path / "explained.png").stat().st_size > 0
    (tiles,) = figures
    said = {result.caption: result.change_probability for result in changed.results}
    assert {tile.caption: tile.change_probability for tile in tiles}.items() <= said.items()  # not said anew
    with rasterio.open(tmp_path / "samples.png") as picture:
        assert picture.width == 1200


def test_captions_in_flight_are_copied_from_read_only_memory():
    frozen = np.zeros((1, 4, 4, 3), np.uint8)
    frozen.flags.writeable = False
    tensor = image_tensor(frozen)
    tensor += 1
    assert torch.equal(tensor, torch.ones(1, 3, 4, 4, dtype=torch.uint8))
