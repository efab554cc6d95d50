"""What captions hold beside the best sentence, and the fast path, against `generate()` and the plain captions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hisem.errors import ConfigError
from hisem.model.generation import Hypothesis
from hisem.model.hisem import HiSem
from hisem.text.vocabulary import END, UNCHANGED_SENTENCE, UNK

PAIRS = 8
BLOCKS = torch.randint(0, 256, (2, PAIRS, 3, 4, 4), generator=torch.Generator().manual_seed(0)).byte()
IMAGES = BLOCKS.repeat_interleave(10, dim=-1).repeat_interleave(10, dim=-2)


@pytest.fixture
def model(tiny) -> HiSem:
    """A small model that says something else of each pair, far from ties."""
    model = tiny(seed=2)
    with torch.no_grad():
        model.decoder.output.weight *= 12
        model.decoder.output.bias[END] = 2.0
        mean = memory_of(model).mean(dim=(0, 1))
        model.change.hasd.norm.weight *= 10  # what pairs have in common would drown the rest
        model.change.hasd.norm.bias -= 10 * mean
    return model


def memory_of(model):
    with torch.no_grad():
        before, after = (model.backbone(model.preprocess(date)) for date in IMAGES)
        return model.change(before, after).memory


@pytest.fixture
def asked(model, monkeypatch) -> list[int]:
    """How many rows of memory reached the decoder, call by call."""
    rows: list[int] = []
    generate = model.generate

    def counted(memory, *args, **named):
        rows.append(len(memory))
        return generate(memory, *args, **named)

    monkeypatch.setattr(model, "generate", counted)
    return rows


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("sure", [0, 1, 5, PAIRS])
def test_only_sure_pairs_skip_the_decoder(model, asked, beam, sure):
    plain = model.caption(*IMAGES, beam, explain=True)
    probabilities = sorted(caption.change_probability for caption in plain)
    assert len(set(probabilities)) == PAIRS
    bound = [*probabilities, 1.0][sure]  # that many pairs are under it
    model.set_routing(threshold=bound)  # as far as one may go: no pair that is not sure is unchanged
    plain = model.caption(*IMAGES, beam, explain=True)
    assert len({caption.text for caption in plain}) >= PAIRS / 2
    asked.clear()
    found = model.caption(*IMAGES, beam, explain=True, sure_unchanged=bound)
    assert asked == [PAIRS - sure]
    skipped = [caption for caption in found if caption.logprob is None]
    assert len(skipped) == sure
    for one, other in zip(found, plain, strict=True):
        assert one.change_probability == pytest.approx(other.change_probability, abs=1e-6)
        np.testing.assert_allclose(one.explanation.change_map, other.explanation.change_map, atol=1e-6)
        if other.change_probability < bound:
            assert (one.text, one.changed, one.logprob, one.second) == (UNCHANGED_SENTENCE, False, None, None)
            assert one.explanation.experts is None
        else:
            assert (one.text, one.changed, one.second) == (other.text, True, other.second)
            assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
            np.testing.assert_array_equal(one.explanation.experts, other.explanation.experts)


def test_unchanged_pairs_that_are_not_sure_are_decoded(model):
    probabilities = sorted(caption.change_probability for caption in model.caption(*IMAGES))
    model.set_routing(threshold=probabilities[5])
    plain = model.caption(*IMAGES)
    found = model.caption(*IMAGES, sure_unchanged=probabilities[2])
    kinds = [(caption.changed, caption.logprob is None) for caption in found]
    assert [kinds.count(kind) for kind in ((False, True), (False, False), (True, False))] == [2, 3, 3]
    for one, other in zip(found, plain, strict=True):
        assert one.changed == other.changed
        if one.logprob is not None:
            assert one.text == other.text
            assert one.logprob == pytest.approx(other.logprob, abs=1e-5)


def test_all_pairs_are_decoded_unless_asked(model, asked):
    model.set_routing(threshold=1.0)
    captions = model.caption(*IMAGES)
    assert asked == [PAIRS]
    assert {caption.changed for caption in captions} == {False}
    assert all(caption.logprob is not None for caption in captions)


@pytest.mark.parametrize("value", [0.0, -0.1, 1.1, float("nan")])
def test_a_bound_that_is_no_probability(model, value):
    with pytest.raises(ConfigError, match=rf"sure_unchanged={value}: must lie in \(0, 1\]"):
        model.caption(*IMAGES, sure_unchanged=value)


def test_a_bound_that_would_silence_changed_pairs(model):
    model.set_routing(threshold=0.25)
    model.require_sure(0.25)
    with pytest.raises(ConfigError, match=r"sure_unchanged=0\.3: must be at most the model's change threshold 0\.25"):
        model.caption(*IMAGES[:, :0], sure_unchanged=0.3)


def test_without_router_nothing_is_sure(tiny):
    with pytest.raises(ConfigError, match=r"sure_unchanged=0\.1: this model has no image router"):
        tiny(hasd={"router": False}).caption(*IMAGES, sure_unchanged=0.1)


@pytest.mark.parametrize("keep_unknown", [False, True])
@pytest.mark.parametrize("beam", [2, 4])
def test_second_is_the_second_hypothesis(model, beam, keep_unknown):
    with torch.no_grad():
        model.decoder.output.bias[UNK] = 6.0  # tempting
    found = model.caption(*IMAGES, beam, keep_unknown=keep_unknown)
    hypotheses = model.generate(memory_of(model), beam, allow_unknown=keep_unknown)
    for caption, best in zip(found, hypotheses, strict=True):
        texts = [model.vocabulary.decode(each.ids, keep_unknown=keep_unknown) for each in best]
        assert [caption.text, caption.second] == [*texts, None][:2]
    seconds = {caption.second for caption in found}
    assert len(seconds) >= PAIRS / 2
    assert any("<UNK>" in (second or "") for second in seconds) == keep_unknown


def test_both_paths_have_a_second(model):
    said = {}
    for path, threshold in ((False, 1.0), (True, 0.0)):
        model.set_routing(threshold=threshold)
        said[path] = [caption.second for caption in model.caption(*IMAGES, 3)]
    found = model.caption_paths(*IMAGES, 3)
    assert [pair.unchanged.second for pair in found] == said[False]
    assert [pair.changed.second for pair in found] == said[True]
    assert all(len(set(seconds)) >= PAIRS / 2 for seconds in said.values())
    assert said[True] != said[False]


def test_no_second(model, monkeypatch):
    assert {caption.second for caption in model.caption(*IMAGES)} == {None}
    one, same = Hypothesis((5, 6), -1.0), Hypothesis((5, UNK, 6), -2.0)
    for hypotheses in ([one], [one, same], [one, same, Hypothesis((7,), -3.0)]):
        monkeypatch.setattr(model, "generate", lambda memory, *_, found=hypotheses, **__: [found] * len(memory))
        assert {(c.text, c.second) for c in model.caption(*IMAGES, 3)} == {("w5 w6", None)}
