"""A checkpoint of the published implementation, turned into our model.

Architecture page, section 8: three state dicts, `encoder_dict` (the backbone in OpenAI CLIP's naming),
`encoder_trans_dict` (BDAM and HASD) and `decoder_dict`. Sizes are inferred from the weights.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from hisem.errors import BundleError
from hisem.model.backbone import CLIP_VIT_B16, BackboneConfig
from hisem.model.bdam import BDAMConfig
from hisem.model.decoder import DecoderConfig
from hisem.model.hasd import HASDConfig
from hisem.model.hisem import HiSem, HiSemConfig
from hisem.model.moe import MoEConfig
from hisem.model.published_keys import EXPERTS, published_keys
from hisem.text.vocabulary import Vocabulary

State = dict[str, Tensor]

TOWER = "encoder_dict.clip_model.visual."
CLIP_HEAD_WIDTH = 64
"""CLIP's channels per attention head."""

UNUSED = re.compile(
    r"encoder_dict\.clip_model\.(?!visual\.).*"
    r"|encoder_dict\.clip_model\.visual\.proj"
    r"|encoder_trans_dict\.diff_attn\.bidiff_modules\.\d+\.norm_(add|del)\..*"
    r"|decoder_dict\.transformer\.layers\.\d+\.fc_alpha[123]\..*"
    r"|decoder_dict\.position_encoding\.(pe|embedding_1D\.weight)"
)
"""Keys that the published forward pass never reads, or that we compute (the sinusoids)."""


@dataclass(frozen=True)
class Undetermined:
    """What the weights do not tell. Defaults are the paper's."""

    heads: int = 8
    """Attention heads of BDAM and the decoder."""
    top_k: int = 2
    """Experts a token is sent to."""
    groups: int = 4
    """Groups of experts."""
    groups_kept: int = 2
    """Best groups among which a token chooses."""
    threshold: float = 0.5
    """p(changed) from which on a pair takes the changed path."""


@dataclass(frozen=True)
class Imported:
    """The model in eval mode, and the keys of the file that were dropped because nothing uses them."""

    model: HiSem
    dropped: tuple[str, ...]


def read_checkpoint(path: Path) -> dict[str, State]:
    """The three state dicts of a published checkpoint. Never unpickles; raises `BundleError`."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error}).") from error
    except Exception as error:  # torch raises many kinds for a file that is no checkpoint
        raise BundleError(f"{path}: not a checkpoint of plain tensors ({type(error).__name__}: {error}).") from error
    parts = ("encoder_dict", "encoder_trans_dict", "decoder_dict")
    if not isinstance(checkpoint, dict) or any(not isinstance(checkpoint.get(part), dict) for part in parts):
        found = ", ".join(map(str, checkpoint)) if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise BundleError(f"{path}: a dict with {', '.join(parts)} is expected, found {found[:200]}.")
    for part in parts:
        for key, tensor in checkpoint[part].items():
            if not isinstance(key, str) or not isinstance(tensor, Tensor):
                raise BundleError(f"{path}: {part} holds {key!a:.80}, a {type(tensor).__name__}; tensors are expected.")
    return {part: checkpoint[part] for part in parts}


def import_checkpoint(
    checkpoint: dict[str, State], vocabulary: Vocabulary, undetermined: Undetermined | None = None
) -> Imported:
    """The model of a published checkpoint. Raises `BundleError` listing keys that do not fit."""
    config = infer_config(checkpoint, undetermined or Undetermined())
    words = len(checkpoint["decoder_dict"]["vocab_embedding.weight"])
    if words != len(vocabulary):
        raise BundleError(f"The vocabulary has {len(vocabulary)} words but the checkpoint's weights are for {words}.")
    model = HiSem(config, vocabulary, pretrained=False)
    expected = model.state_dict()
    theirs = {f"{part}.{key}": tensor for part, state in checkpoint.items() for key, tensor in state.items()}
    dropped = {key for key in theirs if UNUSED.fullmatch(key)}
    tower = {key: tensor for key, tensor in theirs.items() if key.startswith(TOWER) and key not in dropped}
    sources = {name: keys for name in expected if (keys := published_keys(name, config))}
    shapes = {key: _shape(name, expected[name]) for name, keys in sources.items() for key in keys}

    resampled = _misshapen(tower, _tower_shapes(config))  # before timm makes them fit by interpolation
    state = {} if resampled else _converted_backbone(model, tower)
    backbone = {name: tuple(tensor.shape) for name, tensor in expected.items() if name.startswith("backbone.")}
    problems = _problems(
        missing=sorted(set(shapes) - set(theirs)) + ([] if resampled else sorted(set(backbone) - set(state))),
        unexpected=sorted(set(theirs) - set(shapes) - set(tower) - dropped) + sorted(set(state) - set(backbone)),
        misshapen=resampled + _misshapen(theirs, shapes) + _misshapen(state, backbone),
    )
    if problems:
        raise BundleError(f"The checkpoint does not fit the published layout. {problems}.")
    for name, keys in sources.items():
        state[name] = torch.stack([theirs[key] for key in keys]) if name.startswith(EXPERTS) else theirs[keys[0]]
    model.load_state_dict(state)
    return Imported(model.eval(), tuple(sorted(dropped)))


def _misshapen(found: State, shapes: dict[str, tuple[int, ...]]) -> list[str]:
    return [
        f"{key} is {tuple(found[key].shape)}, not {shape}"
        for key, shape in shapes.items()
        if key in found and tuple(found[key].shape) != shape
    ]


def _problems(**kinds: list[str]) -> str:
    return ". ".join(f"{kind}: {', '.join(keys)}" for kind, keys in kinds.items() if keys)


def _shape(name: str, tensor: Tensor) -> tuple[int, ...]:
    """The shape of one published tensor: experts are stacked with us."""
    return tuple(tensor.shape[1:] if name.startswith(EXPERTS) else tensor.shape)


def _tower_shapes(config: HiSemConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the CLIP tensors that depend on the grid and the patch."""
    options, (height, width) = config.backbone.options, config.backbone.image_size
    dim, patch = cast(int, options["embed_dim"]), cast(int, options["patch_size"])
    return {
        f"{TOWER}conv1.weight": (dim, 3, patch, patch),
        f"{TOWER}class_embedding": (dim,),
        f"{TOWER}positional_embedding": ((height // patch) * (width // patch) + 1, dim),
    }


def _converted_backbone(model: HiSem, tower: State) -> State:
    """timm's names for the CLIP image tower."""
    clip = {key.removeprefix("encoder_dict.clip_model."): tensor for key, tensor in tower.items()}
    return {f"backbone.net.{name}": tensor for name, tensor in model.backbone.from_clip(clip).items()}


NEEDED = {
    "encoder_dict": {
        "clip_model.visual.conv1.weight": 4,
        "clip_model.visual.class_embedding": 1,
        "clip_model.visual.positional_embedding": 2,
        "clip_model.visual.transformer.resblocks.0.ln_1.weight": 1,
    },
    "encoder_trans_dict": {
        "h_embedding.weight": 2,
        "w_embedding.weight": 2,
        "moe.pwff.fc1.weight": 2,
        "moe.changemoe.gate.weight": 2,
        "moe.changemoe.experts.0.gate_proj.weight": 2,
    },
    "decoder_dict": {
        "vocab_embedding.weight": 2,
        "position_encoding.pe": 3,
        "transformer.layers.0.linear1.weight": 2,
    },
}
"""The keys that tell the sizes, with their number of dimensions."""


def infer_config(checkpoint: dict[str, State], undetermined: Undetermined) -> HiSemConfig:
    """The sizes a published checkpoint was made with. Raises `BundleError` naming the keys it lacks."""
    needed = [(part, key, rank) for part, ranks in NEEDED.items() for key, rank in ranks.items()]
    problems = _problems(
        missing=[f"{part}.{key}" for part, key, _ in needed if key not in checkpoint[part]],
        misshapen=[
            f"{part}.{key} is {tuple(tensor.shape)}, not of {rank} dimensions"
            for part, key, rank in needed
            if (tensor := checkpoint[part].get(key)) is not None and (tensor.dim() != rank or not tensor.numel())
        ],
    )
    if problems:
        raise BundleError(f"The checkpoint does not fit the published layout. {problems}.")
    visual, change, decoder = (checkpoint[part] for part in ("encoder_dict", "encoder_trans_dict", "decoder_dict"))
    dim, _, patch, _ = visual["clip_model.visual.conv1.weight"].shape
    vit_heads = max(1, dim // CLIP_HEAD_WIDTH)
    if dim % vit_heads:
        raise BundleError(
            f"The checkpoint's image tower has {dim} channels, which {vit_heads} heads (CLIP's width/64) do not divide."
        )
    width, height = len(change["h_embedding.weight"]), len(change["w_embedding.weight"])
    shared = change.get("moe.changemoe.shared_experts.gate_proj.weight")
    return HiSemConfig(
        backbone=BackboneConfig(
            name=CLIP_VIT_B16,
            image_size=(height * patch, width * patch),
            weights="none",
            options={
                "embed_dim": dim,
                "depth": _count(visual, r"clip_model\.visual\.transformer\.resblocks\.(\d+)\."),
                "num_heads": vit_heads,
                "patch_size": patch,
            },
        ),
        bdam=BDAMConfig(layers=_count(change, r"diff_attn\.bidiff_modules\.(\d+)\."), heads=undetermined.heads),
        hasd=HASDConfig(
            threshold=undetermined.threshold,
            hidden=len(change["moe.pwff.fc1.weight"]),
            moe=MoEConfig(
                experts=len(change["moe.changemoe.gate.weight"]),
                top_k=undetermined.top_k,
                groups=undetermined.groups,
                groups_kept=undetermined.groups_kept,
                shared_experts=0 if shared is None else max(1, shared.numel() // dim**2),
                hidden=len(change["moe.changemoe.experts.0.gate_proj.weight"]),
            ),
        ),
        decoder=DecoderConfig(
            layers=_count(decoder, r"transformer\.layers\.(\d+)\."),
            heads=undetermined.heads,
            max_length=len(decoder["position_encoding.pe"]),
        ),
    )


def _count(state: State, pattern: str) -> int:
    """How many different numbers `pattern` captures in the keys: a gap then shows as missing and unexpected keys."""
    return len({match[1] for key in state if (match := re.match(pattern, key))})
