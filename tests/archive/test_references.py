"""References against a plain loop, and the ways in which they are refused."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hisem.archive.references import UNCHANGED_SENTENCE, join_references, read_references
from hisem.errors import ReferencesError
from hisem.schemas import REFERENCES, SHARD


def reference(pair_id: str, row_off: int, *sentences: str | None, changed: bool | None = None) -> dict[str, Any]:
    return {"pair_id": pair_id, "row_off": row_off, "col_off": 0, "references": list(sentences), "changed": changed}


def shards(*places: tuple[str, int]) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {
                "tile_id": f"{pair_id}/{row_off}-0-8",
                "pair_id": pair_id,
                "row_off": row_off,
                "col_off": 0,
                "height": 8,
                "width": 8,
                "before": ["b"],
                "after": ["a"],
                "status": "ok",
            }
            for pair_id, row_off in places
        ],
        schema=SHARD,
    )


def test_references_keep_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "references.parquet"
    table = pa.Table.from_pylist([reference("a", 0, "one")]).append_column("kinds", pa.array([["house"]]))
    pq.write_table(table.drop_columns("changed"), path)
    found = read_references(str(path))
    assert found.schema.names == [*REFERENCES.names, "kinds"]
    assert found.to_pylist()[0] | {"changed": None} == found.to_pylist()[0]


def test_join_keeps_rows_in_order_and_leaves_the_rest_null() -> None:
    places = [("b", 8), ("a", 0), ("c", 0), ("a", 8)]
    table = shards(*places)
    rows = [reference("a", 8, "two", changed=True), reference("b", 8, "three"), reference("x", 0, "lost")]
    joined = join_references(table, pa.Table.from_pylist(rows, schema=REFERENCES))
    assert joined.schema == SHARD
    assert joined.drop_columns(["references", "changed"]).equals(table.drop_columns(["references", "changed"]))
    assert joined.column("references").to_pylist() == [["three"], None, None, ["two"]]
    assert joined.column("changed").to_pylist() == [True, None, None, True]


@pytest.mark.parametrize(
    ("given", "sentences", "expected"),
    [
        (None, ["a house appears"], True),
        (None, ["nothing to see", UNCHANGED_SENTENCE], False),
        (None, [" The scene is the same as before ."], False),
        (True, [UNCHANGED_SENTENCE], True),
        (False, ["a house appears"], False),
    ],
)
def test_change_is_what_the_references_say_or_mean(given: bool | None, sentences: list[str], expected: bool) -> None:
    table = pa.Table.from_pylist([reference("a", 0, *sentences, changed=given)], schema=REFERENCES)
    assert join_references(shards(("a", 0)), table).column("changed").to_pylist() == [expected]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([reference("a", 0, "x"), reference("a", 0, "y")], "pair a, row_off 0, col_off 0 is described in two rows"),
        ([reference("a", 8)], "pair a, row_off 8, col_off 0 has no sentence"),
        ([reference("a", 0, "x", "  ")], "has no sentence, or an empty one"),
        ([reference("a", 0, "x", None)], "has no sentence, or an empty one"),
        ([{"pair_id": "a", "references": ["x"]}], r"missing column\(s\) col_off, row_off"),
    ],
)
def test_unusable_references_are_named(tmp_path: Path, rows: list[dict[str, Any]], reason: str) -> None:
    path = tmp_path / "references.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(ReferencesError, match=reason):
        read_references(str(path))


SOUND: dict[str, Any] = {
    "pair_id": pa.array(["a", "b"]),
    "row_off": pa.array([0, 8]),
    "col_off": pa.array([0, 8]),
    "references": pa.array([["one"], ["two"]]),
    "changed": pa.array([True, None]),
}


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("changed", pa.array([0.3, 1.0])),
        ("changed", pa.array([2, 0])),
        ("changed", pa.array([-1, None])),
        ("changed", pa.array([float("nan"), 0.0])),
        ("changed", pa.array([Decimal("0.5"), None])),
        ("changed", pa.array(["perhaps", "no"])),
        ("changed", pa.array([1, 0], pa.timestamp("s"))),
        ("changed", pa.array([[True], [False]])),
        ("row_off", pa.array([0.5, 8.0])),
        ("row_off", pa.array([float("nan"), 8.0])),
        ("col_off", pa.array([2**40, 8])),
        ("col_off", pa.array([True, False])),
        ("col_off", pa.array([0, 8], pa.date32())),
        ("col_off", pa.array(["0", "8.5"])),
        ("pair_id", pa.array([1.0, 2.0])),
        ("pair_id", pa.array([True, False])),
        ("references", pa.array([1, 2])),
        ("references", pa.array([[1], [2]])),
        ("references", pa.array(["one", "two"])),
        ("references", pa.array([[["one"]], [["two"]]])),
    ],
)
def test_values_that_would_become_others_are_refused(tmp_path: Path, column: str, values: pa.Array) -> None:
    pq.write_table(pa.table(SOUND | {column: values}), tmp_path / "r.parquet")
    with pytest.raises(ReferencesError, match=f"column {column} is"):
        read_references(f"{tmp_path}/r.parquet")


@pytest.mark.parametrize(
    "values",
    [
        pa.array([1, None], pa.int8()),
        pa.array([1.0, None]),
        pa.array([Decimal(1), None]),
        pa.array(["true", None]),
        pa.array(["1", None]).dictionary_encode(),
    ],
)
def test_flags_that_mean_true(tmp_path: Path, values: pa.Array) -> None:
    places = {"row_off": pa.array([0.0, 8.0]), "col_off": pa.array([0, 8], pa.uint64())}
    pq.write_table(pa.table(SOUND | places | {"changed": values}), tmp_path / "r.parquet")
    found = read_references(f"{tmp_path}/r.parquet")
    assert found.column("changed").to_pylist() == [True, None]
    assert found.column("row_off").to_pylist() == [0, 8]
