"""Decoding against section 5's rule, rendered plainly: one pair, whole sentences recomputed, no cache."""

import pytest
import torch

from hisem.errors import ConfigError
from hisem.model.decoder import Decoder, DecoderConfig
from hisem.model.generation import generate
from hisem.text.vocabulary import END, NULL, START, UNK

DIM = 16
SEEDS = range(16)
END_BIAS = (-30.0, -1.0, 1.0, 2.5)  # never, seldom, often, soon


def decoder_of(seed, words, max_length=6, end_bias=0.0, layers=1):
    torch.manual_seed(seed)
    decoder = Decoder(DIM, words, DecoderConfig(layers=layers, heads=2, max_length=max_length)).eval()
    with torch.no_grad():
        decoder.output.weight *= 12  # far apart, so that rounding decides nothing
        decoder.output.bias[END] = end_bias
    return decoder


def memory_of(seed, pairs):
    return 3 * torch.randn(pairs, 5, DIM, generator=torch.Generator().manual_seed(1000 + seed))


@torch.no_grad()
def searched(decoder, memory, beam, forbidden):
    """(ids, log-probability) of one pair, best first, and the step at which each left the beam."""
    alive: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    finished: list[tuple[tuple[int, ...], float, int | None]] = []
    for step in range(decoder.config.max_length):
        sentences = torch.tensor([[START, *ids] for ids, _ in alive])
        logprobs = decoder(sentences, memory.expand(len(alive), -1, -1))[:, -1].log_softmax(-1).tolist()
        candidates = [
            ((*ids, word), total + logprob)
            for (ids, total), row in zip(alive, logprobs, strict=True)
            for word, logprob in enumerate(row)
            if word not in forbidden
        ]
        candidates.sort(key=lambda candidate: -candidate[1])
        best = candidates[: beam - len(finished)]
        alive = [(ids, total) for ids, total in best if ids[-1] != END]
        finished += [(ids[:-1], total, step) for ids, total in best if ids[-1] == END]
        if not alive:
            break
    results = finished or [(ids, total, None) for ids, total in alive]
    return sorted(results, key=lambda result: -result[1])


def check(decoder, memory, beam, allow_unknown=True):
    """Compare a batch; returns at which step each pair's hypotheses finished."""
    forbidden = {NULL, START} if allow_unknown else {NULL, START, UNK}
    found = generate(decoder, memory, beam, allow_unknown)
    assert len(found) == len(memory)
    steps = []
    for hypotheses, row in zip(found, memory, strict=True):
        expected = searched(decoder, row, beam, forbidden)
        assert [h.ids for h in hypotheses] == [ids for ids, _, _ in expected]
        assert [h.logprob for h in hypotheses] == pytest.approx([total for _, total, _ in expected], abs=1e-4)
        assert not forbidden & {word for h in hypotheses for word in h.ids}
        steps.append([step for _, _, step in expected])
    return steps


@pytest.mark.parametrize("beam", [1, 2, 3, 4, 5])
def test_equals_the_rule(beam):
    steps = []
    for seed in SEEDS:
        decoder = decoder_of(seed, words=9 + seed % 3, end_bias=END_BIAS[seed % 4], layers=1 + seed % 2)
        steps += check(decoder, memory_of(seed, 4), beam)
    # The cases the rule distinguishes did occur.
    assert any(None in pair for pair in steps)
    assert len({step for pair in steps for step in pair if step is not None}) >= 4
    if beam > 1:
        assert any(len(set(pair)) > 1 for pair in steps)


@pytest.mark.parametrize("beam", [1, 4])
def test_without_unknown(beam):
    spoken = set()
    for seed in SEEDS[:8]:
        decoder = decoder_of(seed, words=8, end_bias=END_BIAS[seed % 4])
        with torch.no_grad():
            decoder.output.bias[[NULL, UNK, START]] = 4.0  # tempting, all three
        memory = memory_of(seed, 3)
        check(decoder, memory, beam, allow_unknown=False)
        spoken |= {word for pair in generate(decoder, memory, beam) for h in pair for word in h.ids}
    assert UNK in spoken
    assert not {NULL, START, END} & spoken


@pytest.mark.parametrize("beam", [1, 3])
def test_a_pair_does_not_depend_on_its_batch(beam):
    for seed in SEEDS[:8]:
        decoder, memory = decoder_of(seed, words=10, end_bias=END_BIAS[seed % 4]), memory_of(seed, 5)
        together = generate(decoder, memory, beam)
        alone = [generate(decoder, row.unsqueeze(0), beam)[0] for row in memory]
        backwards = generate(decoder, memory.flip(0), beam)[::-1]
        for other in (alone, backwards):
            assert [[h.ids for h in pair] for pair in together] == [[h.ids for h in pair] for pair in other]
            for one, two in zip(together, other, strict=True):
                assert [h.logprob for h in one] == pytest.approx([h.logprob for h in two], abs=1e-4)


@pytest.mark.parametrize("words", [4, 5, 6])
@pytest.mark.parametrize("beam", [5, 12])
def test_beam_wider_than_the_vocabulary(words, beam):
    for seed in range(6):
        decoder = decoder_of(seed, words=words, max_length=4, end_bias=END_BIAS[seed % 4])
        check(decoder, memory_of(seed, 2), beam)
        check(decoder, memory_of(seed, 2), beam, allow_unknown=False)


@pytest.mark.parametrize("beam", [1, 3])
def test_one_word(beam):
    for seed in range(8):
        check(decoder_of(seed, words=9, max_length=1, end_bias=END_BIAS[seed % 4]), memory_of(seed, 3), beam)


def test_nothing_but_end_may_be_said():
    found = generate(decoder_of(0, words=4), memory_of(0, 2), 3, allow_unknown=False)
    assert [[h.ids for h in pair] for pair in found] == [[()], [()]]


def test_empty_batch():
    assert generate(decoder_of(0, words=8), torch.empty(0, 5, DIM), 3) == []


@pytest.mark.parametrize("beam", [0, -1])
def test_beam_below_one(beam):
    with pytest.raises(ConfigError, match=rf"beam={beam}.*1 or more"):
        generate(decoder_of(0, words=8), memory_of(0, 1), beam)
