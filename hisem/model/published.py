"""The published checkpoint's layout, turned into ours.

Architecture page, section 8: three state dicts, `encoder_dict` (the backbone in OpenAI CLIP's naming),
`encoder_trans_dict` (BDAM and HASD) and `decoder_dict`. Sizes are inferred from the weights.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hisem.errors import BundleError
from hisem.model.backbone import BackboneConfig
from hisem.model.bdam import BDAMConfig
from hisem.model.decoder import DecoderConfig
from hisem.model.hasd import HASDConfig
from hisem.model.hisem import HiSem, HiSemConfig
from hisem.model.moe import MoEConfig
from hisem.text.vocabulary import Vocabulary

State = dict[str, Tensor]

VISUAL = "encoder_dict.clip_model.visual."
CLIP_HEAD_WIDTH = 64
"""CLIP's channels per attention head."""

# Ours to theirs, by prefix; what follows the prefix is the same. {i} is a layer, {d} the date's initial.
CHANGE = {
    "position.column": "h_embedding.weight",
    "position.row": "w_embedding.weight",
    "bdam.addition_scale": "diff_attn.add_scale",
    "bdam.deletion_scale": "diff_attn.del_scale",
    "hasd.router.": "moe.clsgate.",
    "hasd.norm.": "layer_norm.",
    "hasd.unchanged.feed_forward.0.": "moe.pwff.fc1.",
    "hasd.unchanged.feed_forward.3.": "moe.pwff.fc2.",
    "hasd.unchanged.norm.": "moe.pwff.layer_norm.",
    "hasd.changed.moe.gate.": "moe.changemoe.gate.",
    "hasd.changed.moe.shared.gate.": "moe.changemoe.shared_experts.gate_proj.",
    "hasd.changed.moe.shared.up.": "moe.changemoe.shared_experts.up_proj.",
    "hasd.changed.moe.shared.down.": "moe.changemoe.shared_experts.down_proj.",
    "hasd.changed.norm.": "moe.layer_norm.",
}
BDAM_LAYER = {
    "conditioning.gate_in.": "feat_modulators.{i}.gate_net.0.",
    "conditioning.gate_out.": "feat_modulators.{i}.gate_net.2.",
    "conditioning.local.": "feat_modulators.{i}.local_conv.",
    "conditioning.norm.": "feat_modulators.{i}.local_norm.",
    "addition_score.": "add_predictor_list.{i}.",
    "deletion_score.": "del_predictor_list.{i}.",
}
BDAM_DATE = {
    "query.": "bidiff_modules.{i}.q_{d}.",
    "key.": "bidiff_modules.{i}.k_{d}.",
    "value.": "bidiff_modules.{i}.v_{d}.",
    "gate.": "bidiff_modules.{i}.fuse_gate_{d}.",
    "out.": "bidiff_modules.{i}.proj_{d}.",
    "norm.": "norm_{d}_list.{i}.",
}
FUSION = {
    "merge.": "Conv1_list.",
    "norm_in.": "LN_list.left.0.",
    "conv.": "LN_list.left.2.",
    "norm_mid.": "LN_list.left.3.",
    "pointwise.": "LN_list.left.5.",
    "norm_out.": "LN_list.left.6.",
    "norm.": "LN_norm.",
}
DECODER = {"embedding.": "vocab_embedding.", "output.": "wdc."}
DECODER_LAYER = {
    "self_attention.project.": "self_attn.in_proj_",
    "self_attention.out.": "self_attn.out_proj.",
    "cross_attention.project.": "multihead_attn.in_proj_",
    "cross_attention.out.": "multihead_attn.out_proj.",
    "feed_forward.0.": "linear1.",
    "feed_forward.3.": "linear2.",
    "norm1.": "norm1.",
    "norm2.": "norm2.",
    "norm3.": "norm3.",
}
EXPERTS = "change.hasd.changed.moe.experts."
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
    visual = {key for key in set(theirs) - dropped if key.startswith(VISUAL)}
    sources = {name: keys for name in expected if (keys := published_keys(name, config))}
    wanted = {key for keys in sources.values() for key in keys}

    state = _converted_backbone(model, {key: theirs[key] for key in visual})
    problems = _problems(
        missing=sorted(wanted - set(theirs)) + [n for n in expected if n.startswith("backbone.") and n not in state],
        unexpected=sorted(set(theirs) - wanted - visual - dropped) + sorted(set(state) - set(expected)),
        misshapen=[
            f"{key} is {tuple(theirs[key].shape)}, not {shape}"
            for name, keys in sources.items()
            for key in keys
            if key in theirs and tuple(theirs[key].shape) != (shape := _shape(name, expected[name]))
        ]
        + [
            f"{name} is {tuple(tensor.shape)}, not {tuple(expected[name].shape)}"
            for name, tensor in state.items()
            if name in expected and tensor.shape != expected[name].shape
        ],
    )
    if problems:
        raise BundleError(f"The checkpoint does not fit the published layout. {problems}.")
    for name, keys in sources.items():
        state[name] = torch.stack([theirs[key] for key in keys]) if name.startswith(EXPERTS) else theirs[keys[0]]
    model.load_state_dict(state)
    return Imported(model.eval(), tuple(sorted(dropped)))


def _problems(**kinds: list[str]) -> str:
    return ". ".join(f"{kind}: {', '.join(keys)}" for kind, keys in kinds.items() if keys)


def _shape(name: str, tensor: Tensor) -> tuple[int, ...]:
    """The shape of one published tensor: experts are stacked with us."""
    return tuple(tensor.shape[1:] if name.startswith(EXPERTS) else tensor.shape)


def published_keys(name: str, config: HiSemConfig) -> list[str]:
    """The published key of one of our parameters; one per expert where ours stacks them; none for the
    backbone, whose names timm converts.
    """
    if name.startswith(EXPERTS):
        projection = name.removeprefix(EXPERTS)
        return [
            f"encoder_trans_dict.moe.changemoe.experts.{expert}.{projection}_proj.weight"
            for expert in range(config.hasd.moe.experts)
        ]
    for ours, their in _prefixes(config).items():
        if name.startswith(ours):
            return [their + name.removeprefix(ours)]
    return []


def _prefixes(config: HiSemConfig) -> dict[str, str]:
    """All prefixes of a model of this size, ours to theirs."""
    change, decoder = "encoder_trans_dict", "decoder_dict"
    table = {f"change.{ours}": f"{change}.{their}" for ours, their in CHANGE.items()}
    for path, block in (("unchanged", "reblock1"), ("changed", "reblock2")):
        table |= {f"change.hasd.{path}.fusion.{o}": f"{change}.moe.{block}.{t}" for o, t in FUSION.items()}
    for i in range(config.bdam.layers):
        layer, attention = f"change.bdam.layers.{i}", f"{change}.diff_attn"
        table |= {f"{layer}.{o}": f"{attention}.{t.format(i=i)}" for o, t in BDAM_LAYER.items()}
        for date in ("before", "after"):
            table |= {f"{layer}.{date}.{o}": f"{attention}.{t.format(i=i, d=date[0])}" for o, t in BDAM_DATE.items()}
    table |= {f"decoder.{ours}": f"{decoder}.{their}" for ours, their in DECODER.items()}
    for i in range(config.decoder.layers):
        table |= {f"decoder.layers.{i}.{o}": f"{decoder}.transformer.layers.{i}.{t}" for o, t in DECODER_LAYER.items()}
    return table


def _converted_backbone(model: HiSem, visual: State) -> State:
    """timm's names for the CLIP image tower."""
    tower = {key.removeprefix("encoder_dict.clip_model."): tensor for key, tensor in visual.items()}
    return {f"backbone.net.{name}": tensor for name, tensor in model.backbone.from_clip(tower).items()}


def infer_config(checkpoint: dict[str, State], undetermined: Undetermined) -> HiSemConfig:
    """The sizes a published checkpoint was made with. Raises `BundleError` naming the keys it lacks."""
    visual, change, decoder = (checkpoint[part] for part in ("encoder_dict", "encoder_trans_dict", "decoder_dict"))
    needed = {
        "encoder_dict": ["clip_model.visual.conv1.weight"],
        "encoder_trans_dict": [
            "h_embedding.weight",
            "w_embedding.weight",
            "moe.pwff.fc1.weight",
            "moe.changemoe.gate.weight",
            "moe.changemoe.experts.0.gate_proj.weight",
        ],
        "decoder_dict": ["vocab_embedding.weight", "position_encoding.pe"],
    }
    if lacking := [f"{part}.{key}" for part, keys in needed.items() for key in keys if key not in checkpoint[part]]:
        raise BundleError(f"The checkpoint does not fit the published layout. missing: {', '.join(lacking)}.")
    dim, _, patch, _ = visual["clip_model.visual.conv1.weight"].shape
    width, height = len(change["h_embedding.weight"]), len(change["w_embedding.weight"])
    shared = change.get("moe.changemoe.shared_experts.gate_proj.weight")
    return HiSemConfig(
        backbone=BackboneConfig(
            name="vit_base_patch16_clip_quickgelu_224",
            image_size=(height * patch, width * patch),
            weights="none",
            options={
                "embed_dim": dim,
                "depth": _count(visual, r"clip_model\.visual\.transformer\.resblocks\.(\d+)\."),
                "num_heads": max(1, dim // CLIP_HEAD_WIDTH),
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
                shared_experts=len(shared) // dim if shared is not None else 0,
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
    """One more than the largest number that `pattern` captures in the keys; 0 without a match."""
    return max((int(match[1]) + 1 for key in state if (match := re.match(pattern, key))), default=0)
