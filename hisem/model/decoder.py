"""The caption decoder: a post-norm transformer with one extra residual per layer.

Shapes: B pairs, k hypotheses of each (1 in training), R = B * k rows, T positions, S memory tokens,
D channels, h heads, d = D / h, V words.
Architecture page, section 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MethodType
from typing import Annotated, Any, NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from hisem.errors import ConfigError
from hisem.ranges import Dropout, Heads, Layers, Range, require_ranges
from hisem.text.vocabulary import END, NULL

LONGEST_CAPTION = 512
"""Most words that a model may be made to generate: each costs a step of the decoder, for every tile."""


@dataclass(frozen=True)
class DecoderConfig:
    """The transformer that writes the caption."""

    layers: Layers = 1
    """Number of layers, 1 or more."""
    heads: Heads = 8
    """Attention heads; must divide the backbone's channels."""
    dropout: Dropout = 0.1
    """Dropout of embedding, attention, feed-forward and output, in [0, 1)."""
    max_length: Annotated[int, Range(1, LONGEST_CAPTION)] = 41
    """Most words generated after START, END included, up to 512; also the longest training caption."""

    def __post_init__(self) -> None:
        require_ranges(self, "model.decoder.")


class KeyValue(NamedTuple):
    """Keys and values, each R h S d."""

    key: Tensor
    value: Tensor

    def then(self, more: KeyValue) -> KeyValue:
        """These positions followed by `more`."""
        return KeyValue(torch.cat([self.key, more.key], dim=2), torch.cat([self.value, more.value], dim=2))

    def rows(self, index: Tensor) -> KeyValue:
        """The rows that `index` names, as beams are reordered."""
        return KeyValue(self.key[index], self.value[index])


class Attention(nn.Module):
    """Standard multi-head attention with biases, keys and values apart so that they can be kept."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        if dim % heads:
            raise ConfigError(
                f"model.decoder.heads={heads}: must divide the backbone's {dim} channels; "
                f"use one of {[n for n in range(1, 17) if dim % n == 0]}."
            )
        self.heads = heads
        self.dropout = dropout
        self.project = nn.Linear(dim, 3 * dim)  # query, key, value, as torch initialises them
        self.out = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.project.weight)
        nn.init.zeros_(self.project.bias)
        nn.init.zeros_(self.out.bias)

    def keys_values(self, tokens: Tensor) -> KeyValue:
        """Keys and values of tokens R S D."""
        dim = tokens.shape[-1]
        both = F.linear(tokens, self.project.weight[dim:], self.project.bias[dim:])
        key, value = both.chunk(2, dim=-1)
        return KeyValue(self._split(key), self._split(value))

    def forward(self, tokens: Tensor, memory: KeyValue, mask: Tensor | None = None) -> Tensor:
        """Attend from tokens R T D to `memory`; `mask` (R 1 T S, bool) is True where it may look."""
        dropout = self.dropout if self.training else 0.0
        seen = F.scaled_dot_product_attention(self._query(tokens), memory.key, memory.value, mask, dropout)
        return self.out(seen.transpose(1, 2).flatten(2))

    def over(self, tokens: Tensor, memory: Tensor) -> Tensor:
        """Attend from few tokens B T D to all of `memory` B S D, without dropout.

        The same as `forward` over `keys_values(memory)`, but the key's and value's weights act on the query
        and on what it saw, so that memory is never projected: for a few words that is most of the work.
        The key's bias adds one number to all scores of a query, which the softmax takes out again.
        """
        dim = tokens.shape[-1]
        _, to_key, to_value = self.project.weight.view(3, self.heads, -1, dim)  # h d D each
        query = torch.einsum("bhtd,hde->bhte", self._query(tokens), to_key)  # B h T D
        scores = query.flatten(1, 2) @ memory.transpose(1, 2) / math.sqrt(dim / self.heads)  # B h*T S
        seen = (scores.softmax(dim=-1).to(memory.dtype) @ memory).view_as(query)
        value = torch.einsum("bhte,hde->bthd", seen, to_value).flatten(2) + self.project.bias[2 * dim :]
        return self.out(value)

    def _query(self, tokens: Tensor) -> Tensor:
        dim = tokens.shape[-1]
        return self._split(F.linear(tokens, self.project.weight[:dim], self.project.bias[:dim]))  # R h T d

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # R h T d


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention, feed-forward; the layer's input is added once more at the end."""

    def __init__(self, dim: int, config: DecoderConfig) -> None:
        super().__init__()
        self.self_attention = Attention(dim, config.heads, config.dropout)
        self.cross_attention = Attention(dim, config.heads, config.dropout)
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Dropout(config.dropout), nn.Linear(4 * dim, dim)
        )
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """The layer over whole sentences x B T D; `mask` B 1 T T is True where a position may look."""
        u = self._attended(x, self.self_attention.keys_values(x), mask)
        return self._finished(x, u, self.cross_attention(u, self.cross_attention.keys_values(memory)))

    def step(self, x: Tensor, memory: Tensor, past: KeyValue | None) -> tuple[Tensor, KeyValue]:
        """The layer over the newest word x R 1 D of each row. `memory` has B rows, each shared by a pair's k
        hypotheses; `past` holds the positions before x. Returns the output, and the positions with x's.
        """
        present = self.self_attention.keys_values(x)
        if past is not None:
            present = past.then(present)
        u = self._attended(x, present)
        # A pair's hypotheses are so many queries to one memory: R 1 D -> B k D and back.
        crossed = self.cross_attention.over(u.view(len(memory), -1, u.shape[-1]), memory).view(u.shape)
        return self._finished(x, u, crossed), present

    def _attended(self, x: Tensor, keys_values: KeyValue, mask: Tensor | None = None) -> Tensor:
        return self.norm1(x + self.dropout(self.self_attention(x, keys_values, mask)))

    def _finished(self, x: Tensor, u: Tensor, crossed: Tensor) -> Tensor:
        m = self.norm2(u + self.dropout(crossed))
        return self.norm3(m + self.dropout(self.feed_forward(m))) + x


class Decoder(nn.Module):
    """Words so far and the memory of a pair to logits over the next word."""

    positions: Tensor

    def __init__(self, dim: int, words: int, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(words, dim)
        self.layers = nn.ModuleList(DecoderLayer(dim, config) for _ in range(config.layers))
        self.dropout = nn.Dropout(config.dropout)
        self.output = nn.Linear(dim, words)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.output.weight, -0.1, 0.1)
        nn.init.zeros_(self.output.bias)
        self.register_buffer("positions", sinusoids(config.max_length, dim), persistent=False)

    def forward(self, word_ids: Tensor, memory: Tensor) -> Tensor:
        """Logits B T V for words B T (START first, NULL as padding, T <= max_length) and memory B L D."""
        length = word_ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=word_ids.device).tril()
        key_seen = (word_ids != NULL) & (word_ids != END)  # B T
        mask = (causal & key_seen.unsqueeze(1)).unsqueeze(1)  # B 1 T T
        x = self._embed(word_ids, 0)
        for layer in self.layers:
            x = layer(x, memory, mask)
        return self.output(self.dropout(x))

    def step(
        self, words: Tensor, position: int, memory: Tensor, past: list[KeyValue] | None
    ) -> tuple[Tensor, list[KeyValue]]:
        """Logits R V of the word after `words` (R, at `position`), and the cache to pass next time; memory
        B L D. For inference: nothing is dropped from the attention over memory.
        """
        x = self._embed(words.unsqueeze(1), position)
        present = []
        for index, layer in enumerate(self.layers):
            x, kept = cast(DecoderLayer, layer).step(x, memory, past[index] if past else None)
            present.append(kept)
        return self.output(self.dropout(x)).squeeze(1), present

    def compile_step(self, *args: Any, **options: Any) -> None:
        """Compile `step` in place; `torch.compile` takes the arguments."""
        # The cache grows with every word: with fixed shapes each length would be compiled anew.
        step = torch.compile(MethodType(Decoder.step, self), *args, **{"dynamic": True, **options})
        self.step = step  # type: ignore[method-assign]

    def __getstate__(self) -> dict[str, Any]:
        """Without a compiled step, which is bound to this very decoder: a copy has its own weights."""
        return {name: value for name, value in super().__getstate__().items() if name != "step"}

    def _embed(self, word_ids: Tensor, start: int) -> Tensor:
        x = self.embedding(word_ids) + self.positions[start : start + word_ids.shape[1]]
        return self.dropout(x)


def sinusoids(length: int, dim: int) -> Tensor:
    """Fixed positions, length x dim: sine on even channels, cosine on odd, base 10000."""
    rate = torch.exp(torch.arange(0, dim, 2) * (-math.log(10000.0) / dim))
    angle = torch.arange(length).unsqueeze(1) * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :dim]
