"""Rows of shards to tensors.

Shapes: B pairs, H x W pixels, T caption positions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

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
