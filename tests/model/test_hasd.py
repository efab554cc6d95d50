"""Routing of whole pairs: which path runs, what it touches, and that DDP survives an idle path (section 3)."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from hisem.config import from_dict, to_dict
from hisem.errors import ConfigError
from hisem.model.generation import Hypothesis
from hisem.model.hasd import HASDConfig
from hisem.model.hisem import HiSem, HiSemConfig
from hisem.text.vocabulary import END, NULL, START, UNCHANGED_SENTENCE, UNK, Vocabulary
from hisem.training.batches import Batch
from hisem.training.epoch import make_optimizer, train_epoch
from hisem.training.recipe import TrainingConfig

PATHS = {True: "hasd.changed.", False: "hasd.unchanged."}


def tokens_of(model: HiSem, pairs: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    height, width = model.backbone.grid
    shape = (2, pairs, height * width, model.backbone.dim)
    before, after = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return before, after


def decided(tiny) -> HiSem:
    """A model whose router is sure, one way or the other. Without BDAM, random tokens fall on both sides."""
    model = tiny(bdam={"layers": 0})
    with torch.no_grad():
        model.change.hasd.router.weight *= 4
    return model


@pytest.mark.parametrize("labels", [[True] * 4, [False] * 4, [True, False, False, True]])
def test_a_pair_does_not_depend_on_its_batch(tiny, labels):
    model = tiny()
    before, after = tokens_of(model, len(labels))
    changed = torch.tensor(labels)
    together = model.change(before, after, changed)
    for pair in range(len(labels)):
        one = slice(pair, pair + 1)
        alone = model.change(before[one], after[one], changed[one])
        torch.testing.assert_close(together.memory[one], alone.memory)
        torch.testing.assert_close(together.logits[one], alone.logits)
    assert together.changed.tolist() == labels
    assert (together.experts is None) == (not any(labels))
    if together.experts is None:
        assert float(together.balance_loss.detach()) == 0.0
    else:
        assert together.experts.shape[:2] == (sum(labels), before.shape[1])


def test_memory_is_the_sum_of_dates_and_path(tiny):
    """Section 3 spelled out from the parts: LN(b + a + y), y of the path taken."""
    model = tiny()
    hasd, (before, after) = model.change.hasd, tokens_of(model, 2)
    found = hasd(before, after, torch.tensor([True, False]))
    moved = hasd.changed(before[:1], after[:1])[0]
    still = hasd.unchanged(before[1:], after[1:])
    torch.testing.assert_close(found.memory, hasd.norm(before + after + torch.cat([moved, still])))
    torch.testing.assert_close(found.logits, (after - before).mean(1) @ hasd.router.weight.T)


@pytest.mark.parametrize("labels", [[True] * 3, [False] * 3, [True, False, True]])
def test_batch_norm_sees_only_its_paths_pairs(tiny, labels):
    model = tiny().train()
    encoder, changed = model.change, torch.tensor(labels)
    before, after = tokens_of(model, 3)
    start = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    encoder(before, after, changed)
    position = encoder.position()
    modulated = encoder.bdam(before + position, after + position)[:2]
    for path, prefix in PATHS.items():
        own = changed == path
        names = [name for name in start if name.startswith(prefix)]
        assert len(names) == 9  # three batch norms
        moved = [not torch.equal(start[name], buffer) for name, buffer in encoder.named_buffers() if name in names]
        assert moved == [bool(own.any())] * 9
        if own.any():
            # The first norm sees the merged maps of this path's pairs: momentum 0.1 from mean 0, variance 1.
            fusion = encoder.hasd.get_submodule(prefix.split(".")[1]).fusion
            both = torch.cat([date[own] for date in modulated], dim=-1).transpose(1, 2)
            merged = fusion.merge(both.unflatten(2, model.backbone.grid)).detach().transpose(0, 1).flatten(1)
            torch.testing.assert_close(fusion.norm_in.running_mean, 0.1 * merged.mean(1))
            torch.testing.assert_close(fusion.norm_in.running_var, 0.9 + 0.1 * merged.var(1))


def test_gradients_reach_only_the_path_taken(tiny):
    for path in (True, False):
        model = tiny().train()
        found = model.change(*tokens_of(model, 2), torch.tensor([path, path]))
        (found.memory.square().sum() + found.balance_loss).backward()
        for name, parameter in model.change.named_parameters():
            if name.startswith(PATHS[path]):
                assert parameter.grad is not None, name
            elif name.startswith(PATHS[not path]):
                assert parameter.grad is None, name


@torch.no_grad()
def test_router_chooses_by_threshold(tiny):
    model = decided(tiny)
    encoder = model.change
    before, after = tokens_of(model, 8)
    free = encoder(before, after)
    assert free.changed.equal(free.logits.argmax(1) == 1)  # 0.5 equals arg max
    assert free.changed.any()
    assert not free.changed.all()
    probability = free.logits.softmax(1)[:, 1]
    for pair in range(8):
        model.change_threshold = float(probability[pair])
        assert encoder(before, after).changed.equal(probability >= probability[pair])
    for threshold, everyone in ((0.0, True), (1.0, False)):
        model.change_threshold = threshold
        assert model.change_threshold == model.config.hasd.threshold == threshold
        assert (encoder(before, after).changed == everyone).all()


def test_labels_overrule_the_router(tiny):
    model = decided(tiny)
    encoder = model.change
    before, after = tokens_of(model, 8)
    free = encoder(before, after)
    forced = encoder(before, after, ~free.changed)
    assert forced.changed.equal(~free.changed)
    torch.testing.assert_close(forced.logits, free.logits)  # the router's opinion stays
    assert ((forced.memory - free.memory).abs().amax(dim=(1, 2)) > 1e-3).all()
    torch.testing.assert_close(encoder(before, after, free.changed).memory, free.memory)


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan")])
def test_threshold_out_of_range(tiny, value):
    model = tiny()
    with pytest.raises(ConfigError, match=f"threshold is {value}: a value from 0 to 1"):
        model.change_threshold = value
    assert model.change_threshold == 0.5
    with pytest.raises(ConfigError, match=rf"model\.hasd\.threshold is {value}: a value from 0 to 1"):
        HASDConfig(threshold=value)


@pytest.mark.parametrize("settings", [{"threshold": 0.4}, {"top_k": 1}])
def test_routing_without_router(tiny, settings):
    with pytest.raises(ConfigError, match=f"{next(iter(settings))}: this model has no image router"):
        tiny(hasd={"router": False}).set_routing(**settings)


def test_routing_of_a_trained_model(tiny, tmp_path):
    """As a model that was made with the other settings and has the same weights; bundles keep them."""
    settings = {"top_k": 3, "groups": 1, "groups_kept": 1, "balance_weight": 0.5}
    made = tiny(hasd={"moe": settings, "threshold": 0.2})
    model = tiny(seed=1)
    model.load_state_dict(made.state_dict())
    before, after = tokens_of(model, 3)
    changed = torch.tensor([True, False, True])
    plain, expected = model.change(before, after, changed), made.change(before, after, changed)
    model.set_routing(threshold=0.2, **settings)
    model.save_pretrained(tmp_path)
    for routed in (model, HiSem.from_pretrained(tmp_path)):
        assert routed.config.hasd == made.config.hasd
        found = routed.change(before, after, changed)
        assert found.experts.equal(expected.experts)
        torch.testing.assert_close(found.memory, expected.memory)
        torch.testing.assert_close(found.balance_loss, expected.balance_loss)
    assert plain.experts.shape[-1] == 2
    assert not torch.allclose(plain.memory, expected.memory, atol=1e-3)


def test_numbers_of_numpy_and_torch_are_numbers(tiny):
    model = tiny()
    model.change_threshold = torch.tensor([0.1, 0.25, 0.9]).median()
    model.set_routing(top_k=np.int64(1))
    assert (model.config.hasd.threshold, model.config.hasd.moe.top_k) == (0.25, 1)
    model.change.change_threshold = np.float32(0.75)
    assert model.change_threshold == 0.75


def test_no_settings_change_nothing(tiny):
    model = tiny(hasd={"router": False})
    model.set_routing()
    assert model.config.hasd.threshold == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"experts": 16}, r"experts: the weights were made for another value; changeable .* top_k"),
        ({"hidden": 8, "threshold": 0.1}, "hidden: the weights were made for another value"),
        ({"shared_experts": 0}, "shared_experts: the weights were made for another value"),
        ({"top_k": 3}, r"model\.hasd\.moe\.top_k=3: only 2 experts"),
        ({"groups": 3}, r"model\.hasd\.moe\.groups=3: must divide experts=4"),
        ({"groups_kept": 3}, r"model\.hasd\.moe\.groups_kept=3: must be at most groups=2"),
        ({"top_k": 1.5}, r"routing: wrong value type for field .*top_k"),
    ],
)
def test_routing_that_does_not_fit_changes_nothing(tiny, settings, message):
    model = tiny()
    config = model.config
    with pytest.raises(ConfigError, match=message):
        model.set_routing(**settings)
    assert model.config == config
    assert model.change.hasd.config == config.hasd
    assert model.change.hasd.changed.moe.gate.config == config.hasd.moe


@pytest.mark.parametrize("values", [{"hidden": 0}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_illegal_config(values):
    ((name, value),) = values.items()
    with pytest.raises(ConfigError, match=rf"model\.hasd\.{name} is {value}: a value from"):
        HASDConfig(**values)


IMAGES = torch.randint(0, 256, (2, 3, 3, 40, 40), generator=torch.Generator().manual_seed(0)).byte()


@pytest.mark.parametrize("router", [True, False])
@pytest.mark.parametrize("layers", [0, 1])
def test_ablations(tiny, router, layers):
    model = tiny(bdam={"layers": layers}, hasd={"router": router})
    before, after = (model.preprocess(date) for date in IMAGES)
    words = torch.tensor([[START, 5, 6], [START, 7, NULL], [START, 5, 8]])
    changed = torch.tensor([True, False, True])
    output = model(before, after, words, changed)
    # The same from the parts.
    position = model.change.position()
    tokens = [model.backbone(date) + position for date in (before, after)]
    if layers:
        tokens = model.change.bdam(*tokens)[:2]
    b, a = tokens
    still, hasd = model.change.hasd.unchanged(b, a), model.change.hasd
    path = torch.where(changed[:, None, None], hasd.changed(b, a)[0], still) if router else still
    torch.testing.assert_close(output.logits, model.decoder(words, hasd.norm(b + a + path)), rtol=1e-4, atol=1e-5)
    captions = model.caption(*IMAGES, beam=2)
    memory = model.change(model.backbone(before), model.backbone(after)).memory
    best = [hypotheses[0] for hypotheses in model.generate(memory, 2, allow_unknown=False)]
    assert [caption.text for caption in captions] == [model.vocabulary.decode(h.ids) for h in best]
    assert [caption.logprob for caption in captions] == pytest.approx([h.logprob for h in best], abs=1e-4)
    if router:
        assert output.change_logits.shape == (3, 2)
        assert [c.changed for c in captions] == [c.change_probability >= 0.5 for c in captions]
    else:
        assert output.change_logits is None
        assert float(output.balance_loss) == 0.0
        assert [c.change_probability for c in captions] == [None] * 3
        assert [c.changed for c in captions] == [c.text != UNCHANGED_SENTENCE for c in captions]


def test_unknown_is_said_only_where_asked(tiny):
    model = tiny()
    with torch.no_grad():
        model.decoder.output.bias[UNK] = 9.0
    plain = model.caption(IMAGES[0], IMAGES[1], 2)
    assert not any("<UNK>" in caption.text for caption in plain)
    assert {caption.text for caption in model.caption(IMAGES[0], IMAGES[1], 2, keep_unknown=True)} == {
        " ".join(["<UNK>"] * model.config.decoder.max_length)
    }


def test_both_paths_equal_what_either_threshold_gives(tiny):
    model = tiny()
    with torch.no_grad():
        model.decoder.output.weight *= 12  # so that the paths show in what is said
    before, after = IMAGES[0], IMAGES[1]
    probabilities = [caption.change_probability for caption in model.caption(before, after)]
    model.set_routing(threshold=sorted(probabilities)[1])
    chosen = model.caption(before, after, 2)
    found = model.caption_paths(before, after, 2)
    captions = {}
    for path, threshold in ((True, 0.0), (False, 1.0)):
        model.set_routing(threshold=threshold)
        captions[path] = model.caption(before, after, 2, explain=True)
        assert {caption.changed for caption in captions[path]} == {path}
    assert len({caption.changed for caption in chosen}) == 2
    apart = [abs(still.logprob - moved.logprob) for still, moved in zip(captions[False], captions[True], strict=True)]
    assert min(apart) > 0.01
    for pair, said, still, moved in zip(found, chosen, captions[False], captions[True], strict=True):
        assert pair.changed is not None
        assert pair.experts is not None
        for one, other in ((pair.chosen, said), (pair.unchanged, still), (pair.changed, moved)):
            assert (one.text, one.changed) == (other.text, other.changed)
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert one.change_probability == pytest.approx(other.change_probability, abs=1e-6)
        assert moved.explanation is not None
        assert moved.explanation.experts is not None
        assert np.array_equal(pair.experts, moved.explanation.experts.reshape(pair.experts.shape))
    assert model.caption_paths(before[:0], after[:0]) == []


def test_both_paths_may_say_unknown_where_asked(tiny):
    model = tiny()
    with torch.no_grad():
        model.decoder.output.bias[UNK] = 9.0
    for keep in (False, True):
        (pair, *_) = model.caption_paths(IMAGES[0], IMAGES[1], keep_unknown=keep)
        assert pair.changed is not None
        assert ["<UNK>" in caption.text for caption in (pair.unchanged, pair.changed)] == [keep, keep]


def test_without_router_there_is_one_path(tiny):
    model = tiny(hasd={"router": False})
    found = model.caption_paths(IMAGES[0], IMAGES[1], 2)
    assert [pair.chosen for pair in found] == model.caption(IMAGES[0], IMAGES[1], 2)
    assert all(pair.changed is None and pair.experts is None and not pair.routed_changed for pair in found)


def test_without_router_the_canonical_sentence_means_unchanged(tiny, monkeypatch):
    model = tiny(hasd={"router": False}, decoder={"max_length": 9})
    sentence = UNCHANGED_SENTENCE.split()
    model.vocabulary = Vocabulary((*model.vocabulary.words[:4], *sorted(set(sentence)), "x"))
    ids = model.vocabulary.encode(UNCHANGED_SENTENCE, 9)
    whole, first = (Hypothesis(tuple(ids[1:end]), 0.0) for end in (-1, 2))
    monkeypatch.setattr(model, "generate", lambda memory, beam, allow_unknown: [[whole], [first]])
    captions = model.caption(IMAGES[0][:2], IMAGES[1][:2])
    assert [(c.text, c.changed) for c in captions] == [(UNCHANGED_SENTENCE, False), (sentence[0], True)]


def batch_of(seed: int, changed: list[bool]) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (2, len(changed), 3, 32, 48), generator=generator).byte()
    words = torch.randint(4, 11, (len(changed), 5), generator=generator)
    words[:, 0], words[:, -1] = START, END
    return Batch([""] * len(changed), images[0], images[1], words, torch.tensor(changed), [[]] * len(changed))


RANK_BATCHES = [
    [[True, False, True], [True, True, True], [False, False, False]],
    [[False, False, False], [False, False, False], [False, False, False]],
]


def train_rank(rank: int, folder: Path) -> None:
    """What one of two DDP ranks does: three steps, then its weights to a file."""
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    torch.set_num_threads(1)
    start = torch.load(folder / "start.pt", weights_only=True)
    config = from_dict(HiSemConfig, start["config"], "test")
    hisem = HiSem(config, Vocabulary.from_dict(start["vocabulary"]))
    hisem.load_state_dict(start["weights"])
    recipe = TrainingConfig(learning_rate=1e-2, router_ramp="constant")
    model = DistributedDataParallel(hisem, find_unused_parameters=True)
    batches = [batch_of(10 * rank + step, changed) for step, changed in enumerate(RANK_BATCHES[rank])]
    torch.manual_seed(rank)
    try:
        train_epoch(model, hisem, batches, make_optimizer(hisem, recipe), recipe, 0, len(batches))
    finally:
        dist.destroy_process_group()
    torch.save(hisem.state_dict(), folder / f"rank{rank}.pt")


def test_ddp_survives_a_rank_without_changed_pairs(tiny, tmp_path):
    model = tiny()
    vocabulary = model.vocabulary.to_dict()
    start = {"config": to_dict(model.config), "vocabulary": vocabulary, "weights": model.state_dict()}
    torch.save(start, tmp_path / "start.pt")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "1", str(tmp_path)]
    threads = torch.get_num_threads()
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as other:
        try:
            train_rank(0, tmp_path)
            _, errors = other.communicate(timeout=60)
        finally:
            other.kill()
            torch.set_num_threads(threads)
    assert other.returncode == 0, errors
    one, two = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    names = [name for name, _ in model.named_parameters()]
    assert [name for name in names if not torch.equal(one[name], two[name])] == []
    # Both paths learned: the changed one from the other rank's pairs too.
    weights = start["weights"]
    for prefix in PATHS.values():
        assert any(not torch.equal(one[n], weights[n]) for n in names if n.startswith(f"change.{prefix}"))
    assert all(tensor.isfinite().all() for tensor in one.values())


if __name__ == "__main__":
    train_rank(int(sys.argv[1]), Path(sys.argv[2]))
