"""The Arrow schemas of every table that crosses a room's door, each defined once.

`conform` is the only way in: it orders, casts and checks a table, and refuses what violates the
schema instead of repairing it silently.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from hisem.errors import SchemaError

STRINGS = pa.list_(pa.string())
TIMESTAMP = pa.timestamp("us", tz="UTC")

PAIR_FIELDS = [
    pa.field("pair_id", pa.string(), nullable=False),
    pa.field("before", STRINGS, nullable=False),
    pa.field("after", STRINGS, nullable=False),
    pa.field("before_time", TIMESTAMP),
    pa.field("after_time", TIMESTAMP),
]
OPTIONAL_PAIR_FIELDS = [
    pa.field("split", pa.string()),
    pa.field("before_mask", STRINGS),
    pa.field("after_mask", STRINGS),
]
WINDOW_FIELDS = [
    pa.field("row_off", pa.int32(), nullable=False),
    pa.field("col_off", pa.int32(), nullable=False),
    pa.field("height", pa.int32(), nullable=False),
    pa.field("width", pa.int32(), nullable=False),
    pa.field("crs", pa.string()),
    pa.field("transform", pa.list_(pa.float64())),
    pa.field("geometry", pa.binary()),
]
QUALITY_FIELDS = [
    pa.field("status", pa.string(), nullable=False),
    pa.field("error", pa.string()),
    pa.field("before_valid", pa.float32()),
    pa.field("after_valid", pa.float32()),
    pa.field("shift_x", pa.float32()),
    pa.field("shift_y", pa.float32()),
    pa.field("shift_confidence", pa.float32()),
]

CATALOGUE = pa.schema(PAIR_FIELDS + OPTIONAL_PAIR_FIELDS)
"""One row a scene pair. `before` and `after` list one or more rasters; the masks are rasters whose
non-zero pixels are invalid."""

INDEX = pa.schema(
    [pa.field("tile_id", pa.string(), nullable=False), *CATALOGUE, *WINDOW_FIELDS],
)
"""One row a tile: a window of the pair's grid in pixels. `transform` holds the six coefficients
a, b, c, d, e, f of the *window's* affine transform; `geometry` is WKB in EPSG:4326. The three are null
for images without georeference."""

REFERENCES = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("row_off", pa.int32(), nullable=False),
        pa.field("col_off", pa.int32(), nullable=False),
        pa.field("references", STRINGS, nullable=False),
        pa.field("changed", pa.bool_()),
    ]
)
"""One row a tile that people described. More columns may follow (the synthetic archive's truth)."""

SHARD = pa.schema(
    [
        *INDEX,
        *QUALITY_FIELDS,
        pa.field("before_image", pa.binary()),
        pa.field("after_image", pa.binary()),
        pa.field("references", STRINGS),
        pa.field("changed", pa.bool_()),
    ]
)
"""A tile with its pixels (PNG, uint8 RGB) and references. `status` is ok, skipped or failed; the valid
fractions lie in [0, 1]; shifts are in pixels."""

BOUNDS = pa.struct([(name, pa.float64()) for name in ("xmin", "ymin", "xmax", "ymax")])
"""West, south, east and north in degrees: GeoParquet's covering, by which readers skip row groups."""

CAPTION = pa.schema(
    [
        *INDEX,
        pa.field("bbox", BOUNDS),
        *QUALITY_FIELDS,
        pa.field("caption", pa.string()),
        pa.field("changed", pa.bool_()),
        pa.field("change_probability", pa.float32()),
        pa.field("caption_logprob", pa.float32()),
        pa.field("second_caption", pa.string()),
        pa.field("change_bbox", pa.list_(pa.float64())),
        pa.field("change_map", pa.list_(pa.list_(pa.uint8()))),
        pa.field("model_name", pa.string(), nullable=False),
        pa.field("model_version", pa.string(), nullable=False),
        pa.field("model_digest", pa.string(), nullable=False),
        pa.field("captioned_at", TIMESTAMP, nullable=False),
    ]
)
"""One row a tile and model. The key is (`tile_id`, `model_digest`). `bbox` is of `geometry`; `change_bbox` holds west,
south, east and north (smallest x, smallest y, largest x, largest y) of the change in the tile's own CRS; `change_map`
is row by row."""

STAGED = pa.schema([*CAPTION, pa.field("before_thumbnail", pa.binary()), pa.field("after_thumbnail", pa.binary())])
"""Rows on their way to the table, with small pictures (JPEG) of changed tiles for the page of the night."""

OK, SKIPPED, FAILED = "ok", "skipped", "failed"
STATUSES = (OK, SKIPPED, FAILED)


def conform(
    table: pa.Table, schema: pa.Schema, where: str, *, optional: Iterable[str] = (), extra: bool = False
) -> pa.Table:
    """Return `table` with exactly the columns and types of `schema`.

    Columns named in `optional` may be absent and are then null; others are required. With `extra`,
    unknown columns are kept behind the known ones; without it they are dropped, as a catalogue may
    carry columns of its owner's. `where` names the table in messages.

    Raises `SchemaError` naming the column for a missing column, a cast that `converted` refuses, or a null where
    the schema forbids it.
    """
    twice = sorted(name for name, count in Counter(table.column_names).items() if count > 1)
    if twice:
        raise SchemaError(f"{where}: column(s) {', '.join(twice)} occur more than once; rename or drop one.")
    absent = set(schema.names) - set(table.column_names)
    missing = sorted(absent - set(optional))
    if missing:
        raise SchemaError(
            f"{where}: missing column(s) {', '.join(missing)}; found {', '.join(table.column_names) or 'none'}."
        )
    columns: list[pa.ChunkedArray | pa.Array] = []
    fields: list[pa.Field] = []
    for field in schema:
        if field.name in absent:
            column = pa.nulls(table.num_rows, field.type)
        else:
            try:
                column = converted(table.column(field.name), field.type)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
                raise SchemaError(
                    f"{where}: column {field.name} is {table.schema.field(field.name).type}, "
                    f"which cannot become {field.type}: {error}."
                ) from error
        if not field.nullable and column.null_count:
            row = pc.index(pc.is_null(column), True).as_py()
            raise SchemaError(
                f"{where}: column {field.name} is null in {column.null_count} row(s), first in row {row}."
            )
        columns.append(column)
        fields.append(field)
    if extra:
        for name in table.column_names:
            if name not in schema.names:
                columns.append(table.column(name))
                fields.append(table.schema.field(name))
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def converted(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """`column` as `kind`, where every value means the same: a number is no time, 0.3 neither true nor false.

    Raises `pa.ArrowTypeError` for another type, `pa.ArrowInvalid` for a value that would be lost.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not _means_the_same(column.type, kind):
        raise pa.ArrowTypeError(f"{_needed(kind)} needed")
    if pa.types.is_boolean(kind) and _is_number(column.type):
        values = column.cast(pa.float64())
        odd = values.filter(pc.invert(pc.is_in(values, pa.array([0.0, 1.0, None]))))
        if len(odd):
            raise pa.ArrowInvalid(f"{odd[0].as_py():g} is neither true (1) nor false (0)")
        column = values
    return column.cast(kind)


def _means_the_same(kind: pa.DataType, target: pa.DataType) -> bool:
    """True where values of `kind` may be values of `target`; Arrow refuses single ones that are not."""
    if pa.types.is_dictionary(kind):  # in a list; Arrow casts it as its values
        kind = kind.value_type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if kind == target or pa.types.is_null(kind):
        return True
    if pa.types.is_list(target):
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        # A whole number may be a name, as `pair_id`, but no list holds names.
        named = is_list and pa.types.is_integer(kind.value_type) and pa.types.is_string(target.value_type)
        return is_list and not named and _means_the_same(kind.value_type, target.value_type)
    if pa.types.is_timestamp(target):
        return is_text or pa.types.is_timestamp(kind) or pa.types.is_date(kind)
    if pa.types.is_string(target) or pa.types.is_binary(target):
        is_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        return is_text or is_bytes or (pa.types.is_integer(kind) and pa.types.is_string(target))
    if pa.types.is_boolean(target) or _is_number(target):
        return is_text or _is_number(kind)
    return pa.types.is_struct(target) and pa.types.is_struct(kind)


def _needed(kind: pa.DataType) -> str:
    """What a column of `kind` may hold, in words."""
    if pa.types.is_timestamp(kind):
        return "timestamps, dates or ISO 8601 text are"
    if pa.types.is_boolean(kind):
        return "true and false, or 1 and 0, are"
    if pa.types.is_list(kind):
        return f"a list in each row is; in it {_needed(kind.value_type)}"
    return "text is" if pa.types.is_string(kind) else f"{kind} is"


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def require_unique(table: pa.Table, column: str, where: str, error: type[Exception] = SchemaError) -> None:
    """Raise `error` naming up to five values of `column` that occur more than once."""
    counts = pc.value_counts(table.column(column).combine_chunks())
    doubled = [row["values"].as_py() for row in counts if row["counts"].as_py() > 1]
    if doubled:
        shown = ", ".join(sorted(map(str, doubled))[:5])
        raise error(f"{where}: {column} must be unique, but {len(doubled)} value(s) repeat: {shown}.")
