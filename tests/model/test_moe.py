"""The mixture of experts against plain loops over tokens, experts and groups (section 3)."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hisem.errors import ConfigError
from hisem.model.moe import MoEConfig, TokenMoE

DIM = 12
SMALL = MoEConfig(experts=6, top_k=2, groups=3, groups_kept=2, shared_experts=1, hidden=10, balance_weight=0.5)


def mixture(config, seed=0):
    torch.manual_seed(seed)
    return TokenMoE(DIM, config)


def chosen_by_rule(scores, config):
    """Experts of one token from its E scores: best groups by their best expert, then the best of those."""
    size = config.experts // config.groups
    groups = [scores[first : first + size].max() for first in range(0, config.experts, size)]
    kept = np.argsort(groups)[::-1][: config.groups_kept]
    eligible = [expert for expert in range(config.experts) if expert // size in kept]
    return set(sorted(eligible, key=lambda expert: -scores[expert])[: config.top_k])


def swiglu(token, gate, up, down):
    inner = gate @ token
    return down @ (inner * torch.sigmoid(inner) * (up @ token))


def looped(moe, features):
    """Output, balance loss and choice, one token and one expert at a time; differentiable."""
    config = moe.config
    output, balance, choice = [], [], []
    for sequence in features:
        counts, mean, row = [0] * config.experts, torch.zeros(config.experts), []
        for token in sequence:
            scores = torch.sigmoid(moe.gate.weight @ token)
            experts = chosen_by_rule(scores.detach().numpy(), config)
            mixed = sum(
                scores[e] * swiglu(token, moe.experts.gate[e], moe.experts.up[e], moe.experts.down[e]) for e in experts
            )
            if moe.shared is not None:
                mixed = mixed + swiglu(token, moe.shared.gate.weight, moe.shared.up.weight, moe.shared.down.weight)
            output.append(mixed)
            row.append(experts)
            mean = mean + scores / len(sequence)
            for expert in experts:
                counts[expert] += 1
        load = torch.tensor(counts) * config.experts / (len(sequence) * config.top_k)
        balance.append((load * mean).sum())
        choice.append(row)
    return (
        torch.stack(output).view_as(features),
        config.balance_weight * torch.stack(balance).mean(),
        choice,
    )


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


CONFIGS = {
    "grouped": SMALL,
    "one group": replace(SMALL, groups=1, groups_kept=1, top_k=3),
    "all groups kept": replace(SMALL, groups_kept=3, top_k=4),
    "groups of one": replace(SMALL, groups=6, groups_kept=2),
    "no shared expert": replace(SMALL, shared_experts=0),
    "two shared experts": replace(SMALL, shared_experts=2),
    "one expert": replace(SMALL, experts=1, top_k=1, groups=1, groups_kept=1),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_output_and_gradients_equal_the_loop(name):
    moe = mixture(CONFIGS[name])
    features = torch.randn(3, 5, DIM)
    weight = torch.randn(3, 5, DIM)  # of the outputs in the scalar that is differentiated

    def differentiated(run):
        moe.zero_grad()
        inputs = features.clone().requires_grad_()
        tokens, balance, choice = run(inputs)
        ((tokens * weight).sum() + balance).backward()
        return tokens, balance, choice, [inputs.grad, *(parameter.grad for parameter in moe.parameters())]

    tokens, balance, choice, gradients = differentiated(moe)
    expected_tokens, expected_balance, expected_choice, expected_gradients = differentiated(
        lambda inputs: looped(moe, inputs)
    )
    close(tokens, expected_tokens)
    close(balance, expected_balance)
    assert [[set(token) for token in row] for row in choice.tolist()] == expected_choice
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        close(gradient, torch.zeros_like(gradient) if expected is None else expected)


LEGAL = [
    (experts, groups, kept, top_k)
    for experts, groups, kept, top_k in product((1, 2, 4, 6, 8, 12), (1, 2, 3, 4, 6), (1, 2, 3, 4), (1, 2, 3, 5, 8))
    if experts % groups == 0 and kept <= groups and top_k <= kept * experts // groups
]


def test_group_limited_choice():
    assert len(LEGAL) > 50
    for seed, (experts, groups, kept, top_k) in enumerate(LEGAL):
        config = replace(SMALL, experts=experts, groups=groups, groups_kept=kept, top_k=top_k)
        gate = mixture(config, seed).gate
        choice = gate(torch.randn(20, DIM))
        for chosen, weight, scores in zip(*(part.detach().numpy() for part in choice), strict=True):
            assert len(chosen) == top_k
            assert set(chosen) == chosen_by_rule(scores, config)
            assert (np.diff(scores[chosen]) <= 0).all()  # best first
            np.testing.assert_array_equal(weight, scores[chosen])  # raw scores, not renormalised


def test_scores_are_sigmoids_of_a_linear_map():
    gate = mixture(SMALL).gate
    tokens = torch.randn(7, DIM)
    close(gate(tokens).scores, 1 / (1 + torch.exp(-(tokens @ gate.weight.T))))


def test_expert_without_tokens():
    moe = mixture(replace(SMALL, groups=1, groups_kept=1))
    features = torch.rand(2, 4, DIM)  # positive, so that the sign of a gate's row decides
    with torch.no_grad():
        moe.gate.weight[3:] = -moe.gate.weight[3:].abs() - 1
        moe.gate.weight[:3].abs_()
    found = moe(features)
    assert int(found.expert_index.max()) == 2
    close(found.tokens, looped(moe, features)[0])
    found.tokens.sum().backward()
    for weight in (moe.experts.gate, moe.experts.up, moe.experts.down):
        assert not weight.grad[3:].any()
        assert weight.grad[:3].flatten(1).any(dim=1).all()


@pytest.mark.parametrize("counts", [[3, 0, 4, 2, 0, 1], [0, 0, 0, 0, 0, 10], [10, 0, 0, 0, 0, 0]])
def test_grouped_products_equal_the_loop(counts):
    """What a GPU runs in bfloat16, here in float32: experts without tokens anywhere, gradients too."""
    experts = mixture(replace(SMALL, hidden=8)).experts
    found = []
    for run in (experts.grouped, experts.looped):
        experts.zero_grad()
        tokens = torch.randn(10, DIM, generator=torch.Generator().manual_seed(1)).requires_grad_()
        output = run(tokens, torch.tensor(counts))
        output.square().sum().backward()
        found.append([output, tokens.grad, *(weight.grad for weight in experts.parameters())])
    for grouped, looped in zip(*found, strict=True):
        close(grouped, looped)


def test_an_experts_gradient_is_not_as_large_as_all_of_them():
    """Indexing stacked weights would cost a gradient of all experts for each of them."""
    moe = mixture(replace(SMALL, experts=64, groups=1, groups_kept=1))
    with torch.profiler.profile(profile_memory=True) as profile:
        moe(torch.randn(2, 9, DIM)).tokens.sum().backward()
    allocated = sum(event.self_cpu_memory_usage for event in profile.events() if event.self_cpu_memory_usage > 0)
    weights = sum(4 * weight.numel() for weight in moe.experts.parameters())
    assert allocated < 5 * weights


@torch.no_grad()
def test_balance_loss_of_known_loads():
    """All tokens on two experts: c = E/k for those; of an even load: c = 1 for all."""
    config = replace(SMALL, groups=1, groups_kept=1, balance_weight=0.001)
    moe = mixture(config)
    moe.gate.weight.fill_(-1.0)
    moe.gate.weight[:2] = 1.0
    token = torch.full((1, 4, DIM), 0.1)
    high = float(torch.sigmoid(torch.tensor(0.1 * DIM)))
    assert float(moe(token).balance_loss) == pytest.approx(0.001 * 2 * 3 * high)
    moe.gate.weight.fill_(-1.0)
    for expert in range(6):
        moe.gate.weight[expert, expert // 2] = 2.0 * DIM
    three = torch.zeros(1, 3, DIM)
    three[0, range(3), range(3)] = 0.1  # token t goes to experts 2t and 2t + 1
    found = moe(three)
    assert [set(row) for row in found.expert_index[0].tolist()] == [{0, 1}, {2, 3}, {4, 5}]
    high, low = torch.sigmoid(torch.tensor([0.2 * DIM, -0.1])).tolist()
    assert float(found.balance_loss) == pytest.approx(0.001 * 6 * (high + 2 * low) / 3)


def test_only_chosen_experts_are_computed():
    config = replace(SMALL, experts=8, groups=4, top_k=2, shared_experts=2)
    moe, features = mixture(config), torch.randn(2, 9, DIM)
    with FlopCounterMode(display=False) as counter:
        moe(features)
    tokens = 2 * 9
    expected = tokens * DIM * config.experts  # the gate
    expected += tokens * config.top_k * 3 * DIM * config.hidden
    expected += tokens * 3 * DIM * (2 * DIM)  # the shared expert
    assert counter.get_total_flops() == 2 * expected


def test_autocast_keeps_scores_in_float32():
    moe, features = mixture(SMALL), torch.randn(2, 5, DIM)
    plain = moe(features)
    with torch.autocast("cpu", torch.bfloat16):
        found = moe(features)
        scores = moe.gate(features.flatten(0, 1).bfloat16()).scores
    assert scores.dtype == found.balance_loss.dtype == torch.float32
    assert found.expert_index.sort().values.equal(plain.expert_index.sort().values)
    close(found.balance_loss, plain.balance_loss)
    torch.testing.assert_close(found.tokens.float(), plain.tokens, rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"experts": 0}, r"model\.hasd\.moe\.experts is 0: a value from"),
        ({"top_k": 0}, r"model\.hasd\.moe\.top_k is 0: a value from"),
        ({"groups": -1}, r"model\.hasd\.moe\.groups is -1: a value from"),
        ({"groups_kept": 0}, r"model\.hasd\.moe\.groups_kept is 0: a value from"),
        ({"hidden": 0}, r"model\.hasd\.moe\.hidden is 0: a value from"),
        ({"shared_experts": -1}, r"model\.hasd\.moe\.shared_experts is -1: a value from"),
        ({"balance_weight": -0.1}, r"model\.hasd\.moe\.balance_weight is -0\.1: a value from"),
        ({"balance_weight": float("nan")}, r"model\.hasd\.moe\.balance_weight is nan: a value from"),
        ({"groups": 3}, r"model\.hasd\.moe\.groups=3: must divide experts=8"),
        ({"groups_kept": 5}, r"model\.hasd\.moe\.groups_kept=5: must be at most groups=4"),
        ({"top_k": 5}, r"model\.hasd\.moe\.top_k=5: only 4 experts .* lower top_k or raise groups_kept"),
    ],
)
def test_illegal_config(values, message):
    with pytest.raises(ConfigError, match=message):
        MoEConfig(**values)
