"""One epoch on one worker: it learns, follows the schedule, and stops where the loss breaks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hisem.errors import TrainingError
from hisem.model.hisem import HiSem
from hisem.training.batches import Batch
from hisem.training.epoch import EpochSums, StepReport, in_bf16, make_optimizer, tinted, train_epoch
from hisem.training.evaluation import caption_batches
from hisem.training.recipe import TrainingConfig

Tiny = Callable[..., HiSem]
Pairs = Callable[..., Batch]
EPOCHS = 100


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_overfits_eight_pairs(tiny: Tiny, batch: Pairs) -> None:
    model, pairs = tiny(), batch(8)
    recipe = TrainingConfig(
        epochs=EPOCHS, learning_rate=5e-3, router_ramp="constant", label_routing_epochs=EPOCHS, clip_norm=1.0
    )
    optimizer = make_optimizer(model, recipe)
    losses = [train_epoch(model, model, [pairs], optimizer, recipe, epoch, 1).caption_loss for epoch in range(EPOCHS)]
    words = len(model.vocabulary)
    assert losses[0] == pytest.approx(np.log(words), rel=0.2)  # an untrained model guesses
    assert losses[-1] < 0.1 * losses[0]
    shown = [model.vocabulary.decode(ids) for ids in pairs.word_ids.tolist()]
    captions = caption_batches(model, [pairs])
    right = [result.caption == sentence for result, sentence in zip(captions, shown, strict=True)]
    assert sum(right) >= 7
    assert sum(result.predicted == result.changed for result in captions) >= 7


@pytest.mark.parametrize("epoch", [0, 5])
def test_summary_is_the_mean_over_steps_of_what_on_step_hears(tiny: Tiny, batch: Pairs, epoch: int) -> None:
    model = tiny()
    heard: list[StepReport] = []
    recipe = TrainingConfig(epochs=9, router_frozen_epochs=4)
    parts = [batch(8, seed=seed) for seed in range(3)]
    summary = train_epoch(
        model,
        model,
        parts,
        make_optimizer(model, recipe),
        recipe,
        epoch,
        3,
        on_step=heard.append,
    )
    assert [report.step for report in heard] == [1, 2, 3]
    assert summary.loss == pytest.approx(np.mean([report.loss for report in heard]))
    # In epoch 0 the router's loss counts in full although it has no gradient; in epoch 5 of 9 by w = 0.25.
    weight = {0: 1, 5: np.sin(np.radians(90 * 2 / 6)) ** 2}[epoch]
    assert summary.loss == pytest.approx(summary.caption_loss + 0.8 * weight * summary.router_loss)
    assert summary.balance_loss > 0  # not part of the reported loss
    assert (summary.pairs, summary.steps) == (24, 3)


def test_labels_choose_the_path_first_and_the_router_afterwards(tiny: Tiny, batch: Pairs) -> None:
    model, pairs, given = tiny(), batch(4), []
    model.register_forward_pre_hook(lambda module, args: given.append(args[3]))
    recipe = TrainingConfig(epochs=4, label_routing_epochs=2)
    optimizer = make_optimizer(model, recipe)
    for epoch in range(4):
        train_epoch(model, model, [pairs], optimizer, recipe, epoch, 1)
    assert all(torch.equal(labels, pairs.changed) for labels in given[:2])
    assert given[2:] == [None, None]


def test_router_stands_still_while_frozen(tiny: Tiny, batch: Pairs) -> None:
    model, recipe = tiny(), TrainingConfig(epochs=9, router_frozen_epochs=2, learning_rate=1e-2)
    router = model.change.hasd.router
    assert router is not None
    start = router.weight.detach().clone()
    optimizer = make_optimizer(model, recipe)
    for epoch in range(2):
        train_epoch(model, model, [batch(8)], optimizer, recipe, epoch, 1)
    assert torch.equal(router.weight, start)
    train_epoch(model, model, [batch(8)], optimizer, recipe, 2, 1)
    assert not torch.equal(router.weight, start)


def test_a_loss_that_is_not_finite_leaves_the_weights_alone(tiny: Tiny, batch: Pairs) -> None:
    model, recipe = tiny(), TrainingConfig(learning_rate=1e-2)
    optimizer = make_optimizer(model, recipe)
    before: dict[str, torch.Tensor] = {}
    many = batch(12)

    def batches() -> Iterator[Batch]:
        yield batch(4)
        nn.init.constant_(model.decoder.output.bias, torch.nan)
        before.update(snapshot(model))
        yield many

    with pytest.raises(TrainingError, match=r"epoch 4, step 2: .*not finite.*clip_norm") as caught:
        train_epoch(model, model, batches(), optimizer, recipe, 3, 2)
    named = str(caught.value).partition("Tiles: ")[2]
    assert [tile for tile in many.tile_ids if tile in named] == many.tile_ids[:8]
    assert "..." in named
    assert "weights were not changed" in str(caught.value)
    after = snapshot(model)
    assert all(torch.equal(after[name], value) for name, value in before.items() if not value.isnan().any())
    assert after["decoder.output.bias"].isnan().all()


def test_no_batch_is_an_error(tiny: Tiny) -> None:
    model = tiny()
    with pytest.raises(TrainingError, match=r"epoch 3: no batch"):
        train_epoch(model, model, [], make_optimizer(model, TrainingConfig()), TrainingConfig(), 2, 1)


def test_frozen_parameters_are_not_optimised(tiny: Tiny, batch: Pairs) -> None:
    model = tiny(backbone={"trainable_blocks": 1})
    recipe = TrainingConfig(optimizer="adamw", weight_decay=0.5, learning_rate=1e-2, clip_norm=1.0)
    optimizer = make_optimizer(model, recipe)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert {name.split(".")[0] for name in frozen} == {"backbone"}
    assert any(name.startswith("backbone") for name, _ in model.named_parameters() if name not in frozen)
    start = snapshot(model)
    statistics = model.backbone.net.bn1.running_mean.clone()
    train_epoch(model, model, [batch(8)], optimizer, recipe, 5, 1)
    moved = {name for name, value in snapshot(model).items() if not torch.equal(value, start[name])}
    assert not moved & frozen
    assert any(name.startswith("backbone") for name in moved)
    assert torch.equal(model.backbone.net.bn1.running_mean, statistics)


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_optimizer_is_the_one_asked_for(tiny: Tiny, name: str, kind: type) -> None:
    optimizer = make_optimizer(tiny(), TrainingConfig(optimizer=name, weight_decay=0.3, learning_rate=0.2))  # type: ignore[arg-type]
    assert type(optimizer) is kind
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.2, 0.3)]


class Recorder(torch.optim.SGD):
    """Notes the rate and the gradients' norm at every step."""

    def __init__(self, model: nn.Module, rate: float) -> None:
        super().__init__([p for p in model.parameters() if p.requires_grad], lr=rate)
        self.rates: list[float] = []
        self.norms: list[float] = []

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        self.rates.append(self.param_groups[0]["lr"])
        gradients = [p.grad for p in self.param_groups[0]["params"] if p.grad is not None]
        self.norms.append(torch.stack([gradient.norm() for gradient in gradients]).norm().item())
        super().step()


def test_learning_rate_follows_the_schedule_over_epochs(tiny: Tiny, batch: Pairs) -> None:
    model = tiny()
    recipe = TrainingConfig(epochs=3, learning_rate=0.4, schedule="cosine", warmup_steps=2)
    optimizer = Recorder(model, 0.4)
    for epoch in range(3):
        train_epoch(model, model, [batch(4)] * 2, optimizer, recipe, epoch, 2)
    # Six steps: two of warm-up, then four that fall from the top, cosine squared of 0, 22.5, 45 and 67.5 degrees.
    assert optimizer.rates == pytest.approx([0.2, 0.4, 0.4, 0.4 * 0.8535534, 0.4 * 0.5, 0.4 * 0.1464466])


def test_gradients_are_clipped_only_when_asked(tiny: Tiny, batch: Pairs) -> None:
    norms = {}
    for limit in (0.0, 0.01):
        model = tiny()
        optimizer = Recorder(model, 1e-4)
        train_epoch(model, model, [batch(8)], optimizer, TrainingConfig(clip_norm=limit), 5, 1)
        norms[limit] = optimizer.norms
    assert norms[0.0][0] > 0.1
    assert norms[0.01] == pytest.approx([0.01], rel=1e-3)


def test_waiting_for_data_is_measured(tiny: Tiny, batch: Pairs) -> None:
    model, pairs = tiny(), batch(4)

    def slow() -> Iterator[Batch]:
        for _ in range(2):
            time.sleep(0.1)
            yield pairs
        time.sleep(0.1)

    heard: list[float] = []

    def step(report: StepReport) -> None:
        heard.append(report.waiting)
        time.sleep(0.15)

    recipe = TrainingConfig()
    optimizer = make_optimizer(model, recipe)
    summary = train_epoch(model, model, slow(), optimizer, recipe, 0, 2, on_step=step)
    assert 0.3 <= summary.waiting <= summary.seconds - 0.3
    assert 0.1 <= heard[0] <= heard[1] - 0.1 <= summary.waiting - 0.2
    prompt = train_epoch(model, model, [pairs], make_optimizer(model, TrainingConfig()), TrainingConfig(), 0, 1)
    assert prompt.waiting < 0.5 * prompt.seconds


def test_bf16_trains_float32_weights(tiny: Tiny, batch: Pairs) -> None:
    summaries = {}
    for precision in ("float32", "bf16"):
        model = tiny()
        seen: list[torch.dtype] = []
        model.decoder.output.register_forward_hook(lambda module, args, output: seen.append(output.dtype))  # noqa: B023
        recipe = TrainingConfig(precision=precision, epochs=8, learning_rate=3e-3)  # type: ignore[arg-type]
        optimizer = make_optimizer(model, recipe)
        summaries[precision] = [
            train_epoch(model, model, [batch(8)], optimizer, recipe, epoch, 1) for epoch in range(8)
        ]
        assert set(seen) == {torch.bfloat16 if precision == "bf16" else torch.float32}
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    for exact, rough in zip(summaries["float32"][:1], summaries["bf16"][:1], strict=True):
        assert rough.caption_loss == pytest.approx(exact.caption_loss, rel=0.02)
    assert summaries["bf16"][-1].caption_loss < 0.9 * summaries["bf16"][0].caption_loss


def test_auto_is_bf16_on_a_gpu_that_has_it() -> None:
    cpu = torch.device("cpu")
    assert [in_bf16(precision, cpu) for precision in ("auto", "float32", "bf16")] == [False, False, True]
    if torch.cuda.is_available():
        gpu = torch.device("cuda", torch.cuda.current_device())
        assert in_bf16("auto", gpu) == (torch.cuda.get_device_capability(gpu) >= (8, 0))
        assert not in_bf16("float32", gpu)


def test_an_epoch_goes_on_after_an_interruption_as_if_there_had_been_none(tiny: Tiny, batch: Pairs) -> None:
    noisy = {"hasd": {"dropout": 0.1}, "decoder": {"dropout": 0.1}}
    recipe = TrainingConfig(epochs=4, tint=0.2, learning_rate=3e-3, schedule="cosine", warmup_steps=5, micro_batch=3)
    parts = [batch(4, seed=number) for number in range(8)]

    whole: list[StepReport] = []
    model = tiny(**noisy)
    expected = train_epoch(model, model, parts, make_optimizer(model, recipe), recipe, 1, 8, on_step=whole.append)

    heard: list[StepReport] = []
    saved: dict[str, Any] = {}
    model = tiny(**noisy)
    optimizer = make_optimizer(model, recipe)

    def checkpoint(done: EpochSums) -> None:
        state = {"weights": model.state_dict(), "optimizer": optimizer.state_dict(), "done": asdict(done)}
        saved.update(deepcopy(state))
        raise InterruptedError

    with pytest.raises(InterruptedError):
        train_epoch(
            model,
            model,
            parts,
            optimizer,
            recipe,
            1,
            8,
            on_step=heard.append,
            wants_checkpoint=lambda: len(heard) == 2,
            checkpoint=checkpoint,
        )
    assert saved["done"]["steps"] == 3
    assert all(type(value) in (int, float) for value in saved["done"].values())

    torch.manual_seed(99)
    model = tiny(seed=7, **noisy)
    model.load_state_dict(saved["weights"])
    optimizer = make_optimizer(model, recipe)
    optimizer.load_state_dict(saved["optimizer"])
    done = EpochSums(**saved["done"])
    summary = train_epoch(model, model, parts[3:], optimizer, recipe, 1, 8, done=done, on_step=heard.append)

    assert [report.step for report in heard] == list(range(1, 9))
    assert [report.loss for report in heard] == pytest.approx([report.loss for report in whole], rel=1e-6)
    assert [report.learning_rate for report in heard] == [report.learning_rate for report in whole]
    timed = {"seconds", "waiting"}
    for name, value in asdict(expected).items():
        assert name in timed or getattr(summary, name) == pytest.approx(value, rel=1e-6)
    assert summary.seconds > done.seconds > 0
    assert summary.waiting >= heard[3].waiting >= done.waiting > 0
    # Another seed is heard, so that dropout and tint had a part in the losses.
    model = tiny(**noisy)
    other: list[StepReport] = []
    seeded = replace(recipe, seed=1)
    train_epoch(model, model, parts[:1], make_optimizer(model, seeded), seeded, 1, 8, on_step=other.append)
    assert abs(other[0].loss - whole[0].loss) > 1e-4


def test_an_epoch_whose_last_step_is_done_has_its_summary(tiny: Tiny) -> None:
    model, recipe = tiny(), TrainingConfig()
    done = EpochSums(2, 16, 3.0, 2.0, 1.0, 0.5, 9.0, 4.0)
    summary = train_epoch(model, model, [], make_optimizer(model, recipe), recipe, 0, 2, done=done)
    assert (summary.loss, summary.caption_loss, summary.router_loss, summary.balance_loss) == (1.5, 1.0, 0.5, 0.25)
    assert (summary.pairs, summary.steps) == (16, 2)


def test_tint_is_a_gain_within_bounds_for_each_image_and_channel() -> None:
    images = torch.full((64, 3, 4, 4), 100, dtype=torch.uint8)
    assert tinted(images, 0.0, torch.Generator()) is images
    shown = tinted(images, 0.3, torch.Generator().manual_seed(0))
    assert shown.dtype == torch.uint8
    gains = shown[:, :, 0, 0].float() / 100  # B 3
    assert torch.equal(shown, shown[:, :, :1, :1].expand_as(shown))
    assert 0.69 <= gains.min() < 0.8
    assert 1.2 < gains.max() <= 1.3
    assert gains.mean() == pytest.approx(1, abs=0.03)
    assert len(gains.unique(dim=0)) > 55
    common = torch.corrcoef(gains.T)[0, 1]  # half of the variance is shared by the channels
    assert 0.25 < common < 0.75
    assert tinted(torch.full((8, 3, 1, 1), 255, dtype=torch.uint8), 0.9, torch.Generator()).max() == 255


def test_epochs_are_tinted_differently_but_repeatably(tiny: Tiny, batch: Pairs) -> None:
    def seen(epoch: int) -> torch.Tensor:
        model, images = tiny(), []
        model.register_forward_pre_hook(lambda module, args: images.extend(args[:2]))
        recipe = TrainingConfig(tint=0.4)
        train_epoch(model, model, [batch(4)], make_optimizer(model, recipe), recipe, epoch, 1)
        return torch.stack(images)

    looks = [seen(0), seen(0), seen(1), seen(2)]
    assert torch.equal(looks[0], looks[1])
    assert not any(torch.equal(one, two) for one, two in pairwise(looks[1:]))
    gains = (looks[0] / looks[2]).std(dim=(1, 2, 3, 4))
    assert (gains > 0).all()
