"""A table that has tiles twice: one row of each stays, the one captioned last."""

from __future__ import annotations

import itertools
import logging
import random
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from hisem import storage
from hisem.captions import repair as repair_module
from hisem.captions import table as captions
from hisem.captions.geoparquet import arranged, encoded
from hisem.captions.lock import exclusive
from hisem.captions.repair import _hashed, repair
from hisem.errors import StorageError
from tests.captions.test_table import JUNE, MAY, NEW, OLD, files, keys, row, rows


def put(output: str, name: str, *given: dict[str, Any]) -> None:
    """Write a published file as it is, past all checks."""
    storage.write_bytes(storage.join(output, "captions", name), encoded(arranged(rows(*given))))


def repaired(output: str) -> int:
    with exclusive(output, "test") as lock:
        return repair(lock)


@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_the_row_captioned_last_stays(
    place: str, request: pytest.FixtureRequest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = str(tmp_path) if place == "folder" else request.getfixturevalue("bucket")
    later = JUNE + timedelta(hours=1)
    may, june = "acquired=2024-05-31/model=1", "acquired=2024-06-01/model=1"
    put(
        output, f"{may}/a.parquet", row("p/0", caption="old"), row("p/1"), row("p/2", caption="new", captioned_at=later)
    )
    put(output, f"{may}/b.parquet", row("p/0", caption="new", captioned_at=later), row("p/2", caption="old"))
    put(output, f"{may}/c.parquet", row("p/3"), row("p/3"), row("p/3", model_digest=NEW))
    put(output, f"{june}/d.parquet", row("p/1", after_time=JUNE, captioned_at=MAY))
    put(output, f"{june}/e.parquet", row("q/0", after_time=JUNE))
    with caplog.at_level(logging.WARNING):
        assert repaired(output) == 4
    (record,) = (one for one in caplog.records if one.name == "hisem.captions.repair")
    assert "8 row(s) of 4 tile(s)" in record.getMessage()
    found = captions.read_captions(output).to_pylist()
    assert {(r["tile_id"], r["model_digest"]): r["caption"] for r in found} == {
        ("p/0", OLD): "new",
        ("p/1", OLD): "caption of p/1",
        ("p/2", OLD): "new",
        ("p/3", OLD): "caption of p/3",
        ("p/3", NEW): "caption of p/3",
        ("q/0", OLD): "caption of q/0",
    }
    assert len(found) == 6
    assert repaired(output) == 0


@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_undated_rows_of_version_0_1_move(place: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    output = str(tmp_path) if place == "folder" else request.getfixturevalue("bucket")
    old = "acquired=__HIVE_DEFAULT_PARTITION__/model=1"
    put(output, f"{old}/part-a-0.parquet", row("p/0", after_time=None), row("p/1", after_time=None))
    put(output, f"{old}/part-b-0.parquet", row("q/0", after_time=None))
    new = "acquired=0000-00-00/model=1"
    put(output, f"{new}/part-a-0.parquet", row("p/0", after_time=None), row("p/1", after_time=None))  # killed before
    put(output, "acquired=2024-06-01/model=1/part-c-0.parquet", row("r/0", after_time=JUNE))
    assert repaired(output) == 0
    names = sorted(path.rpartition("/captions/")[2] for path in captions.published_files(output))
    assert names == [
        f"{new}/part-a-0.parquet",
        f"{new}/part-b-0.parquet",
        "acquired=2024-06-01/model=1/part-c-0.parquet",
    ]
    assert sorted(captions.read_captions(output).column("tile_id").to_pylist()) == ["p/0", "p/1", "q/0", "r/0"]
    if place == "folder":
        dates = pd.read_parquet(tmp_path / "captions")["acquired"]
        assert sorted(dates) == ["0000-00-00"] * 3 + ["2024-06-01"]


def test_rows_that_another_run_moved_meanwhile_are_planned_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = str(tmp_path)
    later = JUNE + timedelta(hours=1)
    put(output, "a.parquet", row("p/0", caption="old"), row("p/1"), row("p/2"))
    put(output, "b.parquet", row("p/0", caption="new", captioned_at=later))
    calls: list[str] = []

    def rewritten_before(*args: Any) -> None:
        if not calls:  # as the last write of a run that was taken over does: the old row is at another place now
            put(output, "a.parquet", row("o/9"), row("p/0", caption="old"), row("p/1"), row("p/2"))
        calls.append(args[1])
        captions.rewrite(*args)

    monkeypatch.setattr(repair_module, "rewrite", rewritten_before)
    assert repaired(output) == 1
    assert len(calls) == 2
    found = {r["tile_id"]: r["caption"] for r in captions.read_captions(output).to_pylist()}
    assert found == {"p/0": "new", **{tile: f"caption of {tile}" for tile in ("o/9", "p/1", "p/2")}}


def test_files_without_doubled_rows_are_left_alone(tmp_path: Path) -> None:
    output = str(tmp_path)
    for name, tiles in {"a": ["p/0", "p/1"], "b": ["p/1"], "c": ["p/2"]}.items():
        put(output, f"{name}.parquet", *(row(tile) for tile in tiles))
    before = files(output)
    assert repaired(output) == 1
    changed = {name for name in before if files(output).get(name) != before[name]}
    assert len(changed) == 1
    assert changed <= {"captions/a.parquet", "captions/b.parquet"}


def test_any_table_gets_one_row_a_key_and_loses_no_key(tmp_path: Path) -> None:
    draw = random.Random(0)
    for number in range(10):
        output = str(tmp_path / str(number))
        newest: dict[tuple[str, str], int] = {}
        for file in range(draw.randrange(5)):
            given = []
            for _ in range(draw.randrange(1, 8)):
                key = f"p/{draw.randrange(6)}", draw.choice([OLD, NEW])
                minutes = draw.randrange(100)
                newest[key] = max(newest.get(key, 0), minutes)
                at = JUNE + timedelta(minutes=minutes)
                given.append(row(key[0], model_digest=key[1], captioned_at=at))
            put(output, f"{file}.parquet", *given)
        repaired(output)
        assert keys(output) == dict.fromkeys(newest, 1)
        found = captions.read_captions(output).to_pylist()
        times = {(r["tile_id"], r["model_digest"]): r["captioned_at"] for r in found}
        assert times == {key: JUNE + timedelta(minutes=minutes) for key, minutes in newest.items()}


def test_texts_that_differ_have_different_numbers_wherever_they_lie_in_a_column() -> None:
    texts = ["".join(some) for length in range(5) for some in itertools.product("ab/é", repeat=length)]
    column = pa.chunked_array([texts[:3], [], texts[3:]], pa.string())
    numbers = _hashed(column)
    assert len(np.unique(numbers)) == len(texts)
    assert _hashed(column.slice(5, 20)).tolist() == numbers[5:25].tolist()
    assert _hashed(pa.chunked_array([pa.array(["x", *texts]).slice(1)])).tolist() == numbers.tolist()
    assert _hashed(pa.chunked_array([], pa.string())).tolist() == []


def test_a_damaged_file_is_named_and_nothing_is_changed(tmp_path: Path) -> None:
    put(str(tmp_path), "a.parquet", row("p/0"))
    put(str(tmp_path), "b.parquet", row("p/0"))
    path = tmp_path / "captions" / "b.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:4] + bytes(200) + content[204:])
    before = files(str(tmp_path))
    with pytest.raises(StorageError, match=str(path)):
        repaired(str(tmp_path))
    assert files(str(tmp_path)) == before


def test_a_table_that_was_checked_is_read_again_only_where_its_files_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, reads = str(tmp_path), list[str]()
    real = repair_module._hashes
    monkeypatch.setattr(repair_module, "_hashes", lambda fs, path: reads.append(path) or real(fs, path))  # type: ignore[func-returns-value]
    put(output, "a.parquet", row("p/0"))
    assert repaired(output) == 0
    assert len(reads) == 1
    assert repaired(output) == 0
    assert len(reads) == 1
    put(output, "b.parquet", row("p/0"))
    assert repaired(output) == 1
    assert repaired(output) == 0
    assert len(reads) == 3
    Path(output, "_checked.json").write_bytes(b"damaged")
    assert repaired(output) == 0
