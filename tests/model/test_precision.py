"""Devices, precisions and compilation against float32 on the CPU, and what `explain` shows (sections 2 and 3)."""

import copy
import pickle

import numpy as np
import pytest
import torch

from hisem.model.hisem import HiSem
from hisem.model.moe import MoEConfig, TokenMoE

PAIRS = 6
IMAGES = torch.randint(0, 256, (2, PAIRS, 3, 40, 40), generator=torch.Generator().manual_seed(0)).byte()


@pytest.fixture
def model(tiny) -> HiSem:
    """A small model whose pairs are split between the paths and whose captions are far from ties."""
    model = tiny(bdam={"layers": 2})
    with torch.no_grad():
        model.decoder.output.weight *= 12
    probabilities = sorted(caption.change_probability for caption in model.caption(*IMAGES))
    model.change_threshold = sum(probabilities[PAIRS // 2 - 1 : PAIRS // 2 + 1]) / 2
    return model


NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
def device(request) -> torch.device:
    return torch.device(request.param)


@torch.no_grad()
def outputs(model: HiSem, device: torch.device) -> list[torch.Tensor]:
    """Memory, router and word logits, these of whole sentences and word by word, with the paths given: rounding
    may not send a pair elsewhere.
    """
    before, after = (model.preprocess(date.to(device)) for date in IMAGES)
    words = torch.randint(4, 11, (PAIRS, 5), generator=torch.Generator().manual_seed(1)).to(device)
    changed = (torch.arange(PAIRS) % 2 == 0).to(device)
    tokens = model.backbone(torch.cat([before, after]))
    found = model.change(tokens[:PAIRS], tokens[PAIRS:], changed)
    sentences = model.decoder(words, found.memory)
    cache, steps = None, []
    for position in range(words.shape[1]):
        logits, cache = model.decoder.step(words[:, position], position, found.memory, cache)
        steps.append(logits)
    parts = found.memory, found.logits, sentences, torch.stack(steps, dim=1)
    return [part.float().cpu() for part in parts]


def test_bfloat16_is_within_its_rounding_of_float32(tiny, device):
    model = tiny(bdam={"layers": 2}, hasd={"moe": {"hidden": 16}})
    expected = outputs(model, torch.device("cpu"))
    model.to(device)
    with torch.autocast(device.type, torch.bfloat16):
        found = outputs(model, device)
    for actual, reference in zip(found, expected, strict=True):
        assert not actual.equal(reference)  # bfloat16 it was
        assert (actual - reference).abs().max() <= 2e-2 * max(1.0, float(reference.abs().max()))


@NEEDS_GPU
def test_float32_is_the_same_on_a_gpu(tiny, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model, gpu = tiny(), torch.device("cuda")
    expected = outputs(model, torch.device("cpu"))
    for actual, reference in zip(outputs(model.to(gpu), gpu), expected, strict=True):
        torch.testing.assert_close(actual, reference, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_compiled_model_says_the_same(model, tmp_path):
    model.save_pretrained(tmp_path / "plain")
    expected = model.caption(*IMAGES) + model.caption(*IMAGES, beam=2)
    model.compile()
    assert all(part._compiled_call_impl is not None for part in (model.backbone, model.change.bdam))
    assert "step" in vars(model.decoder)
    found = model.caption(*IMAGES) + model.caption(*IMAGES, beam=2)
    for one, other in zip(found, expected, strict=True):
        assert (one.text, one.changed) == (other.text, other.changed)
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)
    # Its weights keep their names: the same bundle.
    assert model.save_pretrained(tmp_path / "compiled") == HiSem.from_pretrained(tmp_path / "plain").save_pretrained(
        tmp_path / "again"
    )


def test_a_copy_of_a_compiled_model_has_its_own_weights(model):
    model.compile(backend="eager")
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    with torch.no_grad():
        twin.decoder.output.bias[:] = 0
        twin.decoder.output.bias[5] = 99
    assert {caption.text for caption in twin.caption(*IMAGES)} == {" ".join(["w5"] * 6)}
    assert [c.text for c in model.caption(*IMAGES)] != [c.text for c in twin.caption(*IMAGES)]


@NEEDS_GPU
def test_experts_on_a_gpu_do_not_synchronise():
    config = MoEConfig(experts=8, hidden=32)
    moe = TokenMoE(16, config).to("cuda")
    features = torch.randn(2, 9, 16, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        moe(features).tokens.sum().backward()  # what is set up once may synchronise
        torch.cuda.set_sync_debug_mode("error")
        try:
            moe(features).tokens.sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_a_pairs_caption_does_not_depend_on_its_batch(model):
    together = model.caption(*IMAGES, beam=2)
    assert {caption.changed for caption in together} == {True, False}
    for number, caption in enumerate(together):
        (alone,) = model.caption(*IMAGES[:, number : number + 1], beam=2)
        assert (alone.text, alone.changed) == (caption.text, caption.changed)
        assert alone.logprob == pytest.approx(caption.logprob, abs=1e-3)


def test_explanations_are_bdams_discrepancy_and_the_chosen_experts(model):
    captions = model.caption(*IMAGES, explain=True)
    assert {caption.changed for caption in captions} == {True, False}
    position = model.change.position()
    height, width = model.backbone.grid
    with torch.no_grad():
        for number, caption in enumerate(captions):
            one = slice(number, number + 1)
            b, a = (model.backbone(model.preprocess(date[one])) + position for date in IMAGES)
            for layer in model.change.bdam.layers:
                gate = layer.conditioning
                c = torch.sigmoid(gate.gate_out(torch.relu(gate.gate_in(torch.cat([b, a], -1))))) * (b - a).abs()
                b, a, _ = layer(b, a, model.change.bdam.addition_scale, model.change.bdam.deletion_scale)
            expected = c[0].mean(-1).view(height, width).numpy()
            np.testing.assert_allclose(caption.explanation.change_map, expected, rtol=1e-4, atol=1e-5)
            assert caption.explanation.change_map.dtype == np.float32
            if not caption.changed:
                assert caption.explanation.experts is None
                continue
            moe = model.change.hasd.changed.moe
            fused = model.change.hasd.changed.fusion(b, a)
            index = moe.gate(fused[0]).chosen.view(height, width, -1)
            np.testing.assert_array_equal(caption.explanation.experts, index.numpy())


def test_nothing_is_explained_unasked(model):
    asked, plain = model.caption(*IMAGES, explain=True), model.caption(*IMAGES)
    assert [caption.explanation for caption in plain] == [None] * PAIRS
    assert [(c.text, c.logprob) for c in asked] == [(c.text, c.logprob) for c in plain]


def test_a_model_without_router_or_bdam_explains_what_it_has(tiny):
    model = tiny(bdam={"layers": 0}, hasd={"router": False})
    (caption,) = model.caption(IMAGES[0, :1], IMAGES[1, :1], explain=True)
    before, after = (model.backbone(model.preprocess(date[:1])) for date in IMAGES)
    expected = (after - before)[0].abs().mean(-1).view(model.backbone.grid).detach().numpy()
    np.testing.assert_allclose(caption.explanation.change_map, expected, rtol=1e-4, atol=1e-5)
    assert caption.explanation.experts is None
