"""Frozen configuration classes to and from plain data, strictly: an unknown key is an error."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from difflib import get_close_matches
from typing import Any, TypeVar, get_type_hints

import dacite
import yaml

from hisem import storage
from hisem.errors import ConfigError, StorageError

T = TypeVar("T")


def _number(value: Any) -> Any:
    """A float from an int or from YAML's reading of `1e-3` as a string; other values unchanged."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    if type(value) is bool:
        raise dacite.WrongTypeError(field_type=float, value=value)
    try:
        return float(value) if type(value) is int else value
    except OverflowError:
        return math.inf if value > 0 else -math.inf  # which no range holds


def _whole(value: Any) -> Any:
    """An int as it is; refuses the bool that Python would take for one."""
    if type(value) is bool:
        raise dacite.WrongTypeError(field_type=int, value=value)
    return value


def _size(value: Any) -> Any:
    """Two ints as JSON and YAML list them, as a tuple."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise dacite.WrongTypeError(field_type=tuple[int, int], value=value)
    return tuple(value)


_STRICT = dacite.Config(strict=True, type_hooks={float: _number, int: _whole, tuple[int, int]: _size})


def from_dict(cls: type[T], data: dict[str, Any], where: str) -> T:
    """Build config class `cls` (nested ones too) from plain data; `where` names the source in messages.

    Raises `ConfigError` for unknown or missing keys and for values of the wrong type; the class's own
    checks raise theirs.
    """
    if unknown := sorted(_unknown(cls, data)):
        raise ConfigError(f"{where}: unknown key(s) {', '.join(unknown)}.")
    try:
        return dacite.from_dict(cls, data, _STRICT)
    except dacite.DaciteError as error:
        raise ConfigError(f"{where}: {error}.") from error


def read_state(cls: type[T], uri: str, remedy: str, **given: Any) -> T:
    """Return the object of `cls` that the JSON object in `uri` and the fields `given` make up, checked as `from_dict`.

    Raises `StorageError` with the `remedy`, a sentence, for a file that is not such an object.
    """
    content = storage.read_bytes(uri)
    try:
        data = json.loads(content)
        if not isinstance(data, dict):
            raise ConfigError(f"an object is expected, found {type(data).__name__}")
        if both := sorted(set(data) & set(given)):
            raise ConfigError(f"unknown key(s) {', '.join(both)}")
        return from_dict(cls, data | given, "its content")
    except (ValueError, TypeError, RecursionError, ConfigError) as error:
        raise StorageError(f"{uri}: damaged ({str(error).rstrip('.')}). {remedy}") from error


def _unknown(cls: Any, data: dict[Any, Any], prefix: str = "") -> Iterator[str]:
    """Keys of nested `data` that the config class lacks, each with the known one that resembles it."""
    known = get_type_hints(cls)
    for key, value in data.items():
        if key not in known:
            close = get_close_matches(str(key), known, 1)
            yield f"{prefix}{key}" + (f" (did you mean {prefix}{close[0]}?)" if close else "")
        elif is_dataclass(known[key]) and isinstance(value, dict):
            yield from _unknown(known[key], value, f"{prefix}{key}.")


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
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:  # of values
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
