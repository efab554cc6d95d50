"""The decoder's two ways to attend: over whole sentences as in training, and word by word as in generation."""

import pytest
import torch

from hisem.model.decoder import Attention, Decoder, DecoderConfig
from hisem.text.vocabulary import START

DIM = 16


@pytest.mark.parametrize("heads", [1, 4])
@torch.no_grad()
def test_attention_over_memory_equals_attention_over_its_keys_and_values(heads):
    torch.manual_seed(0)
    attention = Attention(DIM, heads, dropout=0.0).eval()
    torch.nn.init.normal_(attention.project.bias)  # the key's bias must not matter, the value's must
    tokens, memory = torch.randn(3, 2, DIM), torch.randn(3, 7, DIM)
    expected = attention(tokens, attention.keys_values(memory))
    torch.testing.assert_close(attention.over(tokens, memory), expected)


@pytest.mark.parametrize("layers", [1, 3])
@torch.no_grad()
def test_steps_equal_the_whole_sentence(layers):
    torch.manual_seed(0)
    decoder = Decoder(DIM, 11, DecoderConfig(layers=layers, heads=2, max_length=6)).eval()
    memory = torch.randn(4, 5, DIM)
    words = torch.randint(4, 11, (4, 6))
    words[:, 0] = START
    expected = decoder(words, memory)  # B T V
    cache = None
    for position in range(words.shape[1]):
        logits, cache = decoder.step(words[:, position], position, memory, cache)
        torch.testing.assert_close(logits, expected[:, position])


@torch.no_grad()
def test_hypotheses_of_a_pair_share_its_memory():
    torch.manual_seed(0)
    decoder = Decoder(DIM, 11, DecoderConfig(heads=2, max_length=6)).eval()
    memory, words = torch.randn(2, 5, DIM), torch.tensor([4, 5, 6, 7, 8, 9])  # three hypotheses a pair
    logits, _ = decoder.step(words, 0, memory, None)
    repeated, _ = decoder.step(words, 0, memory.repeat_interleave(3, dim=0), None)
    torch.testing.assert_close(logits, repeated)
