"""The training recipe: one typed config tree. Architecture page, section 6; defaults are the paper's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from hisem.errors import ConfigError
from hisem.model.hisem import HiSemConfig
from hisem.ranges import Dropout, Epochs, Range, Seed, require_ranges

Pairs = Annotated[int, Range(1, 65_536)]
Weight = Annotated[float, Range(0, 1000)]
FirstEpochs = Annotated[int, Range(0, 100_000)]

Precision = Literal["auto", "float32", "bf16"]
Metric = Literal[
    "bleu_1",
    "bleu_2",
    "bleu_3",
    "bleu_4",
    "meteor",
    "rouge_l",
    "cider_d",
    "s_m",
    "changed_bleu_4",
    "change_accuracy",
    "change_precision",
    "change_recall",
    "change_f1",
    "router_accuracy",
]
"""Validation metrics that can choose the best model: of all of them more is better."""

NEED_METEOR = ("meteor", "s_m")
"""Those that need Java."""


@dataclass(frozen=True)
class TrainingConfig:
    """How the model is trained and which one is kept."""

    epochs: Epochs = 50
    """Passes over the training split, numbered from 0."""
    batch_size: Pairs = 64
    """Pairs per optimizer step over all workers together."""
    micro_batch: Annotated[int, Range(0, 65_536)] = 0
    """Largest number of pairs that a worker computes at once; 0 computes its whole part of a batch. The gradients are
    added up; batch norm sees what is computed at once.
    """
    learning_rate: Annotated[float, Range(0, 100, above=True)] = 1e-4
    """Step size at its highest."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """`adam` (the paper's) or `adamw` (decoupled weight decay)."""
    weight_decay: Weight = 0.0
    """Weight decay of the optimizer, 0 or more."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate over the run: `constant`, or `cosine` down to zero after the warm-up."""
    warmup_steps: Annotated[int, Range(0, 100_000_000)] = 0
    """Steps over which the learning rate rises linearly from zero."""
    clip_norm: Annotated[float, Range(0, 1e9)] = 0.0
    """Largest gradient norm of a step; 0 does not clip."""
    router_weight: Weight = 0.8
    """Weight of the image router's cross-entropy."""
    router_ramp: Literal["cosine", "constant"] = "cosine"
    """`cosine` raises the router's weight over the run as the paper does, `constant` does not."""
    router_frozen_epochs: FirstEpochs = 4
    """First epochs in which the router gets no gradient from its loss (only with the cosine ramp)."""
    label_routing_epochs: FirstEpochs = 41
    """First epochs in which the labels choose the path; afterwards the router does."""
    tint: Dropout = 0.0
    """Colour augmentation: largest relative gain per date and channel, in [0, 1)."""
    vocabulary_min_count: Annotated[int, Range(1, 1_000_000)] = 6
    """How often a word must occur in the training references to be in the vocabulary."""
    precision: Precision = "auto"
    """Arithmetic of forward and backward: `bf16` is autocast, `auto` is `bf16` on a GPU that has it, else `float32`."""
    compile: bool = False
    """Compile backbone, BDAM and the decoder's step with torch.compile; the first steps take minutes."""
    metric: Metric = "bleu_4"
    """Validation metric that chooses the best model."""
    patience: FirstEpochs = 0
    """Epochs without a better `metric` after which the run ends; 0 never ends it early."""
    meteor: bool = True
    """Score METEOR and S*m in validation, where Java is there."""
    seed: Seed = 0
    """Seed of initial weights, order of tiles, drawn references, dropout and augmentation."""

    def __post_init__(self) -> None:
        require_ranges(self, "training.")
        if self.metric in NEED_METEOR and not self.meteor:
            raise ConfigError(
                f"training.metric={self.metric}: validation does not score it with training.meteor=False; set "
                "training.meteor=True, or choose another metric."
            )

    def router_gradient(self, epoch: int) -> float:
        """The factor w(epoch) on the gradient of the router's loss (section 6), in [0, 1]."""
        if self.router_ramp == "constant":
            return 1.0
        start = self.router_frozen_epochs - 1
        if epoch <= start:
            return 0.0
        return 0.5 * (1 - math.cos(math.pi * (epoch - start) / (self.epochs - start)))

    def router_reported(self, epoch: int) -> float:
        """The factor on the router's loss in the reported sum: 1 while it gets no gradient."""
        frozen = self.router_ramp == "cosine" and epoch < self.router_frozen_epochs
        return 1.0 if frozen else self.router_gradient(epoch)

    def rate(self, step: int, total: int) -> float:
        """The factor on the learning rate at `step` of `total`, in [0, 1]."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return 1.0
        progress = (step - self.warmup_steps) / max(1, total - self.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def stale(self, history: Sequence[Mapping[str, float]]) -> bool:
        """Whether the last `patience` epochs brought no better `metric`, so that the run ends.

        `history`: a row for each epoch, the metric under its name with `val_` before it. A row where it is missing
        or not a number is never better.
        """
        best, without = -math.inf, 0
        for row in history:
            value = row.get(f"val_{self.metric}", math.nan)
            best, without = (value, 0) if value > best else (best, without + 1)
        return 0 < self.patience <= without


@dataclass(frozen=True)
class Experiment:
    """Everything that decides what is learned: the model and its training."""

    model: HiSemConfig = field(default_factory=HiSemConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
