"""Decoding: greedy (a beam of one) and beam search for whole batches, with a key/value cache.

Shapes: B pairs, k beam width, R = B * k rows, T positions, V words, D channels.
Architecture page, section 5.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hisem.errors import ConfigError
from hisem.model.decoder import Decoder
from hisem.text.vocabulary import END, NULL, START, UNK


@dataclass(frozen=True)
class Hypothesis:
    """One decoded caption: word ids without START and END, and its log-probability, END's included."""

    ids: tuple[int, ...]
    logprob: float


@torch.no_grad()
def generate(decoder: Decoder, memory: Tensor, beam: int = 1, allow_unknown: bool = True) -> list[list[Hypothesis]]:
    """For each row of memory B L D its hypotheses, best first.

    A hypothesis that emits END leaves the beam, which shrinks by one; scores are sums of
    log-probabilities without length normalisation. Where none finished within the decoder's
    `max_length`, the unfinished ones are returned. NULL and START are never emitted, UNK only with
    `allow_unknown`. Raises `ConfigError` for a beam under 1.
    """
    if beam < 1:
        raise ConfigError(f"beam={beam}: must be 1 or more.")
    if not len(memory):
        return []
    search = _Search(len(memory), beam, decoder.config.max_length, memory.device)
    forbidden = [NULL, START] if allow_unknown else [NULL, START, UNK]
    cache = None
    for position in range(decoder.config.max_length):
        logits, cache = decoder.step(search.last_words(), position, memory, cache)
        logprobs = logits.float().log_softmax(dim=-1)
        logprobs[:, forbidden] = -torch.inf
        parents = search.advance(logprobs, position)
        if not search.alive():
            break
        if beam > 1:
            cache = [layer.rows(parents) for layer in cache]
    return search.results()


class _Search:
    """The beams of B pairs. Slots of a pair are hypotheses; a score of -inf marks an empty slot."""

    def __init__(self, batch: int, beam: int, length: int, device: torch.device) -> None:
        self.batch, self.beam = batch, beam
        self.words = torch.full((batch, beam, length + 1), NULL, device=device)  # B k T
        self.words[:, :, 0] = START
        self.score = torch.full((batch, beam), -torch.inf, device=device)
        self.score[:, 0] = 0.0
        self.width = torch.full((batch, 1), beam, device=device)  # how many slots may still be filled
        self.steps = 0
        # Finished hypotheses; the extra slot takes what is not finished when scattering.
        self.done_words = torch.full((batch, beam + 1, length + 1), NULL, device=device)
        self.done_score = torch.full((batch, beam + 1), -torch.inf, device=device)
        self.first_row = torch.arange(batch, device=device).unsqueeze(1) * beam  # B 1

    def last_words(self) -> Tensor:
        """The newest word of every row, R."""
        return self.words[:, :, self.steps].flatten()

    def alive(self) -> bool:
        """Whether any pair still has a beam."""
        return bool(self.score.isfinite().any())

    def advance(self, logprobs: Tensor, position: int) -> Tensor:
        """Extend every beam by its best words, given R V log-probabilities; returns each row's parent row."""
        vocabulary = logprobs.shape[-1]
        total = (self.score.flatten().unsqueeze(1) + logprobs).view(self.batch, -1)  # B k*V
        count = min(self.beam, total.shape[1])
        score, flat = total.topk(count, dim=1)  # B k, best first
        if count < self.beam:
            pad = (0, self.beam - count)
            score = torch.nn.functional.pad(score, pad, value=-torch.inf)
            flat = torch.nn.functional.pad(flat, pad)
        rank = torch.arange(self.beam, device=flat.device)
        score = score.masked_fill(rank >= self.width, -torch.inf)  # the beam has shrunk
        parent, word = flat // vocabulary, flat % vocabulary
        self.words = self.words.gather(1, parent.unsqueeze(-1).expand_as(self.words))
        self.words[:, :, position + 1] = word
        self.steps = position + 1
        self._retire(score, (word == END) & score.isfinite())
        return (self.first_row + parent).flatten()

    def _retire(self, score: Tensor, ended: Tensor) -> None:
        """Move ended hypotheses (B k, bool) to the finished ones and shrink their beams."""
        already = self.beam - self.width  # B 1
        slot = torch.where(ended, already + ended.cumsum(dim=1) - 1, self.beam)
        self.done_score.scatter_(1, slot, score.masked_fill(~ended, -torch.inf))
        self.done_words.scatter_(1, slot.unsqueeze(-1).expand_as(self.words), self.words)
        self.width = self.width - ended.sum(dim=1, keepdim=True)
        self.score = score.masked_fill(ended, -torch.inf)

    def results(self) -> list[list[Hypothesis]]:
        """Finished hypotheses of each pair, best first; the unfinished ones where there are none."""
        finished = self.done_score[:, : self.beam].isfinite().any(dim=1, keepdim=True)
        score = torch.where(finished, self.done_score[:, : self.beam], self.score)
        words = torch.where(finished.unsqueeze(-1), self.done_words[:, : self.beam], self.words)
        order = score.argsort(dim=1, descending=True, stable=True)
        rows = []
        for scores, ids, best in zip(score.tolist(), words.tolist(), order.tolist(), strict=True):
            rows.append([_hypothesis(ids[slot], scores[slot]) for slot in best if scores[slot] > -torch.inf])
        return rows


def _hypothesis(ids: list[int], logprob: float) -> Hypothesis:
    """Strip START, END and padding. NULL is never emitted, so the first one ends the words."""
    words = []
    for word in ids[1:]:
        if word in (END, NULL):
            break
        words.append(word)
    return Hypothesis(tuple(words), logprob)
