"""The synthetic archive against rasterio, phase correlation and its own truth."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from rasterio.warp import transform_bounds
from skimage.registration import phase_cross_correlation

from hisem import schemas
from hisem.archive.synthetic import Kind, SyntheticConfig, generate, named_kinds
from hisem.archive.synthetic.archive import make_scene
from hisem.archive.synthetic.conditions import MAX_SHIFT, NOON, levels
from hisem.archive.synthetic.geometry import FloatArray
from hisem.archive.synthetic.language import SAME_SCENE, references
from hisem.archive.synthetic.scene import CHANGE_MARGIN, TILE_METRES, Scene, compose
from hisem.archive.synthetic.truth import ANCHORS, Place, Truth
from hisem.errors import ConfigError, StorageError

CONFIG = SyntheticConfig(scenes=10, seed=3, scene_tiles=4, nodata_share=0.3, two_crs_share=0.2)
SMALL = SyntheticConfig(scenes=3, seed=5, scene_tiles=2, nodata_share=0.4, two_crs_share=0.4)
MARGIN = 12  # pixels around the composed scenes of these tests


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("synthetic") / "archive"
    generate(CONFIG, folder, workers=1)
    return folder


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [compose(np.random.default_rng(seed), 6, 64, MARGIN) for seed in range(4)]


def rows(folder: Path, table: str) -> list[dict[str, Any]]:
    return pq.read_table(folder / f"{table}.parquet").to_pylist()


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read(path: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with rasterio.open(path) as dataset:
        return dataset.read()


def test_bytes_depend_on_the_seed_but_not_on_the_workers(tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    found = []
    for workers in (1, 2):
        generate(SMALL, folder, workers=workers)
        found.append(digests(folder))
        folder.rename(tmp_path / f"by_{workers}")
    assert found[0] == found[1]
    assert set(found[0]) == {
        *(f"{date}/scene_{index:04d}.tif" for date in ("before", "after") for index in range(3)),
        "catalogue.parquet",
        "references.parquet",
    }
    make_scene(SyntheticConfig(scenes=3, seed=6, scene_tiles=2), 0, str(folder))
    assert digests(folder)["before/scene_0000.tif"] != found[0]["before/scene_0000.tif"]


def test_tables_conform_and_describe_every_tile(archive: Path) -> None:
    catalogue = pq.read_table(archive / "catalogue.parquet")
    assert schemas.conform(catalogue, schemas.CATALOGUE, "catalogue").equals(catalogue)
    table = pq.read_table(archive / "references.parquet")
    assert schemas.conform(table, schemas.REFERENCES, "references", extra=True).equals(table)

    pairs, tiles = catalogue.to_pylist(), table.to_pylist()
    offsets = range(0, 4 * 64, 64)
    expected = {(pair["pair_id"], row, column) for pair in pairs for row in offsets for column in offsets}
    assert {(tile["pair_id"], tile["row_off"], tile["col_off"]) for tile in tiles} == expected
    assert len(tiles) == len(expected)
    for tile in tiles:
        assert tile["changed"] == bool(tile["kinds"])
        assert len(tile["kinds"]) == len(tile["places"]) == len(tile["counts"]) == len(set(tile["kinds"]))
        assert max(abs(tile["true_shift_x"]), abs(tile["true_shift_y"])) <= MAX_SHIFT
        assert (SAME_SCENE in tile["references"]) != tile["changed"]
    assert 0.4 < np.mean([tile["changed"] for tile in tiles]) < 0.6
    assert [pair["split"] for pair in pairs].count("train") == 8
    assert {pair["split"] for pair in pairs} == {"train", "val", "test"}
    assert all(pair["before_time"] < pair["after_time"] for pair in pairs)
    assert len({pair["after_time"] for pair in pairs}) > 1


def test_rasters_are_georeferenced_as_the_catalogue_promises(archive: Path) -> None:
    pairs = rows(archive, "catalogue")
    foreign, cornered = set(CONFIG.two_crs_scenes()), CONFIG.nodata_scenes()
    assert (len(foreign), len(cornered)) == (2, 3)
    footprints = []
    for index, pair in enumerate(pairs):
        with rasterio.open(pair["before"][0]) as before, rasterio.open(pair["after"][0]) as after:
            assert (before.crs.to_string(), before.res, before.shape) == ("EPSG:32632", (1.0, 1.0), (256, 256))
            for dataset in (before, after):
                assert dataset.block_shapes == [(256, 256)] * 3
                assert dataset.profile["compress"] == "deflate"
                assert dataset.dtypes == ("uint8",) * 3
            assert (after.crs != before.crs) == (index in foreign)
            covered = transform_bounds(after.crs, before.crs, *after.bounds)
            inside = transform_bounds(before.crs, after.crs, *before.bounds, densify_pts=21)
            left, bottom, right, top = after.bounds
            assert left <= inside[0]
            assert bottom <= inside[1]
            assert right >= inside[2]
            assert top >= inside[3]
            if index not in foreign:
                assert covered == pytest.approx(tuple(before.bounds))
            empty = [np.mean(np.all(dataset.read() == 0, axis=0)) for dataset in (before, after)]
            assert [value == 0 for value in (before.nodata, after.nodata)] == [share > 0 for share in empty]
            assert any(empty) == (index in cornered)
            assert max(empty) < 1 / 12
            assert all(np.all(dataset.read(masked=True).compressed() > 0) for dataset in (before, after))
            footprints.append(before.bounds)
    for one, other in itertools.combinations(footprints, 2):
        assert rasterio.coords.disjoint_bounds(one, other)


def test_special_scenes_lie_in_all_splits() -> None:
    config = SyntheticConfig()
    splits = config.splits()
    assert [splits.count(split) for split in ("train", "val", "test")] == [98, 10, 12]
    for special in (config.two_crs_scenes(), config.nodata_scenes()):
        assert {splits[index] for index in special} == {"train", "val", "test"}


def noise_free(scene: Scene) -> tuple[FloatArray, FloatArray]:
    rng = np.random.default_rng(0)
    before, after = (levels(NOON.expose(scene.paint(after=date, sun=NOON.sun), rng)) for date in (False, True))
    return before.astype(np.float32), after.astype(np.float32)


def test_dates_differ_inside_the_changes_and_nowhere_else(scenes: list[Scene]) -> None:
    seen = set()
    for scene in scenes:
        before, after = noise_free(scene)
        difference = np.abs(after - before).max(axis=2)
        outside = np.ones(difference.shape, np.bool_)
        for changes in scene.changes.values():
            for change in changes:
                window = scene.ground.window(change.extent)
                part = difference[window.rows, window.columns]
                assert np.count_nonzero(part > 15) > 0.02 * 64 * 64, change.truth
                assert np.mean(part) > 5, change.truth
                outside[window.rows, window.columns] = False
                seen.add(change.truth.kind)
        assert not difference[outside].any()
    assert seen == set(Kind)


def test_changes_keep_their_place_and_their_distance_from_the_border(scenes: list[Scene]) -> None:
    for scene in scenes:
        for (row, column), changes in scene.changes.items():
            for change in changes:
                left, top = column * TILE_METRES, row * TILE_METRES
                extent = change.extent
                assert min(extent.left - left, extent.top - top) >= CHANGE_MARGIN - 1e-6
                beyond = max(extent.right - left, extent.bottom - top)
                assert beyond <= TILE_METRES - CHANGE_MARGIN + 1e-6
                if change.truth.place is not Place.ROADSIDE:
                    middle = (extent.left + extent.right) / 2 - left, (extent.top + extent.bottom) / 2 - top
                    for where, anchor in zip(middle, ANCHORS[change.truth.place], strict=True):
                        assert (where / TILE_METRES - 0.5) * (anchor - 0.5) >= 0


def test_phase_correlation_recovers_the_true_shift(archive: Path) -> None:
    tiles = rows(archive, "references")
    errors = []
    for pair in rows(archive, "catalogue"):
        index = int(pair["pair_id"][-4:])
        if index in CONFIG.two_crs_scenes() or index in CONFIG.nodata_scenes():
            continue
        before, after = (read(pair[date][0]).mean(axis=0) for date in ("before", "after"))
        found = []
        for tile in tiles:
            if tile["pair_id"] == pair["pair_id"] and not tile["changed"]:
                window = np.s_[tile["row_off"] : tile["row_off"] + 64, tile["col_off"] : tile["col_off"] + 64]
                back, _, _ = phase_cross_correlation(before[window], after[window], upsample_factor=20)
                found.append(-back - (tile["true_shift_y"], tile["true_shift_x"]))
        errors.append(np.abs(np.median(found, axis=0)).max())
    assert len(errors) >= 5
    assert np.mean(np.array(errors) < 0.25) >= 0.8


def test_every_reference_names_the_tiles_kinds_and_no_other(archive: Path) -> None:
    tiles = rows(archive, "references")
    assert len(tiles) == 160
    for tile in tiles:
        assert len(set(tile["references"])) == 5
        assert all(named_kinds(sentence) == set(tile["kinds"]) for sentence in tile["references"]), tile


def test_every_sentence_names_its_kinds_for_many_seeds() -> None:
    kinds, words = list(Kind), set()
    for seed in range(3000):
        rng = np.random.default_rng(seed)
        chosen = sorted(rng.permutation(len(kinds))[: seed % 4])
        truths = [
            Truth(kinds[index], list(Place)[rng.integers(len(Place))], int(rng.integers(1, 4))) for index in chosen
        ]
        sentences = references(truths, rng)
        assert len(set(sentences)) == 5
        for sentence in sentences:
            assert named_kinds(sentence) == {truth.kind.value for truth in truths}, sentence
            assert sentence == " ".join(sentence.lower().split())
            words |= set(sentence.split())
    assert 80 <= len(words) <= 130


@pytest.mark.parametrize(
    ("caption", "kinds"),
    [
        ("", set()),
        ("no houses are built along the road", set()),
        ("the road lies beside a pond", set()),
        ("many villas appear along the road", {Kind.HOUSE_BUILT}),
        ("A house and a road are built in the center.", {Kind.HOUSE_BUILT, Kind.ROAD_BUILT}),
        ("a house is built, and the trees near the pond are removed", {Kind.HOUSE_BUILT, Kind.TREES_CUT}),
        ("along the road some trees are planted while a pond dries up", {Kind.TREES_GROWN, Kind.POND_DRIED}),
    ],
)
def test_named_kinds_of_a_models_captions(caption: str, kinds: set[Kind]) -> None:
    assert named_kinds(caption) == {kind.value for kind in kinds}


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"scenes": 0}, "scenes is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"tile_size": 16}, "tile_size is 16"),
        ({"two_crs_share": 1.5}, "two_crs_share is 1.5"),
        ({"tile_size": 512, "scene_tiles": 64}, "32768 pixels"),
        ({"val_share": 0.5, "test_share": 0.5}, "leaves no scene for training"),
    ],
)
def test_configurations_that_cannot_be_used_are_refused(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        SyntheticConfig(**values)


def test_an_archive_is_kept_and_never_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    config = SyntheticConfig(scenes=1, scene_tiles=1)
    calls: list[tuple[int, int]] = []
    first = generate(config, folder, workers=1, progress=lambda done, total: calls.append((done, total)))
    assert (first.existing, first.tiles, calls) == (False, 1, [(1, 1)])
    before = digests(folder)
    second = generate(config, folder, workers=1)
    assert second.existing
    assert second.kinds == first.kinds
    with pytest.raises(StorageError, match=r"seed 0 \(asked: 1\)"):
        generate(SyntheticConfig(scenes=1, scene_tiles=1, seed=1), folder, workers=1)
    assert digests(folder) == before

    folder.rename(tmp_path / "moved")
    with pytest.raises(StorageError, match="was moved"):
        generate(config, tmp_path / "moved", workers=1)
    folder.mkdir()
    pq.write_table(pa.table({"pair_id": ["theirs"]}), folder / "catalogue.parquet")
    with pytest.raises(StorageError, match="not of a synthetic archive"):
        generate(config, folder, workers=1)


def test_the_command_writes_once_and_refuses_other_settings(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "pipelines" / "synthesize.py"
    common = [sys.executable, str(script), "--output", str(tmp_path / "a"), "--scene-tiles", "1", "--scenes"]
    done = subprocess.run([*common, "1", "--workers", "1"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 scene pairs (1 train), 1 tiles" in done.stdout
    refused = subprocess.run([*common, "2"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "scenes 1 (asked: 2)" in refused.stderr
    assert "Traceback" not in refused.stderr
