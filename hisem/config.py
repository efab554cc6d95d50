"""Frozen configuration classes to and from plain data, strictly: an unknown key is an error."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, TypeVar

import dacite
import yaml

from hisem import storage
from hisem.errors import ConfigError

T = TypeVar("T")


def _number(value: Any) -> Any:
    """A float from an int or from YAML's reading of `1e-3` as a string; other values unchanged."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return float(value) if type(value) is int else value


_STRICT = dacite.Config(strict=True, cast=[tuple], type_hooks={float: _number})


def from_dict(cls: type[T], data: dict[str, Any], where: str) -> T:
    """Build config class `cls` (nested ones too) from plain data; `where` names the source in messages.

    Raises `ConfigError` for unknown or missing keys and for values of the wrong type; the class's own
    checks raise theirs.
    """
    try:
        return dacite.from_dict(cls, data, _STRICT)
    except dacite.UnexpectedDataError as error:
        raise ConfigError(f"{where}: unknown key(s) {', '.join(sorted(error.keys))} for {cls.__name__}.") from error
    except dacite.DaciteError as error:
        raise ConfigError(f"{where}: {error}.") from error


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested data (dicts, lists, numbers, strings) of a config object."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return value

    return plain(asdict(config))


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`, dictionaries merged key by key."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def read_yaml(uri: str) -> dict[str, Any]:
    """The mapping in a YAML file. Raises `ConfigError` where it is none."""
    try:
        data = yaml.safe_load(storage.read_bytes(uri))
    except yaml.YAMLError as error:
        raise ConfigError(f"{uri}: not valid YAML ({error}).") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{uri}: a mapping of config keys is expected, found {type(data).__name__}.")
    return data


def flatten(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots, as flags and tracked parameters name them."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat
