"""The benchmark's layout: the real subset, and damaged copies of a tiny one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image

from hisem.archive.levir_cc import CAPTIONS_FILE, benchmark_name, read_levir_cc
from hisem.archive.references import join_references
from hisem.archive.tiles import read_tiles, shard_table
from hisem.errors import CatalogueError, ReferencesError
from hisem.schemas import INDEX, REFERENCES


def entry(name: str = "train_000001.png", **changes: Any) -> dict[str, Any]:
    sentences = [{"raw": " a house appears .", "tokens": []}, {"raw": "a house is built", "tokens": []}]
    return {"filename": name, "split": "train", "changeflag": 1, "sentences": sentences} | changes


def write(folder: Path, content: Any) -> str:
    for date in "AB":
        (folder / "images" / "train" / date).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 32), "red").save(folder / "images" / "train" / date / "train_000001.png")
    (folder / CAPTIONS_FILE).write_text(content if isinstance(content, str) else json.dumps(content))
    return str(folder)


def test_the_subset_is_read_as_its_json_says(shared_data: Path) -> None:
    folder = shared_data / "levir_cc"
    index, references = read_levir_cc(str(folder))
    assert index.schema == INDEX
    assert references.schema == REFERENCES
    assert Counter(index.column("split").to_pylist()) == {"train": 6, "val": 1, "test": 62}
    assert sum(references.column("changed").to_pylist()) == 29
    assert {len(sentences) for sentences in references.column("references").to_pylist()} == {5}
    images = json.loads((folder / CAPTIONS_FILE).read_text())["images"]
    assert index.column("pair_id").to_pylist() == [Path(image["filename"]).stem for image in images]
    row = index.to_pylist()[0]
    assert row["tile_id"] == f"{row['pair_id']}/0-0-256"
    assert (row["height"], row["width"], row["crs"], row["geometry"]) == (256, 256, None, None)


def test_the_subset_becomes_shards(shared_data: Path) -> None:
    index, references = read_levir_cc(str(shared_data / "levir_cc"))
    tiles = list(read_tiles(index, 256))
    for tile in tiles:
        assert tile.status == "ok"
        for date, pixels in (("before", tile.before), ("after", tile.after)):
            assert pixels is not None
            assert np.array_equal(np.asarray(Image.open(tile.row[date][0]).convert("RGB")), pixels)
    shards = join_references(shard_table(tiles), references)
    assert shards.column("references").to_pylist() == references.column("references").to_pylist()
    assert shards.column("changed").null_count == 0


def test_a_tiny_copy(tmp_path: Path) -> None:
    index, references = read_levir_cc(write(tmp_path, {"images": [entry()]}))
    (row,) = index.to_pylist()
    assert (row["tile_id"], row["height"], row["width"]) == ("train_000001/0-0-40", 32, 40)
    assert row["after"] == [str(tmp_path / "images" / "train" / "B" / "train_000001.png")]
    assert references.to_pylist()[0]["references"] == ["a house appears .", "a house is built"]


@pytest.mark.parametrize(
    ("name", "benchmark"),
    [("LevirCCcaptions.json", "LEVIR-CC"), ("WHU_CDC_captions.json", "WHU-CDC"), ("my_captions.json", None)],
)
def test_the_captions_file_names_the_benchmark(tmp_path: Path, name: str, benchmark: str | None) -> None:
    folder = write(tmp_path, {"images": [entry()]})
    (tmp_path / CAPTIONS_FILE).rename(tmp_path / name)
    assert benchmark_name(folder) == benchmark
    assert read_levir_cc(folder)[0].num_rows == 1
    (tmp_path / "more_captions.json").write_text("{}")
    with pytest.raises(ReferencesError, match=r"2 captions files .*more_captions\.json"):
        benchmark_name(folder)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not valid JSON"),
        ("[]", "a list of at least one image"),
        ({"images": []}, "a list of at least one image"),
        ({"images": [{"filename": "x.png"}]}, r"images\[0\] lacks 'split'"),
        ({"images": [entry(), 7]}, r"images\[1\] lacks"),
        ({"images": [entry("../../secret.png")]}, "a plain file name"),
        ({"images": [entry(split="dev")]}, "split 'dev'"),
        ({"images": [entry(changeflag=None)]}, "changeflag None"),
        ({"images": [entry(sentences=[])]}, r"0 sentence\(s\)"),
    ],
)
def test_malformed_captions_are_named(tmp_path: Path, content: Any, reason: str) -> None:
    with pytest.raises(ReferencesError, match=reason) as raised:
        read_levir_cc(write(tmp_path, content))
    assert CAPTIONS_FILE in str(raised.value)


def test_absent_files_are_counted_and_named(tmp_path: Path) -> None:
    with pytest.raises(ReferencesError, match=r"LevirCCcaptions\.json: no such file.*give the folder that holds"):
        read_levir_cc(str(tmp_path))
    content = {"images": [entry(), *(entry(f"train_{number:06d}.png") for number in range(2, 9))]}
    with pytest.raises(CatalogueError, match=r"14 of the 16 images .* images/train/A/train_000002\.png.* unpack"):
        read_levir_cc(write(tmp_path, content))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: write(folder, {"images": [entry(), entry()]}), "pair_id must be unique"),
        (
            lambda folder: (folder / "images" / "train" / "A" / "train_000001.png").write_bytes(b"x"),
            "cannot be read as PNG",
        ),
    ],
)
def test_unusable_images_are_named(tmp_path: Path, damage: Callable[[Path], Any], reason: str) -> None:
    write(tmp_path, {"images": [entry()]})
    damage(tmp_path)
    with pytest.raises(CatalogueError, match=reason):
        read_levir_cc(str(tmp_path))


ROWS, COLUMNS = np.mgrid[0:32, 0:40]
PIXELS = np.stack([100 + 3 * ROWS, 200 - 2 * COLUMNS, 50 + ROWS + COLUMNS], axis=2).astype(np.uint8)
IMAGES: dict[str, tuple[Any, str]] = {
    "RGB": (Image.fromarray(PIXELS), "PNG"),
    "RGBA": (Image.fromarray(np.dstack([PIXELS, np.full((32, 40), 255, np.uint8)])), "PNG"),
    "JPEG": (Image.fromarray(PIXELS), "JPEG"),
    "gray": (Image.fromarray(PIXELS[..., 0]), "PNG"),
    "gray JPEG": (Image.fromarray(PIXELS[..., 0]), "JPEG"),
    "gray with alpha": (Image.fromarray(PIXELS).convert("LA"), "PNG"),
    "palette": (Image.fromarray(PIXELS).convert("P"), "PNG"),
    "bits": (Image.fromarray(PIXELS).convert("1"), "PNG"),
    "16 bit": (Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 256), "PNG"),
    "CMYK": (Image.fromarray(PIXELS).convert("CMYK"), "JPEG"),
    "GIF": (Image.fromarray(PIXELS), "GIF"),
    "TIFF": (Image.fromarray(PIXELS), "TIFF"),
}


@pytest.mark.parametrize("date", ["A", "B"])
@pytest.mark.parametrize("kind", IMAGES)
def test_images_of_other_kinds_are_read_right_or_named(tmp_path: Path, kind: str, date: str) -> None:
    write(tmp_path, {"images": [entry()]})
    image, kind_of_file = IMAGES[kind]
    path = tmp_path / "images" / "train" / date / "train_000001.png"
    image.save(path, format=kind_of_file)
    if kind not in ("RGB", "RGBA", "JPEG"):
        with pytest.raises(CatalogueError, match=rf"1 of the 2 images are not 8-bit RGB.*{date}/train_000001\.png"):
            read_levir_cc(str(tmp_path))
        return
    index, _ = read_levir_cc(str(tmp_path))
    (tile,) = read_tiles(index, 40)
    found = tile.before if date == "A" else tile.after
    assert found is not None
    # Decoders of JPEG differ by little.
    off = np.abs(found[:32].astype(int) - np.array(Image.open(path).convert("RGB")))
    assert off.max() <= (4 if kind == "JPEG" else 0)


def test_rgb_of_16_bits_is_named(tmp_path: Path) -> None:
    write(tmp_path, {"images": [entry()]})
    path = tmp_path / "images" / "train" / "B" / "train_000001.png"
    with rasterio.open(path, "w", driver="PNG", height=32, width=40, count=3, dtype="uint16") as file:
        file.write(PIXELS.transpose(2, 0, 1).astype(np.uint16) * 256)
    with pytest.raises(CatalogueError, match=r"B/train_000001\.png \(a PNG of mode RGB with 16 bits a band\)"):
        read_levir_cc(str(tmp_path))
