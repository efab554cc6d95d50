"""Starting from a trained model: what is kept, what is new, and what does not fit."""

from typing import Any

import pytest
import torch

from hisem.config import flatten, from_dict, merge, to_dict
from hisem.errors import ConfigError
from hisem.model.hisem import HiSem, HiSemConfig
from hisem.model.warm_start import CHANGEABLE, WORD_ROWS, require_fit, start_from
from hisem.text.vocabulary import SPECIALS, START, UNK, Vocabulary

SENTENCES = ["an annex", "a barn annex"]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """A loaded bundle, not as initialised: output biases and the statistics of norms are anything."""
    model = tiny(seed=1).train()
    torch.nn.init.normal_(model.decoder.output.bias)
    model.change(*torch.randn(2, 6, 6, model.backbone.dim), torch.tensor([True, False] * 3))
    folder = tmp_path_factory.mktemp("warm") / "bundle"
    model.save_pretrained(folder)
    return HiSem.from_pretrained(folder)


def changed(config: HiSemConfig, **over: Any) -> HiSemConfig:
    return from_dict(HiSemConfig, merge(to_dict(config), over), "test")


def nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


@torch.no_grad()
def test_old_words_have_the_logits_they_had(trained):
    model = start_from(trained, trained.config, trained.vocabulary.extended(SENTENCES, 1)).eval()
    assert len(model.vocabulary) == len(trained.vocabulary) + 4
    images = torch.randn(2, 4, 3, 32, 48)
    words = torch.tensor([[START, 5, 9, 7]] * 4)
    then, now = trained(*images, words), model(*images, words)
    assert torch.equal(now.change_logits, then.change_logits)
    assert now.logits.shape[-1] == len(model.vocabulary)
    assert now.logits.isfinite().all()
    # A product with more columns may be summed in another order.
    torch.testing.assert_close(now.logits[..., : len(trained.vocabulary)], then.logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_captions_are_the_same_where_new_words_cannot_be_said(trained):
    model = start_from(trained, trained.config, trained.vocabulary.extended(SENTENCES, 1)).eval()
    model.decoder.output.bias[len(trained.vocabulary) :] = -torch.inf
    before, after = torch.randint(0, 256, (2, 4, 3, 50, 70)).byte()
    for beam in (1, 3):
        for now, then in zip(model.caption(before, after, beam), trained.caption(before, after, beam), strict=True):
            assert (now.text, now.changed) == (then.text, then.changed)
            assert now.logprob == pytest.approx(then.logprob, abs=1e-4)


def test_words_are_found_by_word_and_the_rest_is_copied(trained):
    old = trained.vocabulary.words
    vocabulary = Vocabulary((*SPECIALS, "first", *reversed(old[len(SPECIALS) :]), "last"))
    model = start_from(trained, trained.config, vocabulary)
    before, after = trained.state_dict(), model.state_dict()
    for name, tensor in after.items():
        if name not in WORD_ROWS:
            assert torch.equal(tensor, before[name]), name
            continue
        for row, word in enumerate(vocabulary.words):
            if word in old:
                assert torch.equal(tensor[row], before[name][old.index(word)]), (name, word)
    assert {name for name in after if after[name].shape != before[name].shape} == set(WORD_ROWS)


def test_new_rows_are_initialised_as_the_decoders_and_follow_the_seed(trained):
    vocabulary = Vocabulary((*trained.vocabulary.words, *(f"new{number}" for number in range(2000))))

    def rows(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        weights = start_from(trained, trained.config, vocabulary).state_dict()
        return [weights[name][len(trained.vocabulary) :] for name in WORD_ROWS]

    *uniform, bias = rows(3)
    assert torch.equal(bias, torch.zeros(2000))
    for weight in uniform:
        assert weight.abs().max() <= 0.1
        assert weight.std().item() == pytest.approx(0.2 / 12**0.5, rel=0.02)  # of the uniform distribution
        assert weight.mean().item() == pytest.approx(0, abs=0.002)
    assert all(torch.equal(one, two) for one, two in zip(rows(3), [*uniform, bias], strict=True))
    assert not torch.equal(rows(4)[0], uniform[0])


def test_the_trained_model_is_left_as_it_is(trained):
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    model = start_from(trained, trained.config, trained.vocabulary.extended(SENTENCES, 1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())


def test_training_on_keeps_old_words_and_learns_new_ones(trained, tmp_path):
    model = start_from(trained, trained.config, trained.vocabulary.extended(SENTENCES, 1)).train()
    sentence = model.vocabulary.encode("a barn annex w4", 5)
    assert UNK not in sentence
    images, words = torch.randint(0, 256, (2, 2, 3, 32, 48)).byte(), torch.tensor([sentence] * 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    before, after = (model.preprocess(date) for date in images)
    for _ in range(60):
        logits = model(before, after, words[:, :-1], torch.tensor([True, False])).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), words[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path / "tuned")
    loaded = HiSem.from_pretrained(tmp_path / "tuned")
    assert loaded.vocabulary.words[: len(trained.vocabulary)] == trained.vocabulary.words
    assert [caption.text for caption in loaded.caption(*images)] == ["a barn annex w4"] * 2
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


OTHER = {
    "backbone.weights": "hub",
    "backbone.trainable_blocks": 1,
    "hasd.threshold": 0.3,
    "hasd.dropout": 0.7,
    "hasd.moe.top_k": 1,
    "hasd.moe.groups": 1,
    "hasd.moe.groups_kept": 2,
    "hasd.moe.balance_weight": 0.5,
    "decoder.dropout": 0.7,
    "decoder.max_length": 9,
    "backbone.name": "resnet14t",
    "backbone.image_size": [48, 48],
    "backbone.stride": 8,
    "backbone.options.channels": [8, 8, 32, 16],
    "backbone.options.stem_width": 16,
    "bdam.layers": 3,
    "bdam.heads": 4,
    "bdam.difference_weight": 0.5,
    "hasd.router": False,
    "hasd.hidden": 32,
    "hasd.moe.experts": 8,
    "hasd.moe.shared_experts": 0,
    "hasd.moe.hidden": 16,
    "decoder.layers": 2,
    "decoder.heads": 4,
}
"""Another value of each key of the config."""


def test_every_key_of_the_config_is_judged(trained):
    assert set(OTHER) == set(flatten(to_dict(trained.config)))


@pytest.mark.parametrize("key", [key for key in OTHER if key.rpartition(".")[2] in CHANGEABLE])
def test_what_no_weight_depends_on_may_differ(trained, key):
    config = changed(trained.config, **nested(key, OTHER[key]))
    model = start_from(trained, config, trained.vocabulary)
    assert model.config == config
    shapes = {name: tensor.shape for name, tensor in trained.state_dict().items()}
    assert {
        name: tensor.shape for name, tensor in HiSem(config, trained.vocabulary, pretrained=False).state_dict().items()
    } == shapes


@pytest.mark.parametrize("key", [key for key in OTHER if key.rpartition(".")[2] not in CHANGEABLE])
@torch.no_grad()
def test_what_weights_were_made_for_is_refused_with_both_values(trained, key):
    config = changed(trained.config, **nested(key, OTHER[key]))
    with pytest.raises(ConfigError) as caught:
        start_from(trained, config, trained.vocabulary)
    then = flatten(to_dict(trained.config))[key]
    assert f"model.{key} is {then} in the trained model, {OTHER[key]} asked for" in str(caught.value)
    # It is right to refuse: the weights do not load, or compute something else.
    model = HiSem(config, trained.vocabulary, pretrained=False).eval()
    try:
        model.load_state_dict(trained.state_dict())
    except RuntimeError:
        return
    tokens = torch.randn(2, 2, 6, model.backbone.dim)
    words = torch.tensor([[START, 5, 9]] * 2)
    flags = torch.tensor([True, False])
    one, two = (m.decoder(words, m.change(*tokens, flags).memory) for m in (trained, model))
    assert not torch.allclose(one, two, rtol=1e-4)


def test_all_that_does_not_fit_is_told_at_once(trained):
    config = changed(
        trained.config, bdam={"layers": 3}, decoder={"heads": 4}, backbone={"options": {"layers": [1] * 4}}
    )
    with pytest.raises(ConfigError, match=r"options\.layers is not set .*bdam\.layers is 1 .*decoder\.heads is 2 "):
        require_fit(trained.config, config)


def test_a_router_cannot_be_had_of_a_model_without(tiny):
    with pytest.raises(ConfigError, match=r"model\.hasd\.router is False in the trained model, True asked for"):
        start_from(tiny(hasd={"router": False}), tiny().config, tiny().vocabulary)


def test_a_vocabulary_without_words_of_the_model_is_a_mistake(trained):
    with pytest.raises(ValueError, match=r"lacks 1 word.*'w5'"):
        start_from(trained, trained.config, Vocabulary(tuple(w for w in trained.vocabulary.words if w != "w5")))
