"""timm's side of the backbone: building a model, reading its weights, freezing its blocks.

Importing timm takes seconds, most of them for torchvision. So this module is imported where a model is
built, and processes that only carry its settings (drivers, Ray Train's controller) do without.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hisem.errors import BundleError, ConfigError

if TYPE_CHECKING:
    from hisem.model.backbone import BackboneConfig


def _declare_torchvision_operators() -> list[torch.library.Library]:
    """Let `import torchvision` pass beside a CPU build of torch.

    PyPI's torchvision is built for CUDA; where its extension cannot load, its import stops at two
    operators that nothing here calls. Their schemas are declared only in that case.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return []
    extensions = Path(spec.submodule_search_locations[0]).glob("_C*.so")
    try:
        for extension in extensions:
            torch.ops.load_library(str(extension))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return [library]  # kept alive by the caller: a collected library takes its operators along
    return []


_OPERATORS = _declare_torchvision_operators()

import timm  # noqa: E402
from timm.models import get_pretrained_cfg, group_parameters  # noqa: E402


def create(config: BackboneConfig, pretrained: bool) -> Any:
    """The model that `config` names, with the weights it names if `pretrained`, else with random ones."""
    if not timm.is_model(config.name):
        close = ", ".join(timm.list_models(f"*{config.name.split('_')[0]}*")[:5])
        raise ConfigError(f"model.backbone.name={config.name}: timm has no such model. Similar: {close or 'none'}.")
    if not pretrained or config.weights == "none":
        return _build(config, hub=False)
    if config.weights == "hub":
        try:
            return _build(config, hub=True)
        except ConfigError as error:
            _build(config, hub=False)  # where the name or a size is the mistake, this says so
            raise BundleError(
                f"model.backbone.weights=hub: the weights of {config.name} could not be had ({error.__cause__}). "
                "Without a network, download them elsewhere and pass --model.backbone.weights FILE (.safetensors or "
                ".pth), or none for random ones."
            ) from error
    net = _build(config, hub=False)
    _load_file(net, config.weights)
    return net


def _build(config: BackboneConfig, *, hub: bool) -> Any:
    """The timm model with random weights or, with `hub`, those that timm downloads."""
    sizes: dict[str, object] = dict(config.options)
    try:
        defaults = get_pretrained_cfg(config.name)
        if defaults is not None and defaults.fixed_input_size:
            sizes["img_size"] = config.image_size
        net = timm.create_model(config.name, pretrained=hub, num_classes=0, **sizes)
    except Exception as error:  # timm raises many kinds for sizes that it cannot build or weights it cannot have
        raise ConfigError(f"model.backbone: {config.name} with {sizes}: {type(error).__name__}: {error}.") from error
    if not all(hasattr(net, part) for part in ("feature_info", "forward_intermediates", "prune_intermediate_layers")):
        raise ConfigError(f"model.backbone.name={config.name}: timm gives no token grid of this model; choose another.")
    return net


def _load_file(net: Any, file: str) -> None:
    """Weights of the whole of `net` from a file in timm's naming or the model's original one; never unpickles."""
    where = f"model.backbone.weights={file}"
    if not Path(file).is_file():
        raise BundleError(f"{where}: no such file.")
    # By convention of timm: what turns original names into timm's and resamples positions for another size.
    adapt = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", lambda state, net: state)
    try:
        state = adapt(timm.models.load_state_dict(file, weights_only=True), net)
        classifiers = net.pretrained_cfg["classifier"] or ()
        heads = tuple(f"{name}." for name in ([classifiers] if isinstance(classifiers, str) else classifiers))
        state = {name: tensor for name, tensor in state.items() if not name.startswith(heads)}
        found = net.load_state_dict(state, strict=False)
    except Exception as error:  # a file may hold anything
        raise BundleError(
            f"{where}: cannot be loaded as a .safetensors or .pth file of plain tensors that fit "
            f"({type(error).__name__}: {error})."
        ) from error
    if found.missing_keys or found.unexpected_keys:
        raise BundleError(
            f"{where}: not the weights of this model. Missing: {_some(found.missing_keys)}; "
            f"unexpected: {_some(found.unexpected_keys)}."
        )


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:5]) or 'none'}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"


def stage_index(net: Any, config: BackboneConfig) -> int:
    """The stage whose output is the token grid: the last one, or the last with the stride asked for."""
    reductions = [stage["reduction"] for stage in net.feature_info]
    if config.stride is None:
        return len(reductions) - 1
    if config.stride not in reductions:
        raise ConfigError(
            f"model.backbone.stride={config.stride}: {config.name} has stages at {sorted(set(reductions))} pixels."
        )
    return len(reductions) - 1 - reductions[::-1].index(config.stride)


def freeze(net: Any, trainable_blocks: int) -> list[nn.Module]:
    """Freeze all but the last blocks; return the modules that hold only frozen parameters."""
    if trainable_blocks == -1:
        return []
    if not hasattr(net, "group_matcher"):
        raise ConfigError(
            f"model.backbone.trainable_blocks={trainable_blocks}: timm does not tell the blocks of "
            f"{type(net).__name__} apart; use -1 to train all of it."
        )
    # timm orders groups from stem to head and puts the final norm with the last block.
    groups: dict[int, list[str]] = group_parameters(net, net.group_matcher(coarse=False))
    kept = sorted(groups)[len(groups) - min(trainable_blocks, len(groups)) :]
    trainable = {name for key in kept for name in groups[key]}
    for name, parameter in net.named_parameters():
        parameter.requires_grad = name in trainable
    return [
        module
        for module in net.modules()
        if any(True for _ in module.parameters()) and not any(p.requires_grad for p in module.parameters())
    ]
