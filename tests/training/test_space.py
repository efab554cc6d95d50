"""Search spaces: what the default one draws is legal, and a grid holds what there is to draw."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import optuna
import pytest

from hisem.errors import ConfigError
from hisem.training.presets import preset
from hisem.training.space import Space

DEFAULT = Path(__file__).parents[2] / "tune" / "space.py"
BASE = preset("demo")


def space(tmp_path: Path, body: str) -> Space:
    (tmp_path / "space.py").write_text(f"def space(trial, base):\n    {body}\n")
    return Space.read(str(tmp_path / "space.py"), BASE)


def legal(experts: int, groups: int, kept: int, top_k: int) -> bool:
    """By the definition of group-limited routing."""
    return experts % groups == 0 and kept <= groups and top_k <= kept * (experts // groups)


@pytest.mark.parametrize("sampler", [optuna.samplers.RandomSampler(seed=0), optuna.samplers.TPESampler(seed=0)])
def test_the_default_space_draws_legal_settings_only(sampler: optuna.samplers.BaseSampler) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    default = Space.read(str(DEFAULT), BASE)
    study = optuna.create_study(sampler=sampler)
    seen = set()
    for number in range(300):
        trial = study.ask()
        experiment = default.experiment(default(trial))
        moe = experiment.model.hasd.moe
        drawn = (moe.experts, moe.groups, moe.groups_kept, moe.top_k)
        assert legal(*drawn)
        assert drawn == tuple(trial.params[name] for name in ("experts", "groups", "groups_kept", "top_k"))
        assert experiment.model.bdam.difference_weight == trial.params["lambda"]
        assert experiment.training.learning_rate == trial.params["learning_rate"]
        assert BASE.training.learning_rate / 3 <= experiment.training.learning_rate <= BASE.training.learning_rate * 3
        seen.add(drawn)
        study.tell(trial, float(number % 7))
    assert len(seen) > 20


def test_the_default_spaces_grid_is_all_legal_routings_times_the_rest() -> None:
    default = Space.read(str(DEFAULT), BASE)
    grid = list(default.grid())
    drawn = [tuple(values[name] for name in ("experts", "groups", "groups_kept", "top_k")) for values, _ in grid]
    wanted = {c for c in itertools.product((4, 8, 16), (1, 2, 4), range(1, 5), range(1, 5)) if legal(*c)}
    assert set(drawn) == wanted
    assert len(grid) == len(wanted) * 3 * 3 * 3 * 3  # shared experts, and three points of each range of floats
    assert len({tuple(values.items()) for values, _ in grid}) == len(grid)


def test_a_grid_is_what_nested_loops_give(tmp_path: Path) -> None:
    nested = space(
        tmp_path,
        """a = trial.suggest_categorical("a", ["x", "y"])
    n = trial.suggest_int("n", 1, 5, step=2) if a == "x" else trial.suggest_int("m", 2, 16, log=True)
    assert trial.suggest_categorical("a", ["x", "y"]) == a
    return {"training": {"learning_rate": trial.suggest_float("r", 1e-4, 1e-2, log=True), "epochs": n,
                         "tint": trial.suggest_float("t", 0.0, 0.3, step=0.1)}}""",
    )
    loops: list[dict[str, Any]] = [
        {"a": a, name: n, "r": r, "t": t}
        for a, name, numbers in (("x", "n", (1, 3, 5)), ("y", "m", (2, 4, 8, 16)))
        for n in numbers
        for r in (1e-4, 1e-3, 1e-2)
        for t in (0.0, 0.1, 0.2, 0.3)
    ]
    grid = [values for values, _ in nested.grid()]
    assert [list(values) for values in grid] == [list(values) for values in loops]
    for values, wanted in zip(grid, loops, strict=True):
        assert values == {name: pytest.approx(v) if isinstance(v, float) else v for name, v in wanted.items()}
    assert [settings["training"]["epochs"] for _, settings in nested.grid()] == [w.get("n", w.get("m")) for w in loops]


def test_settings_go_over_the_base(tmp_path: Path) -> None:
    one = space(tmp_path, 'return {"model": {"hasd": {"moe": {"experts": base.model.hasd.moe.experts * 2}}}}')
    ((_, settings),) = one.grid()
    experiment = one.experiment(settings)
    assert experiment.model.hasd.moe.experts == 2 * BASE.model.hasd.moe.experts
    assert experiment.training == BASE.training


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def space(trial, base)\n", "cannot be run as Python"),
        ("import nothing_of_this_name\n", "ModuleNotFoundError"),
        ("space = 3\n", r"no function space\(trial, base\)"),
    ],
)
def test_a_file_without_a_space_is_refused(tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "bad.py").write_text(source)
    with pytest.raises(ConfigError, match=message) as caught:
        Space.read(str(tmp_path / "bad.py"), BASE)
    assert "bad.py" in str(caught.value)


def test_settings_of_the_wrong_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model and training"):
        list(space(tmp_path, 'return {"moe": {"experts": 4}}').grid())
    unknown = space(tmp_path, 'return {"training": {"learning_rat": 1}}')
    with pytest.raises(ConfigError, match=r"did you mean training\.learning_rate"):
        unknown.experiment(next(unknown.grid())[1])
