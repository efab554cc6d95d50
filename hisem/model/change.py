"""From the tokens of two dates to the decoder's memory: positions, BDAM, HASD.

Shapes: B pairs, H x W token grid, L = H * W tokens, D channels.
Architecture page, sections 1 (positions), 2 and 3.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hisem.errors import ConfigError
from hisem.model.bdam import BDAM, BDAMConfig
from hisem.model.hasd import HASD, HASDConfig, rerouted


class GridPosition(nn.Module):
    """A learned position: the first half of the channels by column, the second by row."""

    def __init__(self, dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        if dim % 2:
            raise ConfigError(f"model.backbone: {dim} channels cannot be halved for the position embedding.")
        self.column = nn.Parameter(torch.empty(grid[1], dim // 2))
        self.row = nn.Parameter(torch.empty(grid[0], dim // 2))
        nn.init.xavier_uniform_(self.column)
        nn.init.xavier_uniform_(self.row)

    def forward(self) -> Tensor:
        """The embedding of the grid, L D."""
        height, width = len(self.row), len(self.column)
        column = self.column.expand(height, width, -1)
        row = self.row.unsqueeze(1).expand(height, width, -1)
        return torch.cat([column, row], dim=-1).flatten(0, 1)


class ChangeOutput(NamedTuple):
    """`memory` B L D; `logits` B 2 (class 1 = changed), None without a router; scalar `balance_loss`;
    `changed` B, the path taken; `discrepancy` B L D of the last BDAM layer; `experts` C L k of the C
    changed pairs, best first, or None.
    """

    memory: Tensor
    logits: Tensor | None
    balance_loss: Tensor
    changed: Tensor
    discrepancy: Tensor
    experts: Tensor | None


class BothPaths(NamedTuple):
    """Each pair down either path: `unchanged` and `changed` B L D, the memories; `logits` B 2; `chosen` B bool,
    whether the router would choose the changed path; `experts` B L k of the changed path, best first.
    """

    unchanged: Tensor
    changed: Tensor
    logits: Tensor
    chosen: Tensor
    experts: Tensor


class ChangeEncoder(nn.Module):
    """Finds what changed between two token grids."""

    def __init__(self, dim: int, grid: tuple[int, int], bdam: BDAMConfig, hasd: HASDConfig) -> None:
        super().__init__()
        self.position = GridPosition(dim, grid)
        self.bdam = BDAM(dim, grid, bdam)
        self.hasd = HASD(dim, grid, hasd)

    @property
    def change_threshold(self) -> float:
        """p(changed) from which on a pair takes the changed path, in [0, 1]; settable as `set_routing` says."""
        return self.hasd.config.threshold

    @change_threshold.setter
    def change_threshold(self, value: float) -> None:
        self.set_routing(threshold=value)

    def set_routing(self, **settings: float) -> None:
        """See `hisem.model.hisem.HiSem.set_routing`."""
        self.hasd.use(rerouted(self.hasd.config, settings))

    def forward(self, before: Tensor, after: Tensor, changed: Tensor | None = None) -> ChangeOutput:
        """`before` and `after` are backbone tokens B L D; `changed` (B, bool) forces the path."""
        before, after, discrepancy = self._compare(before, after)
        routed = self.hasd(before, after, changed)
        return ChangeOutput(
            routed.memory, routed.logits, routed.balance_loss, routed.changed, discrepancy, routed.experts
        )

    def both_paths(self, before: Tensor, after: Tensor) -> BothPaths:
        """Send every pair down both paths, which share what comes before them; for models with a router."""
        batch = len(before)
        before, after, _ = self._compare(before, after)
        forced = torch.arange(2 * batch, device=before.device) >= batch
        routed = self.hasd(before.repeat(2, 1, 1), after.repeat(2, 1, 1), forced)
        assert routed.logits is not None
        assert routed.experts is not None
        logits = routed.logits[:batch]
        return BothPaths(routed.memory[:batch], routed.memory[batch:], logits, self.hasd.choose(logits), routed.experts)

    def _compare(self, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens with their positions through BDAM: both dates and the last discrepancy, B L D each."""
        position = self.position()
        return self.bdam(before + position, after + position)
