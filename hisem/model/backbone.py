"""The visual encoder: one timm model, shared by both dates, that turns an image into a grid of tokens.

Shapes: B images, h x w pixels, H x W token grid, L = H * W tokens, D channels.
Architecture page, section 1.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hisem.errors import BundleError, ConfigError

CLIP_VIT_B16 = "vit_base_patch16_clip_quickgelu_224.openai"

# timm arguments that only set sizes. Anything else could make timm open files or fetch code, and a
# bundle's config is untrusted.
SIZE_OPTIONS = frozenset(
    {"channels", "depth", "depths", "dims", "embed_dim", "layers", "mlp_ratio", "num_heads", "patch_size", "reg_tokens"}
    | {"stem_width", "window_size"}
)


@dataclass(frozen=True)
class BackboneConfig:
    """Which timm model, from which weights, how much of it is fine-tuned."""

    name: str = CLIP_VIT_B16
    """timm model name. OpenAI's CLIP weights need the `quickgelu` variants."""
    image_size: tuple[int, int] = (224, 224)
    """Height and width in pixels that tiles are resized to; multiples of the token stride."""
    stride: int | None = None
    """Pixels per token: cuts a pyramid (ResNet, Swin, ...) at that stage. None takes the last stage."""
    weights: str = "hub"
    """`hub` (downloaded by timm), `none` (random), or a .safetensors or .pth file."""
    trainable_blocks: int = 4
    """How many of the last blocks are fine-tuned, with the final norm; 0 freezes all, -1 trains all.
    Blocks of a pyramid count over its stages, those after the cut left out."""
    options: dict[str, int | float | list[int]] = field(default_factory=dict)
    """Sizes passed to timm, above 0, for example `channels` of a ResNet or `depth` of a ViT."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.options) - SIZE_OPTIONS):
            raise ConfigError(
                f"model.backbone.options: {', '.join(unknown)} may not be set; "
                f"allowed are the sizes {', '.join(sorted(SIZE_OPTIONS))}."
            )
        for name, value in self.options.items():
            if not value or not all(0 < size < math.inf for size in (value if isinstance(value, list) else [value])):
                raise ConfigError(f"model.backbone.options.{name}={value}: sizes must be above 0.")
        if ":" in self.name or "/" in self.name:
            raise ConfigError(
                f"model.backbone.name={self.name}: only timm's own model names are accepted, no hub or local paths."
            )
        if min(self.image_size) < 1:
            raise ConfigError(f"model.backbone.image_size={self.image_size}: both sides must be positive.")
        if self.stride is not None and self.stride < 1:
            raise ConfigError(f"model.backbone.stride={self.stride}: must be 1 or more.")
        if self.trainable_blocks < -1:
            raise ConfigError(f"model.backbone.trainable_blocks={self.trainable_blocks}: use -1 (all), 0 or more.")


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
from timm.models.vision_transformer import checkpoint_filter_fn  # noqa: E402


class Backbone(nn.Module):
    """A timm model reduced to its token grid. Call with normalised floats B 3 h w, get tokens B L D.

    Attributes: `dim` D, `grid` (H, W), `mean` and `std` per channel of images scaled to [0, 1].
    With `pretrained=False` the weights named in the config are not read (a bundle brings its own).
    Raises `ConfigError` for an unknown name or a size the model cannot take, `BundleError` where
    weights cannot be had.
    """

    def __init__(self, config: BackboneConfig, *, pretrained: bool = True) -> None:
        super().__init__()
        self.config = config
        # timm's models share methods that nn.Module does not declare.
        self.net: Any = _create(config, pretrained)
        self._stage = _stage_index(self.net, config)
        info = self.net.feature_info[self._stage]
        self.dim: int = info["num_chs"]
        height, width = config.image_size
        stride: int = info["reduction"]
        if height % stride or width % stride:
            raise ConfigError(
                f"model.backbone.image_size={config.image_size}: {config.name} has one token per "
                f"{stride} x {stride} pixels; both sides must be multiples of {stride}."
            )
        self.grid = (height // stride, width // stride)
        # Later stages and the classifier are dropped, so that no parameter waits for a gradient in vain.
        self.net.prune_intermediate_layers([self._stage], prune_norm=False, prune_head=True)
        self.mean: tuple[float, ...] = tuple(self.net.pretrained_cfg["mean"])
        self.std: tuple[float, ...] = tuple(self.net.pretrained_cfg["std"])
        self._frozen = _freeze(self.net, config.trainable_blocks)
        self.net.to(memory_format=torch.channels_last)  # convolutions run a third faster

    def forward(self, images: Tensor) -> Tensor:
        """Tokens B L D, row by row, of normalised images B 3 h w; class and register tokens left out."""
        features = self.net.forward_intermediates(
            images.contiguous(memory_format=torch.channels_last),
            indices=[self._stage],
            norm=True,
            output_fmt="NCHW",
            intermediates_only=True,
        )[0]  # B D H W
        if tuple(features.shape[-2:]) != self.grid:
            raise ConfigError(
                f"model.backbone: {self.config.name} makes a grid of {tuple(features.shape[-2:])} tokens of "
                f"{tuple(images.shape[-2:])} pixels, {self.grid} was expected; use another model or image_size."
            )
        return features.flatten(2).transpose(1, 2)  # B L D

    def from_clip(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of `net` from OpenAI CLIP's own names (`visual.*`), its projection left out."""
        converted = checkpoint_filter_fn(state, self.net)
        return {name: tensor for name, tensor in converted.items() if not name.startswith("head.")}

    def train(self, mode: bool = True) -> Backbone:
        """Training mode for what is fine-tuned; frozen modules stay in eval mode (their batch norms too)."""
        super().train(mode)
        for module in self._frozen:
            module.train(False)
        return self


def _create(config: BackboneConfig, pretrained: bool) -> Any:
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


def _stage_index(net: Any, config: BackboneConfig) -> int:
    """The stage whose output is the token grid: the last one, or the last with the stride asked for."""
    reductions = [stage["reduction"] for stage in net.feature_info]
    if config.stride is None:
        return len(reductions) - 1
    if config.stride not in reductions:
        raise ConfigError(
            f"model.backbone.stride={config.stride}: {config.name} has stages at {sorted(set(reductions))} pixels."
        )
    return len(reductions) - 1 - reductions[::-1].index(config.stride)


def _freeze(net: Any, trainable_blocks: int) -> list[nn.Module]:
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
