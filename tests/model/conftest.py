"""Small models for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hisem.config import from_dict, merge
from hisem.model import timm_net  # noqa: F401 - before tests import timm: it mends what a CPU build of torch lacks
from hisem.model.hisem import HiSem, HiSemConfig
from hisem.text.vocabulary import SPECIALS, Vocabulary

TINY: dict[str, Any] = {
    "backbone": {
        "name": "resnet10t",
        "image_size": [32, 48],
        "stride": 16,
        "weights": "none",
        "trainable_blocks": -1,
        "options": {"channels": [8, 8, 16, 16], "stem_width": 8},
    },
    "bdam": {"layers": 1, "heads": 2},
    "hasd": {"hidden": 24, "moe": {"experts": 4, "top_k": 2, "groups": 2, "groups_kept": 1, "hidden": 12}},
    "decoder": {"heads": 2, "max_length": 6},
}


@pytest.fixture(scope="session")
def words() -> Callable[[int], Vocabulary]:
    """A vocabulary of so many entries."""
    return lambda count: Vocabulary((*SPECIALS, *(f"w{number}" for number in range(len(SPECIALS), count))))


@pytest.fixture(scope="session")
def tiny(words: Callable[[int], Vocabulary]) -> Callable[..., HiSem]:
    """Random small models in eval mode: `tiny(seed, hasd={...}, ...)`, over the config above."""

    def make(seed: int = 0, vocabulary: int = 11, **over: Any) -> HiSem:
        torch.manual_seed(seed)
        return HiSem(from_dict(HiSemConfig, merge(TINY, over), "test"), words(vocabulary)).eval()

    return make
