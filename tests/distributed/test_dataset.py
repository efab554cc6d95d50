"""What a folder of shards must hold to be trained or scored on, and how it is told what does not fit.

The shards of the synthetic archive are read, one thing is changed, and they are written to a folder of the test's own.
"""

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from hisem import storage
from hisem.archive import png
from hisem.distributed.dataset import pixels, read_splits
from hisem.distributed.session import cluster
from hisem.errors import DatasetError, StorageError
from hisem.model.hisem import HiSem
from hisem.schemas import SHARD
from hisem.text.vocabulary import SPECIALS, UNCHANGED_SENTENCE, tokenize
from tests.distributed.conftest import tiny

BOTH = ("train", "val")
Row = dict[str, Any]


@pytest.fixture
def rewritten(shards, tmp_path) -> Callable[[Callable[[list[Row]], None]], str]:
    """A copy of the shards whose rows, the 95 that are ok, sorted by id, a function has changed."""

    def write(change: Callable[[list[Row]], None]) -> str:
        table = pa.concat_tables([storage.read_parquet(path) for path in storage.list_files(shards)])
        rows = sorted((row for row in table.to_pylist() if row["status"] == "ok"), key=lambda row: row["tile_id"])
        change(rows)
        storage.write_parquet(pa.Table.from_pylist(rows, schema=SHARD), tmp_path / "shards" / "part-000000.parquet")
        return str(tmp_path / "shards")

    return write


def of_split(rows: list[Row], split: str) -> list[Row]:
    return [row for row in rows if row["split"] == split]


def test_the_vocabulary_is_of_the_training_split_alone(trained, shards):
    splits = read_splits(shards, ("train", "val", "test"))

    def frequent(*names: str) -> set[str]:
        references = [sentence for name in names for tile in splits[name].references for sentence in tile]
        counts = Counter(word for sentence in references for word in tokenize(sentence))
        return {word for word, count in counts.items() if count >= tiny().training.vocabulary_min_count}

    known = set(HiSem.from_pretrained(trained[1].bundle).vocabulary.words[len(SPECIALS) :])
    assert known == frequent("train")
    assert known != frequent("train", "val")  # else the test would not see words of the others get in
    assert known != frequent("train", "test")


def test_tiles_of_several_sizes_are_refused_with_their_ids(rewritten):
    def two_larger(rows: list[Row]) -> None:
        for row in rows[5:7]:
            row["tile_id"] = row["tile_id"].removesuffix("-32") + "-64"

    with pytest.raises(DatasetError, match=r"several sizes: 93 of 32 pixels \(scene_.* and 90 more\)") as caught:
        read_splits(rewritten(two_larger), BOTH)
    assert "; 2 of 64 pixels (scene_0000/32-32-64, scene_0000/32-64-64)" in str(caught.value)
    assert "--tile-size" in str(caught.value)


def test_windows_larger_than_the_name_says_count(rewritten):
    with pytest.raises(DatasetError, match=r"94 of 32 pixels .*; 1 of 40 pixels \(scene_0000/0-0-32\)"):
        read_splits(rewritten(lambda rows: rows[0].update(height=40)), BOTH)


def test_a_scene_smaller_than_a_tile_is_no_other_size(rewritten):
    split = read_splits(rewritten(lambda rows: rows[0].update(height=20, width=24)), ("train",))["train"]
    assert split.tile_size == 32


def test_an_image_of_another_size_is_refused_where_it_is_decoded(rewritten):
    def cropped(rows: list[Row]) -> None:
        row = of_split(rows, "val")[3]
        row["after_image"] = png.encode(png.decode(row["after_image"])[:16])

    split = read_splits(rewritten(cropped), ("val",))["val"]
    tile = sorted(split.rows.column("tile_id").to_pylist())[3]
    with pytest.raises(DatasetError, match=f"{tile}: its after image has 16 x 32 pixels, not 32 x 32"), cluster():
        pixels(split).count()


def test_no_references_at_all_are_refused_with_ids(rewritten):
    def silent(rows: list[Row]) -> None:
        for row in rows:
            row.update(references=None, changed=None)

    with pytest.raises(DatasetError, match=r"none of 95 tile.* 95 without references \(scene_0000/0-0-32, ") as caught:
        read_splits(rewritten(silent), BOTH)
    assert "--references of tile.py" in str(caught.value)


def test_what_is_left_out_is_told_in_one_line(rewritten, caplog):
    def damaged(rows: list[Row]) -> None:
        rows[0].update(status="skipped")
        rows[1].update(status="failed", references=None)
        for row in rows[2:6]:
            row.update(references=None, changed=None)
        rows[6].update(references=[])

    folder = rewritten(damaged)
    with caplog.at_level(logging.INFO, "hisem"):
        splits = read_splits(folder, (*BOTH, "test"))
    assert sum(map(len, splits.values())) == 95 - 7
    (line,) = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert line == (
        f"{folder}: 7 of 95 tile(s) are left out: 2 failed or skipped (scene_0000/0-0-32, scene_0000/0-32-32); "
        "5 without references (scene_0000/0-64-32, scene_0000/0-96-32, scene_0000/32-0-32 and 2 more)"
    )


def test_nothing_is_told_where_nothing_is_left_out(rewritten, caplog):
    folder = rewritten(lambda rows: None)
    with caplog.at_level(logging.INFO, "hisem"):
        read_splits(folder, BOTH)
    assert caplog.records == []


def test_a_pair_without_a_split_is_told_and_an_empty_split_refused(rewritten, caplog):
    def nowhere(rows: list[Row]) -> None:
        for row in of_split(rows, "val"):
            row["split"] = None

    folder = rewritten(nowhere)
    with (
        caplog.at_level(logging.INFO, "hisem"),
        pytest.raises(
            DatasetError, match=r"split val has no labelled tiles \(labelled tiles by split: test: 15, train: 64"
        ),
    ):
        read_splits(folder, BOTH)
    assert "16 of 95 tile(s) are left out: 16 in no split" in caplog.text


@pytest.mark.parametrize("references", [None, ["a road is built"]])
def test_a_pair_in_two_splits_is_refused_with_its_id(rewritten, references):
    def leak(rows: list[Row]) -> None:  # by a tile that nobody described as well
        row = of_split(rows, "train")[0]
        row.update(split="test", references=references, changed=references and True)

    with pytest.raises(DatasetError, match=r"1 pair.* more than one split: scene_\d+ in test and train\. .*catalogue"):
        read_splits(rewritten(leak), BOTH)


def test_a_pair_partly_in_no_split_is_refused(rewritten):
    with pytest.raises(DatasetError, match=r"scene_\d+ in none and "):
        read_splits(rewritten(lambda rows: rows[0].update(split=None)), BOTH)


def test_a_tile_that_occurs_twice_is_refused_with_its_files(rewritten):
    folder = rewritten(lambda rows: None)
    table = storage.read_parquet(Path(folder) / "part-000000.parquet")
    storage.write_parquet(table.slice(0, 5), Path(folder) / "copied" / "part-000001.parquet")
    with pytest.raises(DatasetError, match=r"5 tile.* more than once: scene_0000/0-0-32 in .* and 2 more\.") as caught:
        read_splits(folder, BOTH)
    assert "part-000000.parquet" in str(caught.value)
    assert "part-000001.parquet" in str(caught.value)


@pytest.mark.parametrize("sentence", ["", " ", ".", "? .", None])
def test_a_reference_without_words_is_refused_with_the_tile(rewritten, sentence):
    def silence(rows: list[Row]) -> None:
        rows[3]["references"] = ["a road is built", sentence]

    with pytest.raises(DatasetError, match=r"1 tile.* a reference without words: scene_0000/0-96-32\."):
        read_splits(rewritten(silence), BOTH)


def test_an_unknown_label_is_refused_with_the_tile(rewritten):
    with pytest.raises(DatasetError, match=r"1 tile.* changed is null: scene_0000/0-32-32\."):
        read_splits(rewritten(lambda rows: rows[1].update(changed=None)), BOTH)


def test_labels_that_all_sentences_contradict_are_told(rewritten, caplog):
    def contradict(rows: list[Row]) -> None:
        rows[0].update(changed=True, references=[UNCHANGED_SENTENCE, "The scene is the same as before."])
        rows[1].update(changed=True, references=[UNCHANGED_SENTENCE, "a road is built"])
        rows[2].update(changed=False, references=["nothing happened"])
        rows[3].update(changed=False, references=["two houses appear", "a road is built"])
        rows[4].update(changed=False, references=["two houses appear", "there is no difference"])

    read_splits(rewritten(contradict), BOTH)
    assert "1 tile(s) are labelled changed, though all references describe none: scene_0000/0-0-32; " in caplog.text
    assert "; 1 tile(s) are labelled unchanged" in caplog.text
    assert "describe a change: scene_0000/0-96-32; the label is followed" in caplog.text


def test_labels_that_mean_the_opposite_are_refused(rewritten):
    def invert(rows: list[Row]) -> None:
        for row in rows:
            row["changed"] = not row["changed"]

    with pytest.raises(DatasetError, match=r"the labels of all 95 tile.* contradict"):
        read_splits(rewritten(invert), BOTH)


@pytest.mark.parametrize("label", [True, False])
def test_a_split_of_one_label_is_logged_with_its_count(rewritten, caplog, label):
    def one_label(rows: list[Row]) -> None:
        for row in of_split(rows, "val"):
            row.update(changed=label, references=["a house appears" if label else UNCHANGED_SENTENCE])

    splits = read_splits(rewritten(one_label), BOTH)
    (line,) = [line for line in caplog.messages if "of split" in line]
    assert f"all {len(splits['val'])} tile(s) of split val are labelled {'changed' if label else 'unchanged'}" in line


@pytest.mark.parametrize("image", [b"", b"\x89PNG and no more", None, b"GIF89a"])
def test_a_damaged_image_ends_with_one_line_that_names_it(rewritten, ray_cluster, image):
    def damage(rows: list[Row]) -> None:
        of_split(rows, "val")[3]["after_image"] = image

    folder = rewritten(damage)
    split = read_splits(folder, BOTH)["val"]
    with pytest.raises(DatasetError, match=r"scene_\S+: its after image is damaged") as raised, cluster():
        pixels(split).to_pandas()
    assert "part-000000" in str(raised.value)


def test_damaged_pages_end_with_one_line_that_names_the_file(rewritten, ray_cluster):
    folder = rewritten(lambda rows: None)
    split = read_splits(folder, BOTH)["val"]
    path = Path(folder, "part-000000.parquet")
    content = bytearray(path.read_bytes())
    at = content.index(b"IDAT")  # of images, which are read last
    content[at + 40] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(StorageError, match=f"{path}: cannot be read as Parquet.*restore it") as raised, cluster():
        pixels(split).to_pandas()
    assert "Traceback" not in str(raised.value)
