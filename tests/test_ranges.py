"""Ranges of numbers: one walk over the options of all commands, and what is in a range."""

from __future__ import annotations

import importlib.util
import math
import pickle
import sys
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
import yaml

from hisem import cli
from hisem.config import from_dict, read_yaml
from hisem.errors import ConfigError
from hisem.ranges import Range, RangeError, ranges_of
from hisem.training.options import parse_experiment
from hisem.training.recipe import Experiment

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = sorted(
    str(path.relative_to(ROOT))
    for folder in ("pipelines", "tune", "cluster")
    for path in (ROOT / folder).glob("*.py")
    if "__main__" in path.read_text()
)
NEEDED = {
    "pipelines/pair.py": ["--items", "i", "--output", "o.csv"],
    "pipelines/synthesize.py": ["--output", "o"],
    "pipelines/tile.py": ["--output", "o"],
    "pipelines/evaluate.py": ["--data", "d", "--model", "m"],
    "pipelines/import_checkpoint.py": ["f.pth", "--vocab", "v", "--output", "o"],
    "cluster/local.py": ["status"],
}
"""What a command cannot do without."""

ODD = (0, -1, 10**20, -(10**20), 10**400, 0.5, math.nan, math.inf, -math.inf)


@dataclass(frozen=True)
class Flag:
    """A numeric option of a command."""

    command: str
    name: str
    owner: type
    """The class whose field it is."""
    field: str
    hint: Any

    @property
    def wanted(self) -> set[type]:
        """Which of int and float it takes."""
        return numbers(self.hint)

    @property
    def places(self) -> int:
        """How many numbers it takes."""
        inner = [one for one in (plain(self.hint), *map(plain, get_args(plain(self.hint)))) if get_origin(one) is tuple]
        return len(get_args(inner[0])) if inner else 1


def plain(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def numbers(hint: Any) -> set[type]:
    """The kinds of numbers in a type, wherever in it."""
    if get_origin(hint) is Literal:
        return set()
    return {hint} & {int, float} | {kind for inner in get_args(hint) for kind in numbers(inner)}


@cache
def module(command: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tried_{Path(command).stem}", ROOT / command)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def flags(command: str, owner: type, prefix: str = "") -> Iterator[Flag]:
    """The numeric options of a command; fields marked FLAT stand without their name."""
    for name, hint in get_type_hints(owner, include_extras=True).items():
        inner = plain(hint)
        dotted = f"{prefix}{name}"
        if is_dataclass(inner):
            assert isinstance(inner, type)
            yield from flags(command, inner, prefix if cli.FLAT in get_args(hint)[1:] else f"{dotted}.")
        elif numbers(hint):
            yield Flag(command, f"--{dotted.replace('_', '-')}", owner, name, hint)


FLAGS = [flag for command in COMMANDS for flag in flags(command, module(command).Options)]


def parse(command: str, arguments: list[str]) -> Any:
    """The options of a command line, as the command itself reads them."""
    options, needed = module(command).Options, NEEDED.get(command, [])
    has_experiment = any(field.name == "experiment" for field in fields(options))
    return (parse_experiment if has_experiment else cli.parse)(options, "", [*needed, *arguments])


def test_all_commands_are_walked() -> None:
    assert len(COMMANDS) == 10
    assert {"--tile-size", "--training.batch-size", "--model.hasd.moe.experts", "--workers", "--object-store"} <= {
        flag.name for flag in FLAGS
    }
    assert len(FLAGS) > 90


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: f"{flag.command}{flag.name}")
def test_every_number_has_a_range(flag: Flag, capsys: pytest.CaptureFixture[str]) -> None:
    allowed = ranges_of(flag.owner)[flag.field]
    assert -math.inf < allowed.low < allowed.high < math.inf
    outside = [value for value in ODD if value not in allowed and {type(value), float} & flag.wanted]
    assert any(math.isinf(value) for value in outside if isinstance(value, float)) or float not in flag.wanted
    key = flag.name.removeprefix("--").replace("-", "_")
    for value in outside:
        shaped: Any = (value,) * flag.places if flag.places > 1 else value
        if get_origin(plain(flag.hint)) is dict:
            shaped = {"depth": value}
        with pytest.raises(RangeError) as raised:
            flag.owner(**required(flag.owner) | {flag.field: shaped})
        assert raised.value.key in key + (".depth" if isinstance(shaped, dict) else "")
        assert raised.value.allowed == allowed
    if get_origin(plain(flag.hint)) is dict:
        return  # flags of its own for each key
    # What the person sees: the flag, the value and the range, and exit code 2, before anything is done.
    worst = next(value for value in (10**20, 2 * 10**308, math.nan) if value not in allowed)
    with pytest.raises(SystemExit) as ended:
        cli.run(
            lambda options: pytest.fail("ran"), lambda: parse(flag.command, [flag.name, *[str(worst)] * flag.places])
        )
    assert ended.value.code == cli.Exit.USAGE
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {flag.name} is ")
    assert f": a value {allowed} is needed." in shown


def required(owner: type) -> dict[str, Any]:
    """Some value for each field of a class that has no default."""
    found = {field.name for field in fields(owner) if field.default is MISSING and field.default_factory is MISSING}
    return dict.fromkeys(found, "x")


@pytest.mark.parametrize("flag", ["--tile-size", "--beam", "--cpus", "--batch-size", "--captioners"])
def test_text_in_place_of_a_whole_number_is_a_usage_error(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("nan", "inf", "1e20", "1.5"):
        with pytest.raises(SystemExit) as ended:
            parse("pipelines/caption.py", [flag, text])
        assert ended.value.code == cli.Exit.USAGE
        assert flag in capsys.readouterr().err


@pytest.mark.parametrize("flag", [flag for flag in FLAGS if flag.name.startswith(("--model.", "--training."))], ids=str)
def test_files_are_held_to_the_same_ranges(flag: Flag, tmp_path: Path) -> None:
    if flag.command != "pipelines/train.py":
        return
    allowed = ranges_of(flag.owner)[flag.field]
    worst: Any = 10**20 if int in flag.wanted else math.nan
    value = [worst] * flag.places if flag.places > 1 else {"depth": worst} if "options" in flag.name else worst
    *path, name = flag.name.removeprefix("--").replace("-", "_").split(".")
    data: dict[str, Any] = {name: value}
    for part in reversed(path):
        data = {part: data}
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(data))
    with pytest.raises(RangeError) as raised:
        from_dict(Experiment, read_yaml(str(file)), str(file))
    assert raised.value.allowed == allowed


def test_files_with_numbers_beyond_floats(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"training: {{learning_rate: {10**400}}}")
    with pytest.raises(ConfigError, match=r"learning_rate is inf"):
        from_dict(Experiment, read_yaml(f"{tmp_path}/c.yaml"), "c.yaml")
    (tmp_path / "c.yaml").write_text(f"training: {{learning_rate: {'1' * 5000}}}")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_yaml(f"{tmp_path}/c.yaml")


@pytest.mark.parametrize(
    ("allowed", "inside", "outside", "text"),
    [
        (Range(1, 8192), (1, 8192), (0, 8193, -1, math.nan, math.inf), "from 1 to 8192"),
        (Range(0, 1, below=True), (0, 0.0, 0.999), (1, 1.0, -0.0001), "from 0 to below 1"),
        (Range(0, 25, above=True), (1e-9, 25), (0, -0.0, 25.1), "above 0 to 25"),
    ],
)
def test_a_range_holds_its_ends_unless_one_is_left_out(
    allowed: Range, inside: tuple[float, ...], outside: tuple[float, ...], text: str
) -> None:
    assert all(value in allowed for value in inside)
    assert not any(value in allowed for value in outside)
    assert str(allowed) == text
    error = RangeError("tile_size", 0, allowed)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
