"""The model on disk: a folder of safetensors and JSON. Loading runs no code from it and never unpickles.

`model.safetensors` weights · `config.json` the model's config · `vocabulary.json` word to id ·
`preprocessing.json` what images must become · `metrics.json` scores, for people.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hisem import __version__
from hisem.config import flatten, from_dict, to_dict
from hisem.errors import BundleError, ConfigError
from hisem.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from hisem.model.hisem import HiSem, HiSemConfig

WEIGHTS, CONFIG, VOCABULARY = "model.safetensors", "config.json", "vocabulary.json"
PREPROCESSING, METRICS = "preprocessing.json", "metrics.json"
FORMAT = 1
LARGEST_SIZE = 65536
"""No size of a model that anybody trains is beyond this."""

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
"""Types that weights may be stored in: float32, in which the model computes, holds the values of each exactly."""

LAYER_COUNTS = frozenset({"depth", "depths", "layers"})
"""Keys of the config that count layers."""


def save(model: HiSem, folder: Path, metrics: dict[str, Any]) -> str:
    """Write `model` to `folder` and return the bundle's digest."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    _write(folder / CONFIG, {"format": FORMAT, "hisem": __version__, "model": to_dict(model.config)})
    _write(folder / VOCABULARY, model.vocabulary.to_dict())
    _write(folder / PREPROCESSING, preprocessing(model))
    _write(folder / METRICS, metrics)
    return digest(folder)


def load(cls: type[HiSem], config_class: type[HiSemConfig], folder: Path) -> HiSem:
    """The model in `folder`, in eval mode. Raises `BundleError` for whatever does not fit."""
    config = read_config(config_class, folder)
    try:
        weights = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{folder / WEIGHTS}: cannot be read ({error}).") from error
    _check_sizes(config, len(weights), folder)
    vocabulary = Vocabulary.from_dict(read_json(folder, VOCABULARY))
    embedding = weights.get("decoder.embedding.weight")
    if embedding is not None and embedding.dim() and len(embedding) != len(vocabulary):
        raise BundleError(
            f"{folder}: the vocabulary has {len(vocabulary)} words but the weights are for {len(embedding)}; "
            f"{VOCABULARY} and {WEIGHTS} are not of the same model."
        )
    try:
        # Shapes alone, which take no memory: a config may ask for any, and the weights are what is there.
        with torch.device("meta"):
            _check_weights(cls(config, vocabulary, pretrained=False).state_dict(), weights, folder)
        model = cls(config, vocabulary, pretrained=False)
    except (ConfigError, MemoryError, RuntimeError) as error:  # RuntimeError: what torch cannot allocate
        raise BundleError(f"{folder}: no model can be built of {CONFIG}: {error}") from error
    model.load_state_dict(weights)
    if (stored := read_json(folder, PREPROCESSING)) != preprocessing(model):
        raise BundleError(
            f"{folder / PREPROCESSING}: {stored} does not match the backbone's {preprocessing(model)}; "
            "the bundle was made with another timm or edited."
        )
    return model.eval()


def read_config(config_class: type[HiSemConfig], folder: Path) -> HiSemConfig:
    """The model's config in `folder`. Its sizes are anybody's: only `load` compares them with the weights.

    Raises `BundleError` for what is no bundle's config.
    """
    header = read_json(folder, CONFIG)
    if header.get("format") != FORMAT:
        raise BundleError(f"{folder / CONFIG}: bundle format {header.get('format')!a} found, {FORMAT} is known.")
    if not isinstance(header.get("model"), dict):
        raise BundleError(f"{folder / CONFIG}: the model's config, an object under `model`, is missing.")
    try:
        return from_dict(config_class, header["model"], str(folder / CONFIG))
    except (ConfigError, TypeError, RecursionError) as error:
        raise BundleError(f"{folder}: {error}") from error


def _check_sizes(config: HiSemConfig, tensors: int, folder: Path) -> None:
    """Refuse sizes that only a hostile config asks for, before anything of that size is built."""
    for name, value in flatten(to_dict(config)).items():
        for number in value if isinstance(value, list) else [value]:
            # Each layer has tensors of its own, so that there cannot be more layers than tensors.
            limit = max(tensors, 16) if name.rpartition(".")[2] in LAYER_COUNTS else LARGEST_SIZE
            if isinstance(number, int) and abs(number) > limit:
                raise BundleError(f"{folder / CONFIG}: {name} is {str(number)[:20]}; at most {limit} is plausible.")


def _check_weights(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor], folder: Path) -> None:
    missing = sorted(set(expected) - set(found))
    unexpected = sorted(set(found) - set(expected))
    misshapen = [
        f"{name} is {tuple(found[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in sorted(set(expected) & set(found))
        if found[name].shape != expected[name].shape
    ]
    foreign = [
        f"{name} is {found[name].dtype} instead of {expected[name].dtype}"
        for name in sorted(set(expected) & set(found))
        if found[name].dtype not in (FLOATS if expected[name].is_floating_point() else (expected[name].dtype,))
    ]
    problems = [
        f"{label}: {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
        for label, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("misshapen", misshapen),
            ("of another type", foreign),
        )
        if names
    ]
    if problems:
        raise BundleError(f"{folder / WEIGHTS} does not fit {CONFIG}: {'; '.join(problems)}.")
    if broken := [name for name, tensor in found.items() if not tensor.isfinite().all()]:
        raise BundleError(f"{folder / WEIGHTS}: {broken[0]} has values that are not finite; the training diverged.")


def preprocessing(model: HiSem) -> dict[str, Any]:
    """What becomes of a uint8 tile before the backbone sees it."""
    return {
        "image_size": list(model.config.backbone.image_size),
        "interpolation": "bicubic, antialiased, rounded to uint8",
        "mean": list(model.backbone.mean),
        "std": list(model.backbone.std),
    }


def digest(folder: Path) -> str:
    """sha256 over weights, config and vocabulary: what decides captions. Metrics do not count."""
    whole = hashlib.sha256()
    for name in (WEIGHTS, CONFIG, VOCABULARY):
        try:
            with (folder / name).open("rb") as file:
                whole.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise BundleError(f"{folder / name}: cannot be read ({error}).") from error
    return whole.hexdigest()


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """One of the bundle's JSON files. Raises `BundleError` where it is absent or no JSON object."""
    try:
        data = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{folder / name}: not readable as JSON ({error}); is {folder} a model bundle?") from error
    if not isinstance(data, dict):
        raise BundleError(f"{folder / name}: a JSON object is expected, found {type(data).__name__}.")
    return data


def _write(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
