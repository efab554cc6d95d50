"""What a bundle's values may be: types of weights, bounds on the work per tile, and JSON of any other type."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hisem.config import from_dict, merge
from hisem.errors import BundleError, ConfigError
from hisem.model import bundle
from hisem.model.hisem import HiSem, HiSemConfig
from tests.model.conftest import TINY

FILES = (bundle.CONFIG, bundle.VOCABULARY, bundle.PREPROCESSING, bundle.METRICS)
ABSENT = object()
"""Stands for a key that is taken out."""
VALUES: tuple[Any, ...] = (
    *(ABSENT, None, True, False, 0, 1, -1, 2**31, 2**63, 10**30, 10**400, 1.5, 1e308, float("nan"), float("inf")),
    *("", "x", "1", "\ud800", "\x00", [], [1], [1, 2], [0, 0], [1e9, 1e9], [10**400], [None], [[1]], {}, {"a": 1}),
)
BLANK = torch.zeros(1, 3, 32, 48, dtype=torch.uint8)


@pytest.fixture(scope="module")
def saved(tiny: Callable[..., HiSem], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "saved"
    tiny().save_pretrained(folder, {"epoch": 2, "val_bleu_4": 0.5})
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def stored_as(folder: Path, name: str, dtype: torch.dtype) -> None:
    weights = load_file(folder / bundle.WEIGHTS)
    weights[name] = weights[name].to(dtype)
    save_file(weights, folder / bundle.WEIGHTS)


REFUSED = [
    "bool",
    "uint8",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint16",
    "uint32",
    "uint64",
    "complex64",
    "float64",
    "float8_e4m3fn",
    "float8_e5m2",
]


@pytest.mark.parametrize("dtype", REFUSED)
@pytest.mark.parametrize("name", ["decoder.embedding.weight", "change.position.row", "backbone.net.conv1.0.weight"])
def test_weights_of_other_types_are_refused_by_name(folder: Path, name: str, dtype: str) -> None:
    stored_as(folder, name, getattr(torch, dtype))
    with pytest.raises(BundleError) as caught:
        HiSem.from_pretrained(folder)
    assert f"{name} is torch.{dtype} instead of torch.float32" in str(caught.value)


def test_counters_are_integers(folder: Path) -> None:
    counters = [name for name in load_file(folder / bundle.WEIGHTS) if name.endswith("num_batches_tracked")]
    stored_as(folder, counters[0], torch.float32)
    with pytest.raises(BundleError) as caught:
        HiSem.from_pretrained(folder)
    assert f"{counters[0]} is torch.float32 instead of torch.int64" in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_exactly(folder: Path, dtype: torch.dtype) -> None:
    weights = load_file(folder / bundle.WEIGHTS)
    halved = {name: value.to(dtype) if value.is_floating_point() else value for name, value in weights.items()}
    save_file(halved, folder / bundle.WEIGHTS)
    for name, value in HiSem.from_pretrained(folder).state_dict().items():
        assert value.dtype == weights[name].dtype
        assert torch.equal(value, halved[name].to(value.dtype))


@pytest.mark.parametrize(
    ("key", "largest", "over"),
    [
        ("decoder.max_length", 512, 513),
        ("decoder.max_length", 512, 10**9),
        ("backbone.image_size", [2048, 2048], [2064, 32]),
        ("backbone.image_size", [2048, 2048], [32, 10**9]),
        ("hasd.moe.top_k", 64, 65),
        ("hasd.moe.top_k", 64, 10**9),
    ],
)
def test_what_costs_work_for_every_tile_is_bounded(folder: Path, key: str, largest: Any, over: Any) -> None:
    """Settings that no weight's shape follows from, so that a small file could ask for any amount of work."""
    room = {"hasd": {"moe": {"experts": 128, "groups": 1, "groups_kept": 1}}}

    def config(value: Any) -> dict[str, Any]:
        nested: dict[str, Any] = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        return merge(merge(TINY, room), nested)

    from_dict(HiSemConfig, config(largest), "test")
    with pytest.raises(ConfigError):
        from_dict(HiSemConfig, config(over), "test")
    data = json.loads((folder / bundle.CONFIG).read_text(encoding="utf-8"))
    (folder / bundle.CONFIG).write_text(json.dumps({**data, "model": config(over)}), encoding="utf-8")
    with pytest.raises(BundleError, match=key.rpartition(".")[2]):
        HiSem.from_pretrained(folder)


def test_attention_over_too_many_tokens_is_refused(tiny: Callable[..., HiSem]) -> None:
    with torch.device("meta"):
        tiny(backbone={"image_size": [1024, 1024]}, bdam={"heads": 16})  # 64 x 64 tokens, 2^28 weights
        with pytest.raises(ConfigError, match="heads=16"):
            tiny(backbone={"image_size": [1024, 1040]}, bdam={"heads": 16})


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in parsed JSON, as keys and indexes from its root."""
    yield path
    if isinstance(data, (dict, list)):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from places(value, (*path, key))


def replaced(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return {} if value is ABSENT else value
    copy = json.loads(json.dumps(data))
    *way, last = path
    holder = copy
    for key in way:
        holder = holder[key]
    if value is ABSENT:
        del holder[last]
    else:
        holder[last] = value
    return copy


def mutations(folder: Path, name: str) -> list[tuple[tuple[Any, ...], Any]]:
    data = json.loads((folder / name).read_text(encoding="utf-8"))
    return [(path, value) for path in places(data) for value in VALUES]


def load_mutated(folder: Path, name: str, mutants: list[tuple[tuple[Any, ...], Any]]) -> list[str]:
    """Load and use the bundle with each mutant of a file; what was raised beside `BundleError`."""
    original = (folder / name).read_text(encoding="utf-8")
    defects = []
    for path, value in mutants:
        (folder / name).write_text(json.dumps(replaced(json.loads(original), path, value)), encoding="utf-8")
        try:
            HiSem.from_pretrained(folder).caption(BLANK, BLANK)
        except BundleError:
            continue
        except Exception as error:  # noqa: BLE001  # whatever it is, it is a defect
            defects.append(f"{name} {path} {value!r:.40}: {type(error).__name__}: {error}")
    (folder / name).write_text(original, encoding="utf-8")
    return defects


@pytest.mark.parametrize("name", FILES)
def test_json_of_any_other_type_is_a_bundle_error(folder: Path, name: str) -> None:
    some = random.Random(7).sample(mutations(folder, name), 40)
    assert load_mutated(folder, name, some) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_json_of_every_other_type_is_a_bundle_error(folder: Path, name: str) -> None:
    assert load_mutated(folder, name, mutations(folder, name)) == []
