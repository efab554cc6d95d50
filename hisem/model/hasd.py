"""HASD, hierarchical adaptive semantic disentanglement: the image router and the two paths.

Shapes: B pairs, H x W token grid, L = H * W tokens, D channels, F feed-forward hidden size.
Architecture page, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hisem.config import from_dict, merge, to_dict
from hisem.errors import ConfigError
from hisem.model.moe import MoEConfig, TokenMoE
from hisem.ranges import Dropout, Fraction, Width, require_ranges

ROUTING = frozenset({"threshold", "top_k", "groups", "groups_kept", "balance_weight"})
"""Settings of `HASDConfig` and `MoEConfig` that no weight's shape depends on."""


@dataclass(frozen=True)
class HASDConfig:
    """The router over whole pairs and the paths behind it."""

    router: bool = True
    """Whether pairs are routed; without it every pair takes the unchanged path (the paper's ablation)."""
    threshold: Fraction = 0.5
    """A pair is changed when p(changed) is at least this, in [0, 1]; 0.5 equals the paper's arg max."""
    hidden: Width = 2048
    """Hidden size F of the unchanged path's feed-forward."""
    dropout: Dropout = 0.1
    """Dropout in the unchanged path's feed-forward, in [0, 1)."""
    moe: MoEConfig = field(default_factory=MoEConfig)

    def __post_init__(self) -> None:
        require_ranges(self, "model.hasd.")


def rerouted(config: HASDConfig, settings: dict[str, Any]) -> HASDConfig:
    """`config` with other `threshold` or, of the experts, `top_k`, `groups`, `groups_kept`, `balance_weight`:
    what may change once the weights are there.

    Raises `ConfigError` for a setting that the weights fix, values that do not fit together, and a model
    without a router, which sends no pair to the experts. Numbers may be NumPy's or 0-d tensors.
    """
    if not settings:
        return config
    if not config.router:
        raise ConfigError(
            f"{', '.join(settings)}: this model has no image router, so that all its pairs take the unchanged path: "
            "there is nothing to threshold, and no expert."
        )
    if fixed := sorted(set(settings) - ROUTING):
        raise ConfigError(
            f"{', '.join(fixed)}: the weights were made for another value; changeable in a trained model are "
            f"{', '.join(sorted(ROUTING))}. Train a model with the other value."
        )
    plain = {name: value.item() if hasattr(value, "item") else value for name, value in settings.items()}
    pairs = {"threshold": plain.pop("threshold")} if "threshold" in plain else {}
    return from_dict(HASDConfig, merge(to_dict(config), {**pairs, "moe": plain}), "routing")


class Fusion(nn.Module):
    """A residual convolution block that makes one feature map of two dates."""

    def __init__(self, dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.merge = nn.Conv2d(2 * dim, dim, 1)
        self.norm_in = nn.BatchNorm2d(dim)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)
        self.norm_mid = nn.BatchNorm2d(dim)
        self.pointwise = nn.Conv2d(dim, dim, 1)
        self.norm_out = nn.BatchNorm2d(dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Fused tokens B L D of before and after, B L D each; B may not be 0 in training."""
        both = torch.cat([before, after], dim=-1).transpose(1, 2).unflatten(2, self.grid)  # B 2D H W
        x = self.merge(both)  # B D H W
        y = self.conv(torch.relu(self.norm_in(x)))
        y = self.norm_out(self.pointwise(torch.relu(self.norm_mid(y))))
        return self.norm(torch.relu(x + y).flatten(2).transpose(1, 2))  # B L D


class UnchangedPath(nn.Module):
    """Fusion, then a post-norm feed-forward."""

    def __init__(self, dim: int, grid: tuple[int, int], config: HASDConfig) -> None:
        super().__init__()
        self.fusion = Fusion(dim, grid)
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, config.hidden),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden, dim),
            nn.Dropout(config.dropout),
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Tokens B L D of before and after, B L D each."""
        fused = self.fusion(before, after)
        return self.norm(fused + self.feed_forward(fused))


class ChangedPath(nn.Module):
    """Fusion, then the token-level mixture of experts, post-norm."""

    def __init__(self, dim: int, grid: tuple[int, int], config: MoEConfig) -> None:
        super().__init__()
        self.fusion = Fusion(dim, grid)
        self.moe = TokenMoE(dim, config)
        self.norm = nn.LayerNorm(dim)

    def forward(self, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens B L D, the balance loss, and the experts chosen B L k."""
        fused = self.fusion(before, after)
        mixed = self.moe(fused)
        return self.norm(fused + mixed.tokens), mixed.balance_loss, mixed.expert_index


class HASDOutput(NamedTuple):
    """`memory` B L D for the decoder; `logits` B 2 (class 1 = changed) or None without a router;
    `changed` B bool, the path each pair took; the scalar `balance_loss`; `experts` C L k of the C
    changed pairs, best first, or None where there are none.
    """

    memory: Tensor
    logits: Tensor | None
    changed: Tensor
    balance_loss: Tensor
    experts: Tensor | None


class HASD(nn.Module):
    """Sends each pair down exactly one path and sums it with both dates."""

    def __init__(self, dim: int, grid: tuple[int, int], config: HASDConfig) -> None:
        super().__init__()
        self.config = config
        self.unchanged = UnchangedPath(dim, grid, config)
        self.router = nn.Linear(dim, 2, bias=False) if config.router else None
        self.changed = ChangedPath(dim, grid, config.moe) if config.router else None
        self.norm = nn.LayerNorm(dim)

    def use(self, config: HASDConfig) -> None:
        """Route by the settings of `config`, which `rerouted` made from this one's."""
        self.config = config
        if self.changed is not None:
            self.changed.moe.use(config.moe)

    def choose(self, logits: Tensor) -> Tensor:
        """Which pairs take the changed path, B bool, by their logits B 2."""
        return logits.softmax(dim=-1)[:, 1] >= self.config.threshold

    def forward(self, before: Tensor, after: Tensor, changed: Tensor | None = None) -> HASDOutput:
        """Route before and after, B L D each. `changed` (B, bool) forces the path where given."""
        balance_loss = before.new_zeros(())
        if self.router is None or self.changed is None:
            path = self.unchanged(before, after)
            nowhere = torch.zeros(len(before), dtype=torch.bool, device=before.device)
            return HASDOutput(self.norm(before + after + path), None, nowhere, balance_loss, None)
        with torch.autocast(before.device.type, enabled=False):  # near the threshold rounding would decide
            logits = self.router((after - before).float().mean(dim=1))  # B 2
        if changed is None:
            changed = self.choose(logits)
        still, moved = (~changed).nonzero().flatten(), changed.nonzero().flatten()
        # An empty path is not run at all: batch norm sees only its own path's pairs.
        parts, experts = [], None
        if len(still):
            parts.append(self.unchanged(before[still], after[still]))
        if len(moved):
            tokens, balance_loss, experts = self.changed(before[moved], after[moved])
            parts.append(tokens)
        order = torch.cat([still, moved]).argsort()
        path = torch.cat(parts)[order]
        return HASDOutput(self.norm(before + after + path), logits, changed, balance_loss, experts)
