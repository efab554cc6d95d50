"""BDAM, bidirectional differential attention modulation: N layers over the tokens of both dates.

Shapes: B pairs, H x W token grid, L = H * W tokens, D channels, h heads, d = D / h.
Architecture page, section 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from hisem.errors import ConfigError
from hisem.ranges import Fraction, Heads, Range, require_ranges

LARGEST_MAP = 2**28
"""Most weights of the attention of one pair, heads times tokens squared: it is held as a whole, 1 GiB of float32."""


@dataclass(frozen=True)
class BDAMConfig:
    """Differential attention between the two dates."""

    layers: Annotated[int, Range(0, 64)] = 3
    """Number of layers; 0 leaves BDAM out (the paper's ablation)."""
    heads: Heads = 8
    """Attention heads; must divide the backbone's channels."""
    difference_weight: Fraction = 0.9
    """The constant lambda that weighs the subtracted attention map, in [0, 1]."""

    def __post_init__(self) -> None:
        require_ranges(self, "model.bdam.")


class Conditioning(nn.Module):
    """DFC: discrepancy-aware feature conditioning, shared by the two dates."""

    def __init__(self, dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.gate_in = nn.Linear(2 * dim, dim // 4)
        self.gate_out = nn.Linear(dim // 4, dim)
        self.local = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.norm = nn.LayerNorm(dim)

    def forward(self, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Conditioned before and after, and the discrepancy c, each B L D."""
        gate = self.gate_out(torch.relu(self.gate_in(torch.cat([before, after], dim=-1))))
        discrepancy = torch.sigmoid(gate) * (before - after).abs()  # B L D
        return self._date(before) + discrepancy, self._date(after) + discrepancy, discrepancy

    def _date(self, tokens: Tensor) -> Tensor:
        image = tokens.transpose(1, 2).unflatten(2, self.grid)  # B D H W
        return self.norm(tokens + self.local(image).flatten(2).transpose(1, 2))


class DateProjections(nn.Module):
    """What BDCI learns for one date: projections, the fusion gate, output and norm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.gate = nn.Linear(2 * dim, dim)
        self.out = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)

    def fuse(self, tokens: Tensor, difference: Tensor) -> Tensor:
        """Gate the differential features into the tokens, B L D each."""
        gate = torch.sigmoid(self.gate(torch.cat([tokens, difference], dim=-1)))
        return self.norm(self.out(gate * difference + (1 - gate) * tokens))


class Layer(nn.Module):
    """One BDAM layer: conditioning, spatial prior, bidirectional differential cross interaction."""

    def __init__(self, dim: int, grid: tuple[int, int], config: BDAMConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.difference_weight = config.difference_weight
        self.conditioning = Conditioning(dim, grid)
        self.addition_score = nn.Linear(dim, 1)
        self.deletion_score = nn.Linear(dim, 1)
        self.before = DateProjections(dim)
        self.after = DateProjections(dim)

    def forward(
        self, before: Tensor, after: Tensor, addition_scale: Tensor, deletion_scale: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The next before and after, and this layer's discrepancy, each B L D."""
        before, after, discrepancy = self.conditioning(before, after)
        addition = self.addition_score(discrepancy).squeeze(-1) * addition_scale  # B L
        deletion = self.deletion_score(discrepancy).squeeze(-1) * deletion_scale  # B L
        forth = self._attention(self.before.query(before), self.after.key(after), addition)  # P: B h L L
        back = self._attention(self.after.query(after), self.before.key(before), deletion)  # R: B h L L
        value_before = self._split(self.before.value(before))  # B h L d
        value_after = self._split(self.after.value(after))
        added = self._merge((forth - self.difference_weight * back) @ value_after)  # B L D
        deleted = self._merge((back - self.difference_weight * forth) @ value_before)
        return self.before.fuse(before, deleted), self.after.fuse(after, added), discrepancy

    def _attention(self, query: Tensor, key: Tensor, prior: Tensor) -> Tensor:
        """Attention weights B h L L with the prior B L on the diagonal, the same for all heads."""
        query, key = self._split(query), self._split(key)
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
        return torch.softmax(scores + torch.diag_embed(prior).unsqueeze(1), dim=-1)

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # B h L d

    @staticmethod
    def _merge(tokens: Tensor) -> Tensor:
        return tokens.transpose(1, 2).flatten(2)  # B L D


class BDAM(nn.Module):
    """The stack of layers; the scales of the spatial prior are shared by all of them."""

    def __init__(self, dim: int, grid: tuple[int, int], config: BDAMConfig) -> None:
        super().__init__()
        if config.layers and dim % config.heads:
            raise ConfigError(
                f"model.bdam.heads={config.heads}: must divide the backbone's {dim} channels; "
                f"use one of {[n for n in range(1, 17) if dim % n == 0]}."
            )
        if config.layers and (size := config.heads * (grid[0] * grid[1]) ** 2) > LARGEST_MAP:
            raise ConfigError(
                f"model.bdam.heads={config.heads}: with {grid[0]} x {grid[1]} tokens attention has {size} weights for "
                f"each pair, {LARGEST_MAP} are allowed; use fewer heads, a smaller image_size or a larger stride."
            )
        self.layers = nn.ModuleList(Layer(dim, grid, config) for _ in range(config.layers))
        if config.layers:
            self.addition_scale = nn.Parameter(torch.tensor(1.0))
            self.deletion_scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Modulated before and after, and the last layer's discrepancy, each B L D.

        Without layers the tokens pass unchanged and the discrepancy is their absolute difference.
        """
        if not self.layers:
            return before, after, (after - before).abs()
        for layer in self.layers:
            before, after, discrepancy = layer(before, after, self.addition_scale, self.deletion_scale)
        return before, after, discrepancy
