"""Rows of shards to tensors.

Shapes: B pairs, H x W pixels, T caption positions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hisem.errors import ConfigError, TrainingError
from hisem.text.vocabulary import NULL, UNCHANGED_SENTENCE, Vocabulary

PAIR_COLUMNS = ["tile_id", "before", "after", "references", "changed"]
"""What a batch is made of: decoded images beside the tile's id, references and label."""


@dataclass(frozen=True)
class Batch:
    """`before`, `after`: uint8 B 3 H W; `word_ids`: int64 B T, START first, END, NULL as padding;
    `changed`: bool B; `references`: all sentences of each tile.
    """

    tile_ids: list[str]
    before: Tensor
    after: Tensor
    word_ids: Tensor
    changed: Tensor
    references: list[list[str]]

    def __len__(self) -> int:
        return len(self.tile_ids)

    def to(self, device: torch.device) -> Batch:
        """This batch with its tensors on `device`."""
        return replace(
            self,
            before=self.before.to(device, non_blocking=True),
            after=self.after.to(device, non_blocking=True),
            word_ids=self.word_ids.to(device, non_blocking=True),
            changed=self.changed.to(device, non_blocking=True),
        )

    def split(self, count: int) -> list[Batch]:
        """`count` micro-batches in order, whose sizes differ by one pair at most; `count` is at most the pairs."""
        bounds = [len(self) * number // count for number in range(count + 1)]
        return [
            Batch(
                self.tile_ids[start:end],
                self.before[start:end],
                self.after[start:end],
                self.word_ids[start:end],
                self.changed[start:end],
                self.references[start:end],
            )
            for start, end in pairwise(bounds)
        ]


@dataclass(frozen=True)
class Collate:
    """Makes a batch of columns; which reference a tile shows depends on seed, epoch and tile alone."""

    vocabulary: Vocabulary
    max_length: int
    """Longest caption in words, END included."""
    seed: int
    epoch: int

    def __call__(self, columns: Mapping[str, Any]) -> Batch:
        """`columns`: `PAIR_COLUMNS`, images as uint8 arrays B H W 3."""
        tile_ids = [str(tile) for tile in columns["tile_id"]]
        references = [[str(sentence) for sentence in sentences] for sentences in columns["references"]]
        changed = [bool(flag) for flag in columns["changed"]]
        shown = [
            self.draw(tile, sentences) if flag else UNCHANGED_SENTENCE
            for tile, sentences, flag in zip(tile_ids, references, changed, strict=True)
        ]
        return Batch(
            tile_ids,
            image_tensor(columns["before"]),
            image_tensor(columns["after"]),
            self._words(shown),
            torch.tensor(changed),
            references,
        )

    def draw(self, tile_id: str, references: Sequence[str]) -> str:
        """The reference this tile shows in this epoch."""
        # Not a checksum: those of two epochs differ by the same bits for all tiles.
        digest = hashlib.sha256(f"{self.seed}/{self.epoch}/{tile_id}".encode()).digest()
        return references[int.from_bytes(digest[:8]) % len(references)]

    def _words(self, sentences: Sequence[str]) -> Tensor:
        rows = [self.vocabulary.encode(sentence, self.max_length - 1) for sentence in sentences]
        width = max(map(len, rows))
        return torch.tensor([row + [NULL] * (width - len(row)) for row in rows])


def image_tensor(images: Any) -> Tensor:
    """uint8 B 3 H W of arrays B H W 3. Copies, because Ray's batches are read-only."""
    stacked = np.array(images) if isinstance(images, np.ndarray) and images.dtype != object else np.stack(list(images))
    return torch.from_numpy(stacked).permute(0, 3, 1, 2)


def local_batch_sizes(rows: int, batch_size: int, rank: int, world: int) -> list[int]:
    """Pairs that worker `rank` of `world` has in each step of an epoch, where every worker has `rows` pairs.

    Over the workers they sum to exactly `batch_size` in every step, whatever the number of workers, and differ by
    one at most. The last step has the rest; a rest that is too small for a pair to each worker joins the step
    before. Raises `ConfigError` for more workers than pairs in a batch.
    """
    if batch_size < world:
        raise ConfigError(
            f"training.batch_size={batch_size}: {world} workers need a pair each in every step; raise it, or give "
            "fewer workers."
        )
    steps = (rows - 1) * world // batch_size + 1
    # Hermite's identity: floor((n + r) / world), summed over all ranks r, is n.
    ends = [(step * batch_size + rank) // world for step in range(steps)]
    return [end - start for start, end in pairwise([*ends, rows])]


def micro_batches(sizes: Sequence[int], largest: int) -> int:
    """Into how many micro-batches all workers split a step in which they have `sizes` pairs.

    As few as leave at most `largest` pairs in each (0: no limit), but never more than the smallest part has pairs.
    """
    return min(-(-max(sizes) // largest), min(sizes)) if largest else 1


def rebatch(columns: Iterable[Mapping[str, np.ndarray]], sizes: Sequence[int]) -> Iterator[dict[str, np.ndarray]]:
    """Cut a stream of columns, in chunks of any number of rows, into batches of exactly `sizes` rows, each 1 or more.

    The order stays. A batch is a view of its chunk, and a copy only where it lies over the border of two. Chunks
    behind the last batch are not asked for. Raises `TrainingError` where the stream ends early.
    """
    stream = (chunk for chunk in columns if _rows(chunk))  # an empty one may not know the shape of its rows
    rest: Mapping[str, np.ndarray] = {}  # of the last chunk
    came = 0
    for size in sizes:
        pieces: list[dict[str, np.ndarray]] = []
        missing = size
        while missing:
            chunk = rest if _rows(rest) else next(stream, None)
            if chunk is None:
                raise TrainingError(
                    f"the training split gave this worker {came} rows of the {sum(sizes)} expected in this epoch. Were "
                    "shards changed or removed meanwhile? Tile the archive again, or start a run under another name."
                )
            pieces.append({name: values[:missing] for name, values in chunk.items()})
            rest = {name: values[missing:] for name, values in chunk.items()}
            missing -= _rows(pieces[-1])
            came += _rows(pieces[-1])
        yield {name: _joined([piece[name] for piece in pieces]) for name in pieces[-1]}


def _rows(columns: Mapping[str, np.ndarray]) -> int:
    return len(next(iter(columns.values()), ()))


def _joined(pieces: list[np.ndarray]) -> np.ndarray:
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
