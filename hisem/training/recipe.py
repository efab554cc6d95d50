"""The training recipe: one typed config tree. Architecture page, section 6; defaults are the paper's."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from hisem.errors import ConfigError
from hisem.model.hisem import HiSemConfig

Precision = Literal["float32", "bf16"]


@dataclass(frozen=True)
class TrainingConfig:
    """How the model is trained and which one is kept."""

    epochs: int = 50
    """Passes over the training split, numbered from 0."""
    batch_size: int = 64
    """Pairs per optimizer step over all workers together."""
    learning_rate: float = 1e-4
    """Step size at its highest."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """`adam` (the paper's) or `adamw` (decoupled weight decay)."""
    weight_decay: float = 0.0
    """Weight decay of the optimizer, 0 or more."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate over the run: `constant`, or `cosine` down to zero after the warm-up."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly from zero."""
    clip_norm: float = 0.0
    """Largest gradient norm of a step; 0 does not clip."""
    router_weight: float = 0.8
    """Weight of the image router's cross-entropy."""
    router_ramp: Literal["cosine", "constant"] = "cosine"
    """`cosine` raises the router's weight over the run as the paper does, `constant` does not."""
    router_frozen_epochs: int = 4
    """First epochs in which the router gets no gradient from its loss (only with the cosine ramp)."""
    label_routing_epochs: int = 41
    """First epochs in which the labels choose the path; afterwards the router does."""
    tint: float = 0.0
    """Colour augmentation: largest relative gain per date and channel, in [0, 1)."""
    vocabulary_min_count: int = 6
    """How often a word must occur in the training references to be in the vocabulary."""
    precision: Precision = "float32"
    """Arithmetic of forward and backward; `bf16` is autocast."""
    compile: bool = False
    """Compile backbone, BDAM and the decoder's step with torch.compile; the first steps take minutes."""
    metric: Literal["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d", "change_accuracy", "change_f1"] = (
        "bleu_4"
    )
    """Validation metric that chooses the best model."""
    seed: int = 0
    """Seed of initial weights, order of tiles, drawn references, dropout and augmentation."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "vocabulary_min_count"):
            if getattr(self, name) < 1:
                raise ConfigError(f"training.{name}={getattr(self, name)}: must be 1 or more.")
        for name in ("weight_decay", "warmup_steps", "clip_norm", "router_weight", "router_frozen_epochs", "seed"):
            if not 0 <= getattr(self, name) < math.inf:  # refuses NaN too
                raise ConfigError(f"training.{name}={getattr(self, name)}: must be 0 or more, and finite.")
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"training.learning_rate={self.learning_rate}: must be above 0, and finite.")
        if not 0 <= self.tint < 1:
            raise ConfigError(f"training.tint={self.tint}: must lie in [0, 1).")

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


@dataclass(frozen=True)
class Experiment:
    """Everything that decides what is learned: the model and its training."""

    model: HiSemConfig = field(default_factory=HiSemConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
