"""The door of every table: ordering, casting, refusing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pyarrow as pa
import pytest

from hisem import schemas
from hisem.errors import CatalogueError, SchemaError
from hisem.schemas import CAPTION, CATALOGUE, INDEX, OPTIONAL_PAIR_FIELDS, REFERENCES, SHARD, conform, require_unique

OPTIONAL = [field.name for field in OPTIONAL_PAIR_FIELDS]


def pair(**over: Any) -> dict[str, Any]:
    return {"pair_id": "p", "before": ["b.tif"], "after": ["a.tif"], "before_time": None, "after_time": None} | over


def table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows))


def test_columns_are_ordered_cast_filled_and_dropped() -> None:
    noon = datetime(2024, 5, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    given = table(
        {"owner": "me", "after": ["a"], "before": ["b", "c"], "after_time": noon, "before_time": noon, "pair_id": "p"}
    )
    found = conform(given, CATALOGUE, "here", optional=OPTIONAL)
    assert found.schema == CATALOGUE
    assert found.to_pylist() == [
        {
            "pair_id": "p",
            "before": ["b", "c"],
            "after": ["a"],
            "before_time": datetime(2024, 5, 1, 10, tzinfo=UTC),
            "after_time": datetime(2024, 5, 1, 10, tzinfo=UTC),
            "split": None,
            "before_mask": None,
            "after_mask": None,
        }
    ]


def test_extra_columns_stay_behind_the_known_ones_only_when_asked() -> None:
    row = {"kinds": ["road"], "pair_id": "p", "row_off": 0, "col_off": 64, "references": ["a"], "changed": True}
    assert conform(table(row), REFERENCES, "here").column_names == REFERENCES.names
    kept = conform(table(row), REFERENCES, "here", extra=True)
    assert kept.column_names == [*REFERENCES.names, "kinds"]
    assert kept.schema.field("row_off").type == pa.int32()


def test_an_empty_table_conforms() -> None:
    assert conform(CAPTION.empty_table(), CAPTION, "here").equals(CAPTION.empty_table())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            table({"pair_id": "p", "before": ["b"]}),
            r"here: missing column\(s\) after, after_time, before_time; found pair_id, before",
        ),
        (pa.table({}), "here: missing .*found none"),
        (table(pair(pair_id=None), pair()).slice(0, 2), "here: column pair_id is null in 1 row.*first in row 0"),
        (table(pair(), pair(after=None), pair(after=None)), "here: column after is null in 2 row.*first in row 1"),
        (table(pair(before_time="yesterday")), "here: column before_time is string, which cannot become timestamp"),
        (table(pair(before="b.tif")), "here: column before is string, which cannot become list"),
        (table(pair(pair_id={"a": 1})), "here: column pair_id is struct.*cannot become string"),
    ],
)
def test_violations_name_table_column_and_row(given: pa.Table, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        conform(given, CATALOGUE, "here", optional=OPTIONAL)


@pytest.mark.parametrize("value", [2**31, 0.5, "six"])
def test_numbers_that_do_not_fit_are_refused_not_changed(value: object) -> None:
    row = {"pair_id": "p", "row_off": value, "col_off": 0, "references": ["a"], "changed": None}
    with pytest.raises(SchemaError, match="here: column row_off"):
        conform(table(row), REFERENCES, "here")


def test_a_column_that_occurs_twice_is_refused() -> None:
    doubled = pa.table([[1], [2]], names=["row_off", "row_off"])
    with pytest.raises(SchemaError, match=r"here: column\(s\) row_off occur more than once"):
        conform(doubled, REFERENCES, "here")


def test_uniqueness_names_at_most_five_values() -> None:
    ids = [f"p{number}" for number in range(9)]
    require_unique(pa.table({"pair_id": ids}), "pair_id", "here")
    doubled = pa.table({"pair_id": pa.chunked_array([ids, ids[:7], ["x"]])})
    with pytest.raises(
        CatalogueError, match=r"here: pair_id must be unique, but 7 value\(s\) repeat: p0, p1, p2, p3, p4\."
    ):
        require_unique(doubled, "pair_id", "here", CatalogueError)
    with pytest.raises(SchemaError, match="None, a"):
        require_unique(pa.table({"pair_id": ["a", None, "a", None]}), "pair_id", "here")


def test_tables_grow_from_one_another() -> None:
    """A tile's row can be followed from the catalogue to the captions by column alone."""
    assert set(CATALOGUE.names) < set(INDEX.names) < set(SHARD.names) & set(CAPTION.names)
    for wider in (INDEX, SHARD, CAPTION):
        assert all(wider.field(field.name) == field for field in CATALOGUE)
        assert len(set(wider.names)) == len(wider.names)
    assert INDEX.names[0] == "tile_id"
    for key in ("tile_id", "model_digest", "status", "captioned_at"):
        assert not CAPTION.field(key).nullable
    later = ("second_caption", "change_bbox", "change_map", "shift_x", "shift_y", "shift_confidence")
    assert all(CAPTION.field(name).nullable for name in later)
    assert schemas.STATUSES == ("ok", "skipped", "failed")
