"""References: what people wrote about tiles, and how it is joined to their shards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from hisem import storage
from hisem.errors import ReferencesError, SchemaError
from hisem.schemas import REFERENCES, SHARD, conform

UNCHANGED_SENTENCE = "the scene is the same as before"
"""The sentence that marks a tile as unchanged where the references do not say so themselves."""

KEY = ("pair_id", "row_off", "col_off")


def read_references(uri: str) -> pa.Table:
    """Read references from Parquet, in `schemas.REFERENCES`; other columns are kept behind.

    Raises `ReferencesError` for missing columns, a tile that is described in two rows, or a tile without
    sentences; `StorageError` where the file cannot be read.
    """
    table = storage.read_parquet(uri)
    try:
        table = conform(table, REFERENCES, uri, optional=["changed"], extra=True)
    except SchemaError as error:
        raise ReferencesError(str(error)) from error
    _by_tile(table, uri)
    return table


@dataclass(frozen=True)
class Matches:
    """How references and the tiles of an index go together."""

    matched: int
    """Rows that describe a tile."""
    unmatched: int
    """Rows of pairs that were opened, but of places where no tile begins."""
    example: str | None
    """One of the latter."""


def match_references(references: pa.Table, index: pa.Table) -> Matches:
    """Count the references (schema REFERENCES) that describe a tile of `index`, among those of pairs in it."""
    pairs = set(index.column("pair_id").to_pylist())
    tiles = set(_keys(index))
    keys = [key for key in _keys(references) if key[0] in pairs]
    others = [key for key in keys if key not in tiles]
    example = "pair {}, row_off {}, col_off {}".format(*others[0]) if others else None
    return Matches(len(keys) - len(others), len(others), example)


def join_references(shards: pa.Table, references: pa.Table) -> pa.Table:
    """`shards` (schema SHARD) with `references` and `changed` of the tiles that people described.

    The rows keep their order; tiles that nobody described have null in both. Where `changed` is null in
    the references, a tile counts as unchanged if and only if `UNCHANGED_SENTENCE` is among its sentences.

    Raises `ReferencesError` as `read_references` does.
    """
    described = _by_tile(references, "references")
    found = [described.get(key) for key in _keys(shards)]
    sentences = [row and row["references"] for row in found]
    changed = [row and _is_changed(row) for row in found]
    for name, values in (("references", sentences), ("changed", changed)):
        field = SHARD.field(name)
        shards = shards.set_column(shards.column_names.index(name), field, pa.array(values, field.type))
    return shards


def _keys(table: pa.Table) -> list[tuple[Any, ...]]:
    return list(zip(*(table.column(name).to_pylist() for name in KEY), strict=True))


def _by_tile(references: pa.Table, where: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Sentences and change of each described tile. Raises `ReferencesError` for repeated or empty ones."""
    described: dict[tuple[Any, ...], dict[str, Any]] = {}
    rows = references.select(["references", "changed"]).to_pylist()
    for key, row in zip(_keys(references), rows, strict=True):
        place = f"{where}: pair {key[0]}, row_off {key[1]}, col_off {key[2]}"
        if key in described:
            raise ReferencesError(f"{place} is described in two rows; merge their sentences into one list.")
        if not row["references"] or not all(sentence and sentence.strip() for sentence in row["references"]):
            raise ReferencesError(f"{place} has no sentence, or an empty one; write one or remove the row.")
        described[key] = row
    return described


def _is_changed(row: dict[str, Any]) -> bool:
    if row["changed"] is not None:
        return bool(row["changed"])
    return UNCHANGED_SENTENCE not in (sentence.lower().strip(" .\t\n") for sentence in row["references"])
