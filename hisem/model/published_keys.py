"""Our parameters' names in the published checkpoint. Architecture page, section 8."""

from __future__ import annotations

from hisem.model.hisem import HiSemConfig

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
