"""Named experiments. A preset is a set of values over the paper's defaults; files and flags go over it."""

from __future__ import annotations

from typing import Any, Literal

from hisem.config import from_dict, merge, to_dict
from hisem.model.hisem import HiSemConfig
from hisem.training.recipe import Experiment

PresetName = Literal["demo", "small", "paper-levir-cc", "paper-whu-cdc", "baseline", "bdam-only", "hasd-only"]

_WITHOUT_BDAM = {"bdam": {"layers": 0}}
_WITHOUT_HASD = {"hasd": {"router": False}}

PRESETS: dict[str, dict[str, Any]] = {
    # Learns the synthetic archive from random weights in minutes on two cores. In four epochs nothing is
    # overfitted, and dropout only slows the learning.
    "demo": {
        "model": {
            "backbone": {
                "name": "resnet10t",
                "image_size": [64, 64],
                "stride": 8,
                "weights": "none",
                "trainable_blocks": -1,
                "options": {"channels": [32, 96, 192, 384], "stem_width": 16},
            },
            "bdam": {"layers": 1, "heads": 4},
            "hasd": {
                "hidden": 192,
                "dropout": 0.0,
                "moe": {"experts": 4, "groups": 2, "groups_kept": 1, "hidden": 96},
            },
            "decoder": {"heads": 4, "dropout": 0.0, "max_length": 24},
        },
        "training": {
            "epochs": 4,
            "batch_size": 32,
            "learning_rate": 1.5e-3,
            "optimizer": "adamw",
            "weight_decay": 0.01,
            "schedule": "cosine",
            "warmup_steps": 100,
            "router_ramp": "constant",
            "label_routing_epochs": 3,
            "tint": 0.15,
            "vocabulary_min_count": 3,
            "meteor": False,  # Java takes longer to start than the rest to score
        },
    },
    # Small enough for a laptop's CPU, with real 256-pixel tiles and no download.
    "small": {
        "model": {
            "backbone": {
                "name": "resnet18",
                "image_size": [128, 128],
                "stride": 16,
                "weights": "none",
                "trainable_blocks": -1,
            },
            "bdam": {"layers": 2},
            "hasd": {"hidden": 512, "moe": {"hidden": 256}},
        },
        "training": {
            "epochs": 20,
            "batch_size": 16,
            "learning_rate": 3e-4,
            "optimizer": "adamw",
            "weight_decay": 0.01,
            "schedule": "cosine",
            "router_frozen_epochs": 1,
            "label_routing_epochs": 16,
            "vocabulary_min_count": 2,
            "meteor": False,
        },
    },
    "paper-levir-cc": {},
    "paper-whu-cdc": {},
    "baseline": {"model": _WITHOUT_BDAM | _WITHOUT_HASD},
    "bdam-only": {"model": _WITHOUT_HASD},
    "hasd-only": {"model": _WITHOUT_BDAM},
}


def preset(
    name: str, over: dict[str, Any] | None = None, where: str = "preset", model: HiSemConfig | None = None
) -> Experiment:
    """The experiment of a preset with the values of `over` (nested plain data) on top.

    `model`, where given, takes the place of the preset's own. Raises `ConfigError` for unknown keys and values that
    do not fit together.
    """
    base = PRESETS[name] if model is None else {**PRESETS[name], "model": to_dict(model)}
    return from_dict(Experiment, merge(base, over or {}), where)
