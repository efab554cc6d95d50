"""The visual encoder: one timm model, shared by both dates, that turns an image into a grid of tokens.

Shapes: B images, h x w pixels, H x W token grid, L = H * W tokens, D channels.
Architecture page, section 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from hisem.errors import ConfigError
from hisem.ranges import Range, require_ranges

CLIP_VIT_B16 = "vit_base_patch16_clip_quickgelu_224.openai"

# timm arguments that only set sizes. Anything else could make timm open files or fetch code, and a
# bundle's config is untrusted.
SIZE_OPTIONS = frozenset(
    {"channels", "depth", "depths", "dims", "embed_dim", "layers", "mlp_ratio", "num_heads", "patch_size", "reg_tokens"}
    | {"stem_width", "window_size"}
)
LARGEST_SIDE = 2048
"""Most pixels of the side of an image: every tile is resized to it."""


@dataclass(frozen=True)
class BackboneConfig:
    """Which timm model, from which weights, how much of it is fine-tuned."""

    name: str = CLIP_VIT_B16
    """timm model name. OpenAI's CLIP weights need the `quickgelu` variants."""
    image_size: Annotated[tuple[int, int], Range(1, LARGEST_SIDE)] = (224, 224)
    """Height and width in pixels that tiles are resized to, up to 2048; multiples of the token stride."""
    stride: Annotated[int, Range(1, 8192)] | None = None
    """Pixels per token: cuts a pyramid (ResNet, Swin, ...) at that stage. None takes the last stage."""
    weights: str = "hub"
    """`hub` (downloaded by timm), `none` (random), or a .safetensors or .pth file."""
    trainable_blocks: Annotated[int, Range(-1, 10_000)] = 4
    """How many of the last blocks are fine-tuned, with the final norm; 0 freezes all, -1 trains all.
    Blocks of a pyramid count over its stages, those after the cut left out."""
    options: Annotated[dict[str, int | float | list[int]], Range(0, 65_536, above=True)] = field(default_factory=dict)
    """Sizes passed to timm, above 0, for example `channels` of a ResNet or `depth` of a ViT."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.options) - SIZE_OPTIONS):
            raise ConfigError(
                f"model.backbone.options: {', '.join(unknown)} may not be set; "
                f"allowed are the sizes {', '.join(sorted(SIZE_OPTIONS))}."
            )
        if empty := [name for name, value in self.options.items() if value == []]:
            raise ConfigError(f"model.backbone.options.{empty[0]}: a list without sizes.")
        require_ranges(self, "model.backbone.")
        if ":" in self.name or "/" in self.name:
            raise ConfigError(
                f"model.backbone.name={self.name}: only timm's own model names are accepted, no hub or local paths."
            )


class Backbone(nn.Module):
    """A timm model reduced to its token grid. Call with normalised floats B 3 h w, get tokens B L D.

    Attributes: `dim` D, `grid` (H, W), `mean` and `std` per channel of images scaled to [0, 1].
    With `pretrained=False` the weights named in the config are not read (a bundle brings its own).
    Raises `ConfigError` for an unknown name or a size the model cannot take, `BundleError` where
    weights cannot be had.
    """

    def __init__(self, config: BackboneConfig, *, pretrained: bool = True) -> None:
        from hisem.model import timm_net  # takes seconds

        super().__init__()
        self.config = config
        # timm's models share methods that nn.Module does not declare.
        self.net: Any = timm_net.create(config, pretrained)
        self._stage = timm_net.stage_index(self.net, config)
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
        self._frozen = timm_net.freeze(self.net, config.trainable_blocks)
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
        from timm.models.vision_transformer import checkpoint_filter_fn

        converted = checkpoint_filter_fn(state, self.net)
        return {name: tensor for name, tensor in converted.items() if not name.startswith("head.")}

    def train(self, mode: bool = True) -> Backbone:
        """Training mode for what is fine-tuned; frozen modules stay in eval mode (their batch norms too)."""
        super().train(mode)
        for module in self._frozen:
            module.train(False)
        return self
