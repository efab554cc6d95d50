"""Importing the published layout: sizes of all kinds, and one clear error for each file that does not fit."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hisem import cli
from hisem.config import from_dict, merge
from hisem.errors import BundleError, ConfigError
from hisem.model.backbone import CLIP_VIT_B16
from hisem.model.hisem import HiSem, HiSemConfig
from hisem.model.published import Undetermined, import_checkpoint, read_checkpoint
from hisem.model.published_keys import published_keys
from hisem.text.vocabulary import END, START

DATA = Path(__file__).parents[1] / "data"
OFFICIAL = DATA / "official_layout_tiny.pth"
PARTS = ("encoder_dict", "encoder_trans_dict", "decoder_dict")

SMALL = {
    "backbone": {
        "name": CLIP_VIT_B16,
        "image_size": [32, 32],
        "weights": "none",
        "options": {"embed_dim": 64, "depth": 1, "num_heads": 1, "patch_size": 16},
    },
    "bdam": {"layers": 1, "heads": 8},
    "hasd": {"hidden": 24, "moe": {"experts": 8, "hidden": 12}},
    "decoder": {"heads": 8, "max_length": 6},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "small": {},
    "wide grid": {"backbone": {"image_size": [32, 80]}},
    "tall grid": {"backbone": {"image_size": [64, 16]}},
    "patch of 8": {"backbone": {"image_size": [16, 24], "options": {"patch_size": 8}}},
    "two heads' width": {"backbone": {"options": {"embed_dim": 128, "num_heads": 2, "depth": 3}}},
    "less than a head's width": {"backbone": {"options": {"embed_dim": 48}}},
    "width and a half": {"backbone": {"options": {"embed_dim": 96}}},
    "no BDAM": {"bdam": {"layers": 0}},
    "layers": {"bdam": {"layers": 3}, "decoder": {"layers": 2, "max_length": 3}},
    "twelve blocks, eleven layers": {"backbone": {"options": {"depth": 12}}, "decoder": {"layers": 11}},
    "other heads": {"bdam": {"heads": 4}, "decoder": {"heads": 4}},
    "one expert": {"hasd": {"moe": {"experts": 1, "groups": 1, "groups_kept": 1, "top_k": 1}}},
    "other experts": {"hasd": {"moe": {"experts": 12, "groups": 3, "groups_kept": 1, "top_k": 3, "hidden": 7}}},
    "no shared expert": {"hasd": {"moe": {"shared_experts": 0}}},
    "three shared experts": {"hasd": {"hidden": 9, "moe": {"shared_experts": 3}}},
    "threshold": {"hasd": {"threshold": 0.25}},
}
CLIP = {  # our backbone's names to OpenAI CLIP's
    r"^patch_embed\.proj\.": "conv1.",
    r"^pos_embed$": "positional_embedding",
    r"^cls_token$": "class_embedding",
    r"^norm_pre\.": "ln_pre.",
    r"^norm\.": "ln_post.",
    r"^blocks\.(\d+)\.": r"transformer.resblocks.\1.",
    r"\.attn\.qkv\.": ".attn.in_proj_",
    r"\.attn\.proj\.": ".attn.out_proj.",
    r"\.mlp\.fc1\.": ".mlp.c_fc.",
    r"\.mlp\.fc2\.": ".mlp.c_proj.",
    r"\.norm([12])\.": r".ln_\1.",
}


def published(model):
    """A checkpoint in the published layout with the weights of `model`."""
    checkpoint: dict[str, dict[str, torch.Tensor]] = {part: {} for part in PARTS}
    for name, value in model.state_dict().items():
        tensor = value.clone()
        if name.startswith("backbone.net."):
            name = name.removeprefix("backbone.net.")
            if name in ("pos_embed", "cls_token"):  # 1 L D and 1 1 D with us
                tensor = tensor.squeeze(0).squeeze(0)
            for ours, theirs in CLIP.items():
                name = re.sub(ours, theirs, name)
            checkpoint["encoder_dict"][f"clip_model.visual.{name}"] = tensor
            continue
        keys = published_keys(name, model.config)
        for key, one in zip(keys, tensor if len(keys) > 1 or "moe.experts." in name else [tensor], strict=True):
            part, _, rest = key.partition(".")
            checkpoint[part][rest] = one
    checkpoint["decoder_dict"]["position_encoding.pe"] = model.decoder.positions.unsqueeze(1)
    return checkpoint


def undetermined(config):
    moe = config.hasd.moe
    return Undetermined(config.bdam.heads, moe.top_k, moe.groups, moe.groups_kept, config.hasd.threshold)


@pytest.fixture(scope="module")
def build(words):
    def make(variant="small", seed=0):
        torch.manual_seed(seed)
        model = HiSem(from_dict(HiSemConfig, merge(SMALL, VARIANTS[variant]), "test"), words(13)).eval()
        with torch.no_grad():  # nothing may be at the value it also starts with
            for tensor in model.state_dict().values():
                if tensor.is_floating_point():
                    tensor += 0.02 * torch.rand_like(tensor)
        return model

    return make


@pytest.mark.parametrize("variant", VARIANTS)
def test_sizes_are_inferred(build, variant):
    model = build(variant)
    checkpoint = published(model)
    height, width = model.backbone.grid
    assert len(checkpoint["encoder_trans_dict"]["h_embedding.weight"]) == width  # their h is our column
    assert len(checkpoint["encoder_trans_dict"]["w_embedding.weight"]) == height
    imported = import_checkpoint(checkpoint, model.vocabulary, undetermined(model.config))
    assert imported.model.config == model.config
    assert imported.dropped == ("decoder_dict.position_encoding.pe",)
    found, expected = imported.model.state_dict(), model.state_dict()
    assert list(found) == list(expected)
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    images = torch.randn(2, 3, 3, *model.config.backbone.image_size)
    sentences = torch.randint(4, 13, (3, 3))
    with torch.no_grad():
        for one, two in zip(imported.model(*images, sentences), model(*images, sentences), strict=True):
            assert torch.equal(one, two)
        memory = model.change(*map(model.backbone, images)).memory
        assert imported.model.generate(memory, 2) == model.generate(memory, 2)
    assert not any(module.training for module in imported.model.modules())


def test_unused_keys_are_dropped_and_named(build):
    model = build()
    checkpoint = published(model)
    unused = {
        "encoder_dict": [
            "clip_model.logit_scale",
            "clip_model.positional_embedding",
            "clip_model.transformer.resblocks.3.ln_1.weight",
            "clip_model.visual.proj",
        ],
        "encoder_trans_dict": [
            "diff_attn.bidiff_modules.0.norm_add.weight",
            "diff_attn.bidiff_modules.0.norm_del.bias",
        ],
        "decoder_dict": ["transformer.layers.0.fc_alpha2.bias", "position_encoding.embedding_1D.weight"],
    }
    for part, keys in unused.items():
        checkpoint[part] |= {key: torch.zeros(3, 2) for key in keys}
    imported = import_checkpoint(checkpoint, model.vocabulary)
    expected = {f"{part}.{key}" for part, keys in unused.items() for key in keys}
    assert set(imported.dropped) == expected | {"decoder_dict.position_encoding.pe"}


def test_half_precision_weights_become_float32(build):
    model = build()
    checkpoint = published(model)
    checkpoint["encoder_dict"] = {key: tensor.half() for key, tensor in checkpoint["encoder_dict"].items()}
    found = import_checkpoint(checkpoint, model.vocabulary).model
    assert {parameter.dtype for parameter in found.parameters()} == {torch.float32}


def refused(checkpoint, vocabulary, error=BundleError, **flags):
    with pytest.raises(error) as caught:
        import_checkpoint(checkpoint, vocabulary, Undetermined(**flags))
    return str(caught.value)


MISSING = [
    "encoder_dict.clip_model.visual.ln_post.bias",
    "encoder_trans_dict.diff_attn.add_scale",
    "encoder_trans_dict.diff_attn.norm_a_list.0.weight",
    "encoder_trans_dict.moe.clsgate.weight",
    "encoder_trans_dict.moe.reblock1.LN_list.left.3.running_var",
    "encoder_trans_dict.moe.changemoe.experts.5.down_proj.weight",
    "encoder_trans_dict.moe.changemoe.shared_experts.up_proj.weight",
    "decoder_dict.transformer.layers.0.multihead_attn.in_proj_bias",
    "decoder_dict.wdc.bias",
]


@pytest.mark.parametrize("key", MISSING)
def test_a_missing_key(build, key):
    model = build()
    checkpoint = published(model)
    part, _, rest = key.partition(".")
    checkpoint[part].pop(rest)
    message = refused(checkpoint, model.vocabulary)
    ours = "backbone.net.norm.bias" if part == "encoder_dict" else key
    assert message == f"The checkpoint does not fit the published layout. missing: {ours}."


@pytest.mark.parametrize(
    "key",
    [
        "encoder_dict.clip_model.visual.conv1.weight",
        "encoder_dict.clip_model.visual.class_embedding",
        "encoder_dict.clip_model.visual.positional_embedding",
        "encoder_trans_dict.h_embedding.weight",
        "encoder_trans_dict.moe.changemoe.experts.0.gate_proj.weight",
        "decoder_dict.vocab_embedding.weight",
        "decoder_dict.position_encoding.pe",
    ],
)
def test_a_missing_key_that_tells_a_size(build, key):
    model = build()
    checkpoint = published(model)
    part, _, rest = key.partition(".")
    checkpoint[part].pop(rest)
    assert f"missing: {key}." in refused(checkpoint, model.vocabulary)
    checkpoint[part][rest] = torch.zeros(())
    assert f"misshapen: {key} is (), not of " in refused(checkpoint, model.vocabulary)


def test_all_that_is_wrong_is_listed_at_once(build):
    model = build()
    checkpoint = published(model)
    for key in MISSING:
        part, _, rest = key.partition(".")
        checkpoint[part].pop(rest)
    checkpoint["encoder_dict"]["clip_model.visual.surplus"] = torch.zeros(1)
    checkpoint["encoder_dict"]["other"] = torch.zeros(1)
    checkpoint["decoder_dict"]["wdc.surplus"] = torch.zeros(1)
    checkpoint["encoder_dict"]["clip_model.visual.ln_pre.bias"] = torch.zeros(3)
    checkpoint["encoder_trans_dict"]["moe.pwff.fc1.bias"] = torch.zeros(3)
    checkpoint["encoder_trans_dict"]["moe.changemoe.experts.7.gate_proj.weight"] = torch.zeros(12, 3)
    message = refused(checkpoint, model.vocabulary)
    parts = re.fullmatch(r".*layout\. missing: (.*)\. unexpected: (.*)\. misshapen: (.*)\.", message)
    assert parts is not None
    missing, unexpected, misshapen = parts.groups()
    assert set(missing.split(", ")) == {*MISSING[1:], "backbone.net.norm.bias"}
    assert unexpected.split(", ") == ["decoder_dict.wdc.surplus", "encoder_dict.other", "backbone.net.surplus"]
    assert "backbone.net.norm_pre.bias is (3,), not (64,)" in misshapen
    assert "encoder_trans_dict.moe.pwff.fc1.bias is (3,), not (24,)" in misshapen
    assert "encoder_trans_dict.moe.changemoe.experts.7.gate_proj.weight is (12, 3), not (12, 64)" in misshapen
    assert misshapen.count(" is ") == 3


@pytest.mark.parametrize(
    ("key", "shape", "told"),
    [
        ("positional_embedding", (17, 64), "positional_embedding is (17, 64), not (5, 64)"),
        ("conv1.weight", (64, 3, 16, 8), "conv1.weight is (64, 3, 16, 8), not (64, 3, 16, 16)"),
        ("conv1.weight", (64, 1, 16, 16), "conv1.weight is (64, 1, 16, 16), not (64, 3, 16, 16)"),
        ("class_embedding", (32,), "class_embedding is (32,), not (64,)"),
    ],
)
def test_nothing_is_resampled_to_fit(build, key, shape, told):
    model = build()
    checkpoint = published(model)
    checkpoint["encoder_dict"][f"clip_model.visual.{key}"] = torch.zeros(shape)
    message = refused(checkpoint, model.vocabulary)
    assert message.endswith(f"misshapen: encoder_dict.clip_model.visual.{told}.")


def test_a_gap_between_layers(build):
    model = build("layers")
    checkpoint = published(model)
    decoder = checkpoint["decoder_dict"]
    for key in [key for key in decoder if ".layers.1." in key]:
        decoder[key.replace(".layers.1.", ".layers.900000000.")] = decoder.pop(key)
    message = refused(checkpoint, model.vocabulary)
    assert "missing: decoder_dict.transformer.layers.1." in message
    assert "unexpected: decoder_dict.transformer.layers.900000000." in message


@pytest.mark.parametrize("part", ["decoder_dict", "encoder_dict"])
def test_no_layers_at_all(build, part):
    model = build()
    checkpoint = published(model)
    checkpoint[part] = {key: tensor for key, tensor in checkpoint[part].items() if ".0." not in key}
    assert f"missing: {part}." in refused(checkpoint, model.vocabulary)


def test_shared_experts_without_their_gate(build):
    model = build()
    checkpoint = published(model)
    checkpoint["encoder_trans_dict"].pop("moe.changemoe.shared_experts.gate_proj.weight")
    message = refused(checkpoint, model.vocabulary)
    assert "unexpected: encoder_trans_dict.moe.changemoe.shared_experts.down_proj.weight" in message
    checkpoint["encoder_trans_dict"]["moe.changemoe.shared_experts.gate_proj.weight"] = torch.zeros(96, 64)
    assert "shared_experts.gate_proj.weight is (96, 64), not (64, 64)" in refused(checkpoint, model.vocabulary)


def test_a_width_that_clip_cannot_have(build):
    model = build()
    checkpoint = published(model)
    checkpoint["encoder_dict"]["clip_model.visual.conv1.weight"] = torch.zeros(200, 3, 16, 16)
    assert "200 channels, which 3 heads" in refused(checkpoint, model.vocabulary)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"groups": 3}, "moe.groups=3: must divide experts=8"),
        ({"top_k": 5}, "moe.top_k=5"),
        ({"groups_kept": 5}, "moe.groups_kept=5"),
        ({"heads": 5}, "heads=5: must divide the backbone's 64 channels"),
        ({"threshold": 2.0}, "threshold is 2.0"),
    ],
)
def test_flags_that_do_not_fit(build, flags, told):
    model = build()
    assert told in refused(published(model), model.vocabulary, ConfigError, **flags)


@pytest.mark.parametrize("count", [12, 14])
def test_vocabulary_of_the_wrong_size(build, words, count):
    message = refused(published(build()), words(count))
    assert message == f"The vocabulary has {count} words but the checkpoint's weights are for 13."


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (type(self.path).touch, (self.path,))


def test_a_pickle_with_code_is_refused(tmp_path):
    torch.save({part: {"key": Payload(tmp_path / "executed")} for part in PARTS}, tmp_path / "evil.pth")
    with pytest.raises(BundleError, match=r"evil\.pth: not a checkpoint of plain tensors"):
        read_checkpoint(tmp_path / "evil.pth")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 no archive", b"\x80\x02."])
def test_not_a_checkpoint(tmp_path, content):
    (tmp_path / "file.pth").write_bytes(content)
    with pytest.raises(BundleError, match=r"file\.pth: not a checkpoint"):
        read_checkpoint(tmp_path / "file.pth")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([1, 2], "found list"),
        ({"state_dict": {}}, "found state_dict"),
        (dict.fromkeys(PARTS, 1), "found encoder_dict"),
        ({part: {"key": [1]} for part in PARTS}, "encoder_dict holds 'key', a list; tensors are expected"),
        ({part: {3: torch.zeros(1)} for part in PARTS}, "encoder_dict holds 3, a Tensor"),
    ],
)
def test_not_the_published_layout(tmp_path, content, told):
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(BundleError, match=told):
        read_checkpoint(tmp_path / "file.pth")


def test_no_such_file(tmp_path):
    with pytest.raises(BundleError, match=r"nowhere\.pth: cannot be read"):
        read_checkpoint(tmp_path / "nowhere.pth")
    with pytest.raises(BundleError, match="cannot be read"):
        read_checkpoint(tmp_path)


# The command


@pytest.fixture(scope="module")
def command():
    path = Path(__file__).parents[2] / "pipelines" / "import_checkpoint.py"
    spec = importlib.util.spec_from_file_location("import_checkpoint_command", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.run(module.main, lambda: cli.parse(module.Options, "", [str(argument) for argument in arguments]))
        return ended.value.code

    yield run
    del sys.modules[spec.name]


@pytest.fixture
def vocab(words, tmp_path):
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps(words(23).to_dict()))
    return path


def test_official_file_to_bundle(command, vocab, tmp_path, capsys):
    assert command(OFFICIAL, "--vocab", vocab, "--output", tmp_path / "bundle") == 0
    told = capsys.readouterr().out
    assert re.search(r"hasd\.moe\.experts\s+8\b", told)
    assert re.search(r"decoder_dict\.transformer\.layers\.\*\.fc_alpha1\.bias\s+1\b", told)
    assert str(tmp_path / "bundle") in told.replace("\n", "")
    model = HiSem.from_pretrained(tmp_path / "bundle")
    golden = np.load(DATA / "golden_activations.npz")
    for key, beam in (("decode/greedy", 1), ("decode/beam3", 3)):
        found = model.generate(torch.from_numpy(golden["eval/routed/features"]), beam)
        for hypotheses, row in zip(found, golden[key].tolist(), strict=True):
            expected = [word for word in row if word not in (-1, START, END)]
            assert list(hypotheses[0].ids) == expected
    with torch.no_grad():
        tokens = [model.backbone(torch.from_numpy(golden[f"in/images_{date}"])) for date in ("before", "after")]
        memory = torch.from_numpy(golden["eval/routed/features"])
        torch.testing.assert_close(model.change(*tokens).memory, memory, rtol=0, atol=1e-4)


def test_flags_reach_the_bundle(command, vocab, tmp_path):
    flags = {"heads": 4, "top-k": 3, "groups": 2, "groups-kept": 1, "threshold": 0.25}
    arguments = [text for name, value in flags.items() for text in (f"--{name}", value)]
    assert command(OFFICIAL, "--vocab", vocab, "--output", tmp_path / "bundle", *arguments) == 0
    config = HiSem.from_pretrained(tmp_path / "bundle").config
    moe = config.hasd.moe
    assert (config.bdam.heads, config.decoder.heads) == (4, 4)
    assert (moe.top_k, moe.groups, moe.groups_kept, config.hasd.threshold) == (3, 2, 1, 0.25)


def test_an_output_that_holds_something_is_refused(command, vocab, tmp_path, capsys):
    full = tmp_path / "full"
    full.mkdir()
    assert command(OFFICIAL, "--vocab", vocab, "--output", full) == 0  # empty is fine
    before = {file.name: file.read_bytes() for file in full.iterdir()}
    assert command(OFFICIAL, "--vocab", vocab, "--output", full) == 2
    assert f"--output {full}: not an empty folder" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in full.iterdir()} == before
    assert command(OFFICIAL, "--vocab", vocab, "--output", vocab) == 2


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "not readable as JSON"),
        ("{", "not readable as JSON"),
        ("[1]", "a mapping"),
        ('{"a": 0}', "first entries"),
    ],
)
def test_a_vocabulary_that_is_none(command, tmp_path, capsys, content, told):
    path = tmp_path / "vocab.json"
    if content is not None:
        path.write_text(content)
    assert command(OFFICIAL, "--vocab", path, "--output", tmp_path / "bundle") == 1
    assert told in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


def test_no_such_checkpoint(command, vocab, tmp_path, capsys):
    assert command(tmp_path / "nowhere.pth", "--vocab", vocab, "--output", tmp_path / "bundle") == 1
    assert "nowhere.pth: no such file" in capsys.readouterr().err
