"""The token-level mixture of experts with group-limited routing, as in DeepSeek-V2.

Shapes: B sequences, L tokens, N = B * L, D channels, E experts, F expert hidden size, k experts a token.
Architecture page, section 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from hisem.errors import ConfigError
from hisem.ranges import NumExperts, Range, Width, require_ranges

ALIGNMENT = 8
"""Grouped matrix products of torch take rows of whole 16 bytes: so many values of bfloat16."""

MOST_EXPERTS = 64
"""Experts that one token may be sent to."""


@dataclass(frozen=True)
class MoEConfig:
    """Experts of the changed path and how tokens choose among them."""

    experts: NumExperts = 8
    """Number of routed experts E."""
    top_k: Annotated[int, Range(1, MOST_EXPERTS)] = 2
    """Experts a token is sent to; at most groups_kept * experts / groups, and 64."""
    groups: NumExperts = 4
    """Equal groups the experts form, in order; divides `experts`."""
    groups_kept: NumExperts = 2
    """Best groups among which a token chooses; at most `groups`."""
    shared_experts: Annotated[int, Range(0, 64)] = 2
    """Experts every token passes, built as one of hidden size D * shared_experts; 0 for none."""
    hidden: Width = 2048
    """Hidden size F of a routed expert."""
    balance_weight: Annotated[float, Range(0, 1000)] = 0.001
    """Weight alpha of the load-balance loss, 0 or more."""

    def __post_init__(self) -> None:
        require_ranges(self, "model.hasd.moe.")
        if self.experts % self.groups:
            raise ConfigError(
                f"model.hasd.moe.groups={self.groups}: must divide experts={self.experts} into equal groups."
            )
        if self.groups_kept > self.groups:
            raise ConfigError(f"model.hasd.moe.groups_kept={self.groups_kept}: must be at most groups={self.groups}.")
        reachable = self.groups_kept * self.experts // self.groups
        if self.top_k > reachable:
            raise ConfigError(
                f"model.hasd.moe.top_k={self.top_k}: only {reachable} experts stand in the {self.groups_kept} kept "
                "groups; lower top_k or raise groups_kept."
            )


class Choice(NamedTuple):
    """The experts of every token. `chosen` N k (int64), best first, `weight` N k, `scores` N E in (0, 1), float32."""

    chosen: Tensor
    weight: Tensor
    scores: Tensor


class Gate(nn.Module):
    """Group-limited top-k choice of experts from sigmoid scores."""

    def __init__(self, dim: int, config: MoEConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.experts, dim))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # nn.Linear's default

    def forward(self, tokens: Tensor) -> Choice:
        """The choice for tokens N D. Scores are in float32 whatever the autocast."""
        config = self.config
        with torch.autocast(tokens.device.type, enabled=False):
            scores = torch.sigmoid(F.linear(tokens.float(), self.weight.float()))  # N E
        grouped = scores.unflatten(-1, (config.groups, -1))  # N G E/G
        best = grouped.amax(dim=-1).topk(config.groups_kept, dim=-1, sorted=False).indices  # N G'
        kept = torch.zeros_like(grouped[..., 0], dtype=torch.bool).scatter_(-1, best, True)
        eligible = grouped.masked_fill(~kept.unsqueeze(-1), -1.0).flatten(-2)  # N E; real scores are > 0
        index = eligible.topk(config.top_k, dim=-1).indices  # N k, best first
        return Choice(index, scores.gather(-1, index), scores)


class Experts(nn.Module):
    """E SwiGLU experts whose weights are stacked, so that tokens gathered per expert need no copies."""

    def __init__(self, dim: int, hidden: int, count: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.empty(count, hidden, dim))
        self.up = nn.Parameter(torch.empty(count, hidden, dim))
        self.down = nn.Parameter(torch.empty(count, dim, hidden))
        for weight in (self.gate, self.up, self.down):
            bound = 1 / math.sqrt(weight.shape[-1])  # nn.Linear's default, per expert
            nn.init.uniform_(weight, -bound, bound)

    def forward(self, tokens: Tensor, counts: Tensor) -> Tensor:
        """Outputs N D for tokens N D sorted by expert, `counts` E of them for each expert (0 allowed)."""
        if tokens.is_cuda and tokens.dtype == torch.bfloat16 and self._groupable(tokens.device):
            return self.grouped(tokens, counts)
        return self.looped(tokens, counts)

    def _groupable(self, device: torch.device) -> bool:
        """Whether torch has grouped products of these sizes on this GPU (Ampere or newer)."""
        aligned = not any(size % ALIGNMENT for size in self.gate.shape[1:])
        return aligned and torch.cuda.get_device_capability(device) >= (8, 0)

    def grouped(self, tokens: Tensor, counts: Tensor) -> Tensor:
        """`forward` in three grouped matrix products, without a synchronisation."""
        ends = counts.cumsum(0).to(torch.int32)
        gate, up, down = (weight.to(tokens.dtype).transpose(-2, -1) for weight in (self.gate, self.up, self.down))
        hidden = F.silu(F.grouped_mm(tokens, gate, offs=ends)) * F.grouped_mm(tokens, up, offs=ends)
        return F.grouped_mm(hidden, down, offs=ends)

    def looped(self, tokens: Tensor, counts: Tensor) -> Tensor:
        """`forward` expert by expert."""
        parts = tokens.split(counts.tolist())  # the only synchronisation, one for all experts
        # Unbound at once: the gradient of an index is as large as all experts together, once per expert.
        weights = zip(self.gate.unbind(), self.up.unbind(), self.down.unbind(), strict=True)
        outputs = [
            F.linear(F.silu(F.linear(part, gate)) * F.linear(part, up), down)
            for part, (gate, up, down) in zip(parts, weights, strict=True)
        ]
        return torch.cat(outputs)


class SwiGLU(nn.Module):
    """W_down(silu(W_gate x) * W_up x) without biases."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, hidden, bias=False)
        self.up = nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Outputs of tokens, same shape."""
        return self.down(F.silu(self.gate(tokens)) * self.up(tokens))


class MoEOutput(NamedTuple):
    """`tokens` B L D, scalar `balance_loss`, and `expert_index` B L k, best first, for looking inside."""

    tokens: Tensor
    balance_loss: Tensor
    expert_index: Tensor


class TokenMoE(nn.Module):
    """Every token passes its k chosen experts, weighted by raw sigmoid scores, and the shared expert."""

    def __init__(self, dim: int, config: MoEConfig) -> None:
        super().__init__()
        self.config = config
        self.gate = Gate(dim, config)
        self.experts = Experts(dim, config.hidden, config.experts)
        self.shared = SwiGLU(dim, dim * config.shared_experts) if config.shared_experts else None

    def use(self, config: MoEConfig) -> None:
        """Choose experts by the settings of `config`, which has the sizes of this one's."""
        self.config = self.gate.config = config

    def forward(self, features: Tensor) -> MoEOutput:
        """The mixture for features B L D with B, L >= 1."""
        tokens = features.flatten(0, 1)  # N D
        choice = self.gate(tokens)
        flat = choice.chosen.flatten()  # N*k
        order = flat.argsort(stable=True)
        counts = torch.zeros(self.config.experts, dtype=torch.int64, device=flat.device)
        counts.scatter_add_(0, flat, torch.ones_like(flat))
        source = order // self.config.top_k  # the token of each sorted choice
        outputs = self.experts(self._compute_dtype(tokens)[source], counts)  # N*k D
        weighted = outputs * choice.weight.flatten()[order].unsqueeze(-1).to(outputs.dtype)
        mixed = torch.zeros_like(tokens, dtype=weighted.dtype).index_add(0, source, weighted)
        if self.shared is not None:
            mixed = mixed + self.shared(tokens)
        shape = features.shape[:2]
        return MoEOutput(
            mixed.unflatten(0, shape),
            self._balance_loss(choice, shape),
            choice.chosen.unflatten(0, shape),
        )

    @staticmethod
    def _compute_dtype(tokens: Tensor) -> Tensor:
        """Tokens as autocast would hand them to a linear layer (grouped matmuls are not autocast)."""
        if torch.is_autocast_enabled(tokens.device.type):
            return tokens.to(torch.get_autocast_dtype(tokens.device.type))
        return tokens

    def _balance_loss(self, choice: Choice, shape: torch.Size) -> Tensor:
        """alpha times the mean over sequences of sum_e c_e s_e: load times mean score, per sequence."""
        batch, length = shape
        experts, top_k = self.config.experts, self.config.top_k
        index = choice.chosen.view(batch, length * top_k)
        load = torch.zeros(batch, experts, device=index.device)
        load.scatter_add_(1, index, torch.full(index.shape, experts / (length * top_k), device=index.device))
        score = choice.scores.view(batch, length, experts).mean(dim=1)  # B E
        return self.config.balance_weight * (load * score).sum(dim=1).mean()
