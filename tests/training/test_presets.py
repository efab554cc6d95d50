"""Presets: that they build, and that the paper's is section 6 constant by constant."""

from __future__ import annotations

import pytest
import torch

from hisem.config import flatten, from_dict, to_dict
from hisem.errors import ConfigError
from hisem.model.hisem import HiSem
from hisem.text.vocabulary import Vocabulary
from hisem.training.presets import PRESETS, preset
from hisem.training.recipe import Experiment

SECTION_6 = {
    "training.epochs": 50,
    "training.batch_size": 64,
    "training.learning_rate": 1e-4,
    "training.optimizer": "adam",
    "training.weight_decay": 0.0,
    "training.schedule": "constant",
    "training.warmup_steps": 0,
    "training.clip_norm": 0.0,
    "training.router_weight": 0.8,
    "training.router_ramp": "cosine",
    "training.router_frozen_epochs": 4,
    "training.label_routing_epochs": 41,
    "training.tint": 0.0,
    "training.vocabulary_min_count": 6,  # seen more than 5 times
    "training.metric": "bleu_4",
}
SECTIONS_1_TO_5 = {
    "model.backbone.name": "vit_base_patch16_clip_quickgelu_224.openai",
    "model.backbone.image_size": [224, 224],
    "model.backbone.stride": None,
    "model.backbone.weights": "hub",
    "model.backbone.trainable_blocks": 4,
    "model.bdam.layers": 3,
    "model.bdam.heads": 8,
    "model.bdam.difference_weight": 0.9,
    "model.hasd.router": True,
    "model.hasd.threshold": 0.5,
    "model.hasd.hidden": 2048,
    "model.hasd.dropout": 0.1,
    "model.hasd.moe.experts": 8,
    "model.hasd.moe.top_k": 2,
    "model.hasd.moe.groups": 4,
    "model.hasd.moe.groups_kept": 2,
    "model.hasd.moe.shared_experts": 2,
    "model.hasd.moe.hidden": 2048,
    "model.hasd.moe.balance_weight": 0.001,
    "model.decoder.layers": 1,
    "model.decoder.heads": 8,
    "model.decoder.dropout": 0.1,
    "model.decoder.max_length": 41,
}
OURS = {
    "training.seed",
    "training.precision",
    "training.compile",
    "training.micro_batch",
    "training.patience",
    "training.meteor",
}
"""Values of the paper's preset that the paper says nothing of."""


def values(name: str) -> dict[str, object]:
    return flatten(to_dict(preset(name)))


@pytest.mark.parametrize("name", ["paper-levir-cc", "paper-whu-cdc"])
def test_paper_presets_are_the_architecture_page(name: str) -> None:
    found = values(name)
    stated = SECTION_6 | SECTIONS_1_TO_5
    assert {key: found[key] for key in stated} == stated
    assert set(found) - set(stated) - {"model.backbone.options"} == OURS


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("baseline", {"model.bdam.layers": 0, "model.hasd.router": False}),
        ("bdam-only", {"model.hasd.router": False}),
        ("hasd-only", {"model.bdam.layers": 0}),
    ],
)
def test_ablations_differ_from_the_paper_in_nothing_but_the_module(name: str, changed: dict[str, object]) -> None:
    paper, ablation = values("paper-levir-cc"), values(name)
    assert {key: value for key, value in ablation.items() if paper[key] != value} == changed


@pytest.mark.parametrize("name", ["baseline", "bdam-only", "hasd-only"])
def test_ablated_model_is_what_section_7_defines(name: str, vocabulary: Vocabulary) -> None:
    small = {
        "model": {
            "backbone": {
                "name": "resnet10t",
                "image_size": [32, 32],
                "stride": 8,
                "weights": "none",
                "trainable_blocks": -1,
                "options": {"channels": [8, 16, 24, 32], "stem_width": 8},
            },
            "hasd": {"hidden": 16, "moe": {"hidden": 8}},
        }
    }
    torch.manual_seed(0)
    model = HiSem(preset(name, small).model, vocabulary).eval()
    dim, grid = model.backbone.dim, model.backbone.grid
    before, after = torch.rand(2, 2, grid[0] * grid[1], dim)
    modules = {part.split(".")[1] for part, _ in model.change.named_parameters() if part.startswith("bdam")}
    with torch.no_grad():
        position = model.change.position()
        found = model.change(before, after)
        if name != "bdam-only":  # without BDAM: the positioned tokens themselves
            assert not modules
            through = model.change.bdam(before + position, after + position)
            assert torch.equal(through[0], before + position)
            assert torch.equal(through[1], after + position)
        if name != "hasd-only":  # without HASD: the unchanged path for every pair, and no class loss
            hasd = model.change.hasd
            b, a, _ = model.change.bdam(before + position, after + position)
            assert found.logits is None
            assert not found.changed.any()
            assert found.balance_loss == 0
            assert torch.allclose(found.memory, hasd.norm(b + a + hasd.unchanged(b, a)), atol=1e-6)
        else:
            assert found.logits is not None


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_builds_and_survives_plain_data(name: str) -> None:
    experiment = preset(name)
    assert from_dict(Experiment, to_dict(experiment), name) == experiment


@pytest.mark.parametrize("name", ["demo", "small"])
def test_presets_without_download_make_a_model(name: str, vocabulary: Vocabulary) -> None:
    model = HiSem(preset(name).model, vocabulary)
    assert model.backbone.grid == (8, 8)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_values_over_a_preset_and_unknown_keys() -> None:
    over = preset("demo", {"training": {"epochs": 3}, "model": {"hasd": {"moe": {"hidden": 64}}}})
    assert over.training.epochs == 3
    assert over.model.hasd.moe.hidden == 64
    assert over.training.batch_size == preset("demo").training.batch_size
    assert PRESETS["demo"]["model"]["hasd"]["moe"]["hidden"] == preset("demo").model.hasd.moe.hidden != 64
    with pytest.raises(ConfigError, match=r"mine\.yaml: .*model\.hasd\.moe\.expert .*did you mean.*experts"):
        preset("demo", {"model": {"hasd": {"moe": {"expert": 3}}}}, "mine.yaml")
