"""A model of a few thousand parameters, and batches for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hisem.config import from_dict, merge
from hisem.model.hisem import HiSem, HiSemConfig
from hisem.text.vocabulary import SPECIALS, UNCHANGED_SENTENCE, Vocabulary
from hisem.training.batches import Batch, Collate

TINY: dict[str, Any] = {
    "backbone": {
        "name": "resnet10t",
        "image_size": [32, 32],
        "stride": 8,
        "weights": "none",
        "trainable_blocks": -1,
        "options": {"channels": [8, 16, 24, 32], "stem_width": 8},
    },
    "bdam": {"layers": 1, "heads": 2},
    "hasd": {"hidden": 24, "dropout": 0.0, "moe": {"experts": 4, "groups": 2, "groups_kept": 1, "hidden": 12}},
    "decoder": {"heads": 2, "dropout": 0.0, "max_length": 10},
}

SENTENCES = [
    "a road is built",
    "a house is built beside the road",
    "trees are removed",
    "the meadow becomes a parking lot at the top left",
]


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    words = sorted({word for sentence in [*SENTENCES, UNCHANGED_SENTENCE] for word in sentence.split()})
    return Vocabulary((*SPECIALS, *words))


@pytest.fixture(scope="session")
def tiny(vocabulary: Vocabulary) -> Callable[..., HiSem]:
    """Random small models: `tiny(seed, hasd={...}, ...)`, over the config above."""

    def make(seed: int = 0, **over: Any) -> HiSem:
        torch.manual_seed(seed)
        return HiSem(from_dict(HiSemConfig, merge(TINY, over), "test"), vocabulary)

    return make


@pytest.fixture(scope="session")
def columns() -> Callable[..., dict[str, Any]]:
    """Columns of so many tiles, as a dataset gives them: random pixels, every `period`-th tile unchanged."""

    def make(count: int, period: int = 2, size: int = 32, seed: int = 0) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        changed = np.array([bool(number % period) for number in range(count)])
        return {
            "tile_id": np.array([f"pair_{number:03d}/0_0" for number in range(count)], dtype=object),
            "before": rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8),
            "after": rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8),
            "references": [
                [SENTENCES[number % len(SENTENCES)]] if flag else [UNCHANGED_SENTENCE, "nothing has changed"]
                for number, flag in enumerate(changed)
            ],
            "changed": changed,
        }

    return make


@pytest.fixture(scope="session")
def batch(columns: Callable[..., dict[str, Any]], vocabulary: Vocabulary) -> Callable[..., Batch]:
    """A batch of such tiles."""
    return lambda count, **how: Collate(vocabulary, 10, seed=0, epoch=0)(columns(count, **how))
