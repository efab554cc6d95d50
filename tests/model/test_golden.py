"""The published implementation's numbers, key by key (architecture page, section 9).

`tests/data/official_layout_tiny.pth` is a tiny random model in the published layout;
`golden_activations.npz` is what the published implementation computes with it in float32 on a CPU.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from hisem.model.decoder import Attention
from hisem.model.published import import_checkpoint, read_checkpoint
from hisem.model.published_keys import published_keys
from hisem.text.vocabulary import END, NULL, SPECIALS, START, Vocabulary

DATA = Path(__file__).parents[1] / "data"
CLASS_WEIGHT = 0.8  # of the router's cross-entropy, section 6


@pytest.fixture(scope="module")
def golden():
    return {
        key: torch.from_numpy(value)
        for key, value in np.load(DATA / "golden_activations.npz").items()
        if value.dtype.kind != "U"
    }


def load():
    checkpoint = read_checkpoint(DATA / "official_layout_tiny.pth")
    words = len(checkpoint["decoder_dict"]["wdc.bias"])
    vocabulary = Vocabulary((*SPECIALS, *(f"w{i}" for i in range(len(SPECIALS), words))))
    model = import_checkpoint(checkpoint, vocabulary).model
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(module, Attention):
            module.dropout = 0.0
    return model


@pytest.fixture(scope="module")
def model():
    return load()


def close(actual, expected, tolerance=1e-5):
    bound = tolerance * max(1.0, float(expected.abs().max()))
    assert actual.shape == expected.shape
    assert float((actual.detach() - expected).abs().max()) <= bound


@pytest.mark.parametrize("date", ["before", "after"])
def test_backbone(model, golden, date):
    close(model.backbone(golden[f"in/images_{date}"]), golden[f"in/feat_{date}"])


def test_bdam(model, golden):
    position = model.change.position()
    before, after, _ = model.change.bdam(golden["in/feat_before"] + position, golden["in/feat_after"] + position)
    close(before, golden["eval/bdam/before"])
    close(after, golden["eval/bdam/after"])


def test_expert_choice(model, golden):
    choice = model.change.hasd.changed.moe.gate(golden["eval/gate/input"].flatten(0, 1))
    order, expected_order = choice.chosen.argsort(-1), golden["eval/gate/expert_index"].argsort(-1)
    assert choice.chosen.gather(-1, order).equal(golden["eval/gate/expert_index"].gather(-1, expected_order))
    close(choice.weight.gather(-1, order), golden["eval/gate/expert_weight"].gather(-1, expected_order))


def test_mixture_of_experts(model, golden):
    close(model.change.hasd.changed.moe(golden["eval/gate/input"]).tokens, golden["eval/moe/output"])


def test_routed(model, golden):
    found = model.change(golden["in/feat_before"], golden["in/feat_after"])
    close(found.memory, golden["eval/routed/features"])
    close(found.logits, golden["eval/routed/logits"])
    position = model.change.position()
    before, after, _ = model.change.bdam(golden["in/feat_before"] + position, golden["in/feat_after"] + position)
    close(after - before, golden["eval/routed/diff"])


def test_labels_choose_the_path(model, golden):
    found = model.change(golden["in/feat_before"], golden["in/feat_after"], golden["in/labels"].bool())
    close(found.memory, golden["eval/labelled/features"])


@pytest.mark.parametrize(("key", "beam"), [("decode/greedy", 1), ("decode/beam3", 3)])
def test_decoding(model, golden, key, beam):
    found = model.generate(golden["eval/routed/features"], beam=beam)
    for hypotheses, row in zip(found, golden[key].tolist(), strict=True):
        expected = [word for word in row if word != -1]
        assert expected[0] == START
        ended = expected[-1] == END
        assert list(hypotheses[0].ids) == expected[1 : len(expected) - ended]


def caption_loss(logits, tokens, lengths):
    """Mean over predicted words: START is not predicted, END is, padding is left out."""
    keep = torch.arange(tokens.shape[1] - 1) < (lengths - 1).unsqueeze(1)
    return F.cross_entropy(logits[:, :-1][keep], tokens[:, 1:][keep])


def losses(model, before, after, tokens, lengths, labels):
    found = model.change(before, after, labels.bool())
    logits = model.decoder(tokens, found.memory)
    return logits, caption_loss(logits, tokens, lengths), F.cross_entropy(found.logits, labels), found.balance_loss


@pytest.fixture(scope="module")
def step(golden):
    model = load().train()
    logits, caption, router, balance = losses(
        model,
        *(golden[key] for key in ("in/feat_before", "in/feat_after", "in/tokens", "in/token_lengths", "in/labels")),
    )
    (caption + CLASS_WEIGHT * router + balance).backward()
    return model, logits, caption, router, balance


def test_scores_and_losses(step, golden):
    _, logits, caption, router, balance = step
    close(logits, golden["train/scores"])
    close(caption, golden["train/caption_loss"])
    close(router, golden["train/class_loss"])
    close(balance, golden["train/balance_loss"])


def of_kind(golden, prefix):
    return {key.removeprefix(prefix): value for key, value in golden.items() if key.startswith(prefix)}


def test_gradients(step, golden):
    model = step[0]
    found: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        keys = published_keys(name, model.config)
        gradients = parameter.grad if len(keys) > 1 else [parameter.grad]  # experts are stacked with us
        found |= dict(zip(keys, gradients if keys else [], strict=True))
    for key, expected in of_kind(golden, "train/grad/").items():
        gradient = found[key.replace("/", "_dict.", 1)]
        assert float((gradient - expected).abs().max()) <= 1e-4 * float(expected.abs().max()), key


def test_batch_norm_statistics(step, golden):
    model = step[0]
    found = {key: buffer for name, buffer in model.named_buffers() for key in published_keys(name, model.config)}
    for key, expected in of_kind(golden, "train/buffers_after/").items():
        close(found[f"encoder_trans_dict.{key}"].float(), expected.float())


def test_trajectory(golden):
    model = load().train()
    parameters = [*model.change.parameters(), *model.decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    for number in range(8):
        batch = number % 3
        before, after, tokens, lengths = (
            golden[f"trajectory/{key}"][batch] for key in ("feat_before", "feat_after", "tokens", "token_lengths")
        )
        _, caption, router, balance = losses(model, before, after, tokens, lengths, golden["in/labels"])
        close(torch.stack([caption, router, balance]), golden["trajectory/losses"][number], 1e-3)
        optimizer.zero_grad()
        (caption + CLASS_WEIGHT * router + balance).backward()
        optimizer.step()


def test_padding_is_null(golden):
    """The golden tokens use NULL beyond their length, which the decoder masks."""
    tokens, lengths = golden["in/tokens"], golden["in/token_lengths"]
    beyond = torch.arange(tokens.shape[1]) >= lengths.unsqueeze(1)
    assert (tokens[beyond] == NULL).all()
