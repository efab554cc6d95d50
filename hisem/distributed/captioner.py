"""Captioning actors: tiles of an index are read, captioned and handed on as rows, never written as pixels."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
import torch

from hisem.archive.blocks import TILES_PER_BLOCK
from hisem.archive.grid import require_tiling
from hisem.archive.options import DEFAULTS, ReadOptions
from hisem.archive.tiles import Tile, read_tiles
from hisem.captions.change import change_bbox, quantised
from hisem.captions.options import GREEDY, Captioning
from hisem.distributed import budget, session
from hisem.distributed.attempts import attempted, key
from hisem.distributed.index import tile_blocks
from hisem.distributed.shipping import Shipped, ship, unpack
from hisem.distributed.waiting import Asked
from hisem.model.hisem import Caption
from hisem.report.thumbnail import thumbnail
from hisem.schemas import FAILED, INDEX, OK, QUALITY_FIELDS, STAGED
from hisem.training.batches import image_tensor

log = logging.getLogger(__name__)

PIXELS = [pa.field("before_pixels", pa.binary()), pa.field("after_pixels", pa.binary())]
"""Both dates of a tile in flight: raw uint8 RGB, tile_size * tile_size * 3 bytes; null where not ok."""

READ = pa.schema([*INDEX, *QUALITY_FIELDS, *PIXELS])
READ_ROWS = 16
"""Tiles with pixels that a reader holds at once."""
PACKED = "rows"
"""Column of what an actor returns: a table as an Arrow stream."""
DEADLY = (
    "captioners died on this tile, alone too: their memory did not suffice, or a library crashed. "
    "Give --retry-failed to try it again."
)
"""Why a tile has no caption that nobody lived to tell of."""

Images = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class CaptionOptions:
    """What to caption, with what, and where the table lies."""

    output: str
    model: Path
    """Local folder of the bundle."""
    model_name: str
    model_version: str
    tile_size: int = 256
    reading: ReadOptions = DEFAULTS
    """How scenes are cut and read."""
    captioning: Captioning = GREEDY
    source: str = "catalogue"
    """Name of the catalogue, for people."""
    tracking: str | None = None
    """MLflow store for the run; None: no run."""

    def __post_init__(self) -> None:
        require_tiling(self.tile_size, self.reading.overlap)


def with_captioners(options: CaptionOptions) -> CaptionOptions:
    """`options` with a number of captioners. Raises `ResourceError` where they, and what feeds them, can never run."""
    asked = options.captioning
    count = asked.captioners or max(1, budget.places_for(asked.cpus, int(asked.gpu)))
    # A captioner with a GPU is fed by readers beside it.
    what, remedy = f"captioning with {count} captioner(s)", "Give fewer --captioners or --cpus, or a larger cluster."
    session.require(count * asked.cpus + int(asked.gpu), count if asked.gpu else 0, what, remedy)
    session.require_places(count, asked.cpus, int(asked.gpu), what, remedy)
    return replace(options, captioning=replace(asked, captioners=count))


def captioned(index: pa.Table, options: CaptionOptions, digest: str) -> Iterator[pa.Table]:
    """Stream the rows of the index through readers and captioners; tables of schema STAGED, as they are done."""
    if not len(index):
        return
    asked = options.captioning
    wanted = Asked(asked.captioners or 1, asked.cpus, int(asked.gpu), "captioner(s)")
    with attempted(wanted, log.info, log.warning) as (attempts, hear):
        dataset = _dataset(index, options, (ship(options.model), options, digest, attempts))
        for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            hear()
            for packed in block.column(PACKED):
                yield pa.ipc.open_stream(packed.as_buffer()).read_all()


def _dataset(index: pa.Table, options: CaptionOptions, captioner: tuple[Any, ...]) -> ray.data.Dataset:
    """One row with PACKED for each batch of the index; `captioner` is what captioners are made with."""
    size, reading, asked = options.tile_size, options.reading, options.captioning
    context = ray.data.DataContext.get_current()
    usual = context.target_max_block_size
    try:
        if not asked.gpu:
            # Each batch comes out when it is done, in one piece since it is packed as one row. By default Ray would
            # wait for all of an index block, minutes of a CPU's work, which would be lost with its captioner.
            context.target_max_block_size = 1
        dataset = tile_blocks(index, reading, _tiles_a_block(len(index), asked))
        if asked.gpu:
            dataset = dataset.map_batches(lambda block: read_pixels(block, size, reading), **session.BLOCKS)
        return dataset.map_batches(
            FedActor if asked.gpu else ReadingActor,
            fn_constructor_args=captioner,
            batch_format="pyarrow",
            batch_size=asked.batch if asked.gpu else None,
            compute=ray.data.ActorPoolStrategy(size=asked.captioners),
            num_cpus=asked.cpus,
            num_gpus=1 if asked.gpu else 0,
        )
    finally:
        context.target_max_block_size = usual


def _tiles_a_block(tiles: int, asked: Captioning) -> int:
    """Tiles that a captioner is given at once: not so many that in a small archive others have none."""
    shares = 2 * (asked.captioners or 1)
    return min(TILES_PER_BLOCK, max(asked.batch, math.ceil(tiles / shares)))


def read_pixels(
    block: pa.Table, tile_size: int, options: ReadOptions = DEFAULTS, at_once: int = READ_ROWS
) -> Iterator[pa.Table]:
    """The rows of an index block with status and pixels (schema READ), `at_once` a time; failures are rows."""
    tiles = read_tiles(block.select([name for name in block.column_names if name != "block"]), tile_size, options)
    while rows := [_row(tile) for tile in islice(tiles, at_once)]:
        yield pa.Table.from_pylist(rows, schema=READ)


def _row(tile: Tile) -> dict[str, object]:
    return {
        **tile.row,
        **tile.quality(),
        "before_pixels": None if tile.before is None else tile.before.tobytes(),
        "after_pixels": None if tile.after is None else tile.after.tobytes(),
    }


class Captioner:
    """An actor that holds the model and turns read tiles into rows of the captions table."""

    def __init__(self, shipped: Shipped, options: CaptionOptions, digest: str, attempts: Any = None) -> None:
        """`attempts`, an `Attempts` actor, hears what is begun and done; without it, nobody would begin anew."""
        self._attempts = attempts
        if attempts is not None:
            ray.get(attempts.start.remote())
        self._options, self._asked, self._digest = options, options.captioning, digest
        self._device = torch.device("cuda" if self._asked.gpu else "cpu")
        torch.set_num_threads(self._asked.cpus)
        self._model = unpack(shipped).to(self._device)
        if self._asked.compile:
            self._model.compile()

    def __call__(self, tiles: pa.Table) -> pa.Table:
        """Schema READ to schema STAGED, row by row in order."""
        rows = tiles.drop_columns([field.name for field in PIXELS]).to_pylist()
        readable = np.flatnonzero(pc.equal(tiles.column("status"), OK).to_numpy())
        if len(readable):
            some = tiles.take(readable)
            before, after = (images(some.column(field.name), self._options.tile_size) for field in PIXELS)
            ids = some.column("tile_id").to_pylist()
            for place, found in enumerate(self._captions(ids, before, after)):
                rows[readable[place]] |= self._columns(rows[readable[place]], found, before[place], after[place])
        made = stamps(self._options, self._digest)
        return pa.Table.from_pylist([row | made for row in rows], schema=STAGED)

    def may(self, tiles: pa.Table) -> bool:
        """Whether to begin with tiles: not where captioners have died on them too often."""
        return self._attempts is None or ray.get(self._attempts.begin.remote(key(tiles)))

    def done(self, tiles: pa.Table, rows: pa.Table) -> pa.Table:
        """`rows`, which tiles that were begun with have become."""
        if self._attempts is not None:
            self._attempts.end.remote(key(tiles))
        return rows

    def one_by_one(self, tiles: pa.Table, read: Callable[[pa.Table], pa.Table]) -> pa.Table:
        """The rows of tiles that captioners have died on together; one that they die on alone, too, is a failed row.

        `read` makes one of them schema READ.
        """
        parts = []
        for one in (tiles.slice(place, 1) for place in range(len(tiles))):
            if len(tiles) > 1 and self.may(one):
                parts.append(self.done(one, Captioner.__call__(self, read(one))))
            else:
                row = one.to_pylist()[0] | stamps(self._options, self._digest) | {"status": FAILED, "error": DEADLY}
                parts.append(pa.Table.from_pylist([row], schema=STAGED))
        return pa.concat_tables(parts)

    def _captions(self, ids: list[str], before: Images, after: Images) -> list[Caption | str]:
        """The caption of each tile, by id and images B H W 3, or why the model has none.

        A batch that fails is tried in halves.
        """
        try:
            return [self._finite(caption) for caption in self._say(before, after)]
        except RuntimeError as error:  # out of memory, and whatever else comes out of torch's operators
            reason = (str(error).splitlines() or [""])[0]
            told = "the model failed on %d tile(s) from %s on: %s"
            log.warning(told, len(ids), ids[0], reason, extra={"tile_id": ids[0]})
            if len(ids) == 1:
                return [f"the model failed on this tile, alone too ({type(error).__name__}: {reason})."]
        if self._asked.gpu:
            torch.cuda.empty_cache()
        half = len(ids) // 2
        halves = (slice(half), slice(half, None))
        return [found for some in halves for found in self._captions(ids[some], before[some], after[some])]

    def _say(self, before: Images, after: Images) -> list[Caption]:
        older, newer = (image_tensor(images).to(self._device) for images in (before, after))
        asked = self._asked
        with torch.autocast(self._device.type, torch.bfloat16, enabled=asked.precision == "bf16"):
            return self._model.caption(older, newer, asked.beam, explain=True, sure_unchanged=asked.sure_unchanged)

    @staticmethod
    def _finite(caption: Caption) -> Caption | str:
        numbers = [number for number in (caption.change_probability, caption.logprob) if number is not None]
        if all(map(math.isfinite, numbers)):
            return caption
        return f"the model's output for this tile is not finite (probability and log-probability {numbers})."

    def _columns(self, row: dict[str, Any], found: Caption | str, before: Images, after: Images) -> dict[str, Any]:
        """What a tile's row gains by its caption, or by the reason that there is none."""
        if isinstance(found, str):
            return {"status": FAILED, "error": found}
        assert found.explanation is not None
        strength = found.explanation.change_map
        columns: dict[str, Any] = {
            "caption": found.text,
            "changed": found.changed,
            "change_probability": found.change_probability,
            "caption_logprob": found.logprob,
            "second_caption": found.second,
            "change_map": quantised(strength).tolist(),
        }
        if found.changed:
            window = row["transform"], self._options.tile_size, row["height"], row["width"]
            columns["change_bbox"] = change_bbox(strength, *window)
            if self._asked.page:
                inside = slice(row["height"]), slice(row["width"])
                columns |= {"before_thumbnail": thumbnail(before[inside]), "after_thumbnail": thumbnail(after[inside])}
        return columns


class ReadingCaptioner(Captioner):
    """A captioner that reads its tiles itself, as those without a GPU do: no pixels are copied between processes."""

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:  # type: ignore[override]
        """An index block to tables of schema STAGED, one for each batch."""
        at_once, reader = self._asked.batch, self._read(block)
        for start in range(0, len(block), at_once):
            tiles = block.slice(start, at_once)
            if self.may(tiles):  # to read them as well: that is where a broken file would crash it
                yield self.done(tiles, super().__call__(next(reader)))
            else:
                yield self.one_by_one(tiles, lambda one: next(self._read(one)))
                reader = self._read(block.slice(start + at_once))

    def _read(self, tiles: pa.Table) -> Iterator[pa.Table]:
        return read_pixels(tiles, self._options.tile_size, self._options.reading, self._asked.batch)


class FedActor(Captioner):
    """A captioner that is fed with pixels, and packs its rows."""

    def __call__(self, tiles: pa.Table) -> pa.Table:
        """Schema READ to one row with PACKED."""
        if self.may(tiles):
            return _packed(self.done(tiles, super().__call__(tiles)))
        return _packed(self.one_by_one(tiles, lambda one: one))


class ReadingActor(ReadingCaptioner):
    """A captioner that reads, and packs its rows."""

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        """An index block to one row with PACKED for each batch."""
        yield from map(_packed, super().__call__(block))


def _packed(rows: pa.Table) -> pa.Table:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_table(rows)
    return pa.table({PACKED: pa.array([sink.getvalue().to_pybytes()], pa.binary())})


def images(column: pa.ChunkedArray, size: int) -> Images:
    """Raw pixels to uint8 B size size 3."""
    return np.stack([np.frombuffer(raw.as_buffer(), np.uint8).reshape(size, size, 3) for raw in column])


def stamps(options: CaptionOptions, digest: str) -> dict[str, Any]:
    """The columns that say which model a row is of, and when it was made."""
    return {
        "model_name": options.model_name,
        "model_version": options.model_version,
        "model_digest": digest,
        "captioned_at": datetime.now(UTC),
    }
