"""Frozen configuration classes to and from plain data."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from hisem.config import flatten, from_dict, merge, read_yaml, to_dict
from hisem.errors import ConfigError, StorageError


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    size: tuple[int, int] = (1, 2)
    sizes: dict[str, int | float | list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ConfigError(f"inner.rate={self.rate}: must be 0 or more.")


@dataclass(frozen=True)
class Outer:
    name: str
    count: int = 3
    kind: Literal["a", "b"] = "a"
    flag: bool = False
    limit: int | None = None
    inner: Inner = field(default_factory=Inner)


FULL: dict[str, Any] = {
    "name": "n",
    "count": 4,
    "kind": "b",
    "flag": True,
    "limit": 5,
    "inner": {"rate": 0.25, "size": [3, 4], "sizes": {"depth": 2, "ratio": 0.5, "channels": [8, 16]}},
}


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00", b"\x00" * 20, b"a: 2024-99-99", b"[" * 5000, b"a: [", b"- 1", b"? [a]\n: 1"]
)
def test_files_that_are_no_settings_are_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "best.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"best\.yaml: "):
        from_dict(Outer, read_yaml(str(path)), str(path))


def test_plain_data_makes_the_objects_and_back() -> None:
    made = from_dict(Outer, FULL, "here")
    assert made == Outer("n", 4, "b", True, 5, Inner(0.25, (3, 4), {"depth": 2, "ratio": 0.5, "channels": [8, 16]}))
    assert isinstance(made.inner.sizes["depth"], int)
    assert to_dict(made) == FULL
    assert from_dict(Outer, json.loads(json.dumps(to_dict(made))), "here") == made
    assert from_dict(Outer, {"name": "n"}, "here") == Outer("n")
    assert to_dict(Outer("n"))["inner"] == {"rate": 0.5, "size": [1, 2], "sizes": {}}


@pytest.mark.parametrize(("given", "value"), [(2, 2.0), ("1e-3", 0.001), ("2", 2.0), ("inf", math.inf), (0.1, 0.1)])
def test_floats_from_what_yaml_makes_of_them(given: object, value: float) -> None:
    rate = from_dict(Inner, {"rate": given}, "here").rate
    assert rate == value
    assert type(rate) is float


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({}, "name"),
        ({"name": 3}, "name.*3"),
        ({"name": "n", "count": "3"}, "count"),
        ({"name": "n", "count": 3.0}, "count"),
        ({"name": "n", "count": True}, "count.*True"),
        ({"name": "n", "limit": False}, "limit.*False"),
        ({"name": "n", "flag": 1}, "flag"),
        ({"name": "n", "kind": "c"}, "kind.*c"),
        ({"name": "n", "inner": None}, "inner"),
        ({"name": "n", "inner": {"rate": "fast"}}, r"inner\.rate.*fast"),
        ({"name": "n", "inner": {"rate": True}}, r"inner\.rate.*True"),
        ({"name": "n", "inner": {"size": 3}}, r"inner\.size.*3"),
        ({"name": "n", "inner": {"size": "34"}}, r"inner\.size.*34"),
        ({"name": "n", "inner": {"size": [3, 4, 5]}}, r"inner\.size"),
        ({"name": "n", "inner": {"size": [3, "4"]}}, r"inner\.size"),
        ({"name": "n", "inner": {"sizes": {"depth": "deep"}}}, r"inner\.sizes"),
    ],
)
def test_wrong_types_and_missing_keys_name_place_and_key(data: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=f"here: .*{named}") as caught:
        from_dict(Outer, data, "here")
    assert caught.value.exit_code == 2


def test_unknown_keys_are_all_named_with_what_they_resemble() -> None:
    data = {"name": "n", "cuont": 1, "inner": {"rates": 1, "zzz": 2, "sizes": {"free": 3}}, 7: 8}
    with pytest.raises(ConfigError) as caught:
        from_dict(Outer, data, "here")  # type: ignore[arg-type]
    assert str(caught.value) == (
        "here: unknown key(s) 7, cuont (did you mean count?), inner.rates (did you mean inner.rate?), inner.zzz."
    )


def test_a_class_raises_its_own_checks() -> None:
    with pytest.raises(ConfigError, match=r"^inner\.rate=-1\.0: must be 0 or more\.$"):
        from_dict(Outer, {"name": "n", "inner": {"rate": -1}}, "here")


def test_merge_goes_key_by_key_and_changes_neither_side() -> None:
    base: dict[str, Any] = {"a": {"b": 1, "c": {"d": 2}}, "e": [1, 2], "f": {"g": 1}}
    over: dict[str, Any] = {"a": {"c": {"x": 3}}, "e": [9], "f": 4, "h": {"i": 5}}
    copies = json.loads(json.dumps([base, over]))
    assert merge(base, over) == {"a": {"b": 1, "c": {"d": 2, "x": 3}}, "e": [9], "f": 4, "h": {"i": 5}}
    assert [base, over] == copies
    assert merge(base, {}) == base


def test_flatten() -> None:
    assert flatten(FULL) == {
        "name": "n",
        "count": 4,
        "kind": "b",
        "flag": True,
        "limit": 5,
        "inner.rate": 0.25,
        "inner.size": [3, 4],
        "inner.sizes.depth": 2,
        "inner.sizes.ratio": 0.5,
        "inner.sizes.channels": [8, 16],
    }


def test_read_yaml(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("a: {b: [1, x]}\nc: null\n")
    assert read_yaml(str(file)) == read_yaml(f"file://{file}") == {"a": {"b": [1, "x"]}, "c": None}
    for text, told in (
        ("a: [", "not valid YAML"),
        ("", "NoneType"),
        ("- 1", "list"),
        ("!!python/name:os.system", "YAML"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=f"{file}: .*{told}"):
            read_yaml(str(file))
    with pytest.raises(StorageError, match=r"none\.yaml"):
        read_yaml(str(tmp_path / "none.yaml"))
