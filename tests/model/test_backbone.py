"""The visual encoder over several families of timm models: grid, tokens, freezing, weights (section 1)."""

from dataclasses import replace

import pytest
import timm
import torch
from safetensors import torch as safetensors

from hisem.errors import BundleError, ConfigError
from hisem.model.backbone import CLIP_VIT_B16, Backbone, BackboneConfig
from hisem.model.hisem import HiSemConfig
from hisem.training.epoch import make_optimizer
from hisem.training.recipe import TrainingConfig

VIT = {"depth": 3, "embed_dim": 32, "num_heads": 2}


def config_of(name, stride, dim, blocks, **options):
    return BackboneConfig(name=name, weights="none", options=options), stride, dim, blocks


# Config, pixels per token, channels, and the parameter prefixes of the blocks, last one first.
FAMILIES = {
    "clip b16": config_of(CLIP_VIT_B16, 16, 32, ["blocks.2.", "blocks.1.", "blocks.0."], **VIT),
    "clip b32": config_of("vit_base_patch32_clip_quickgelu_224.openai", 32, 32, ["blocks.2.", "blocks.1."], **VIT),
    "dinov2 reg4": config_of("vit_small_patch14_reg4_dinov2.lvd142m", 14, 32, ["blocks.2.", "blocks.1."], **VIT),
    "resnet": config_of(
        "resnet10t", 32, 24, ["layer4.0.", "layer3.0.", "layer2.0."], channels=[8, 8, 16, 24], stem_width=8
    ),
    "resnet, two blocks a stage": config_of(
        "resnet18", 32, 24, ["layer4.1.", "layer4.0.", "layer3.1."], channels=[8, 8, 16, 24]
    ),
    "convnext": config_of(
        "convnext_atto",
        32,
        24,
        ["stages.3.blocks.0.", "stages.2.blocks.1.", "stages.2.blocks.0."],
        depths=[1, 1, 2, 1],
        dims=[8, 8, 16, 24],
    ),
    "swin": config_of(
        "swin_tiny_patch4_window7_224",
        32,
        64,
        ["layers.3.blocks.0.", "layers.2.blocks.1.", "layers.2.blocks.0."],
        embed_dim=8,
        depths=[1, 1, 2, 1],
        num_heads=[1, 1, 2, 2],
    ),
    "efficientnet": config_of("tinynet_e.in1k", 32, 160, ["blocks.6.0.", "blocks.5.1.", "blocks.5.0."]),
}
VITS = [name for name in FAMILIES if name.startswith(("clip", "dino"))]
PYRAMIDS = [name for name in FAMILIES if name not in VITS]
WITH_NORM = [*VITS, "swin"]  # the others end without a norm


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


def build(config, seed=0, **over):
    torch.manual_seed(seed)
    return Backbone(replace(config, **over)).eval()


def unpruned(backbone):
    """The whole timm model with the same weights."""
    sizes = dict(backbone.config.options)
    if backbone.net.pretrained_cfg["fixed_input_size"]:
        sizes["img_size"] = backbone.config.image_size
    net = timm.create_model(backbone.config.name, num_classes=0, **sizes).eval()
    found = net.load_state_dict(backbone.net.state_dict(), strict=False)
    assert not found.unexpected_keys
    return net


@pytest.mark.parametrize("height", [2, 3])
def test_tokens_are_the_models_own_features(family, height):
    """As timm's `forward_features`, which no cut of ours has touched; row by row."""
    config, stride, dim, _ = family
    size = (height * stride, 3 * stride)
    backbone = build(config, image_size=size)
    assert (backbone.grid, backbone.dim) == ((height, 3), dim)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        tokens, net = backbone(images), unpruned(backbone)
        if hasattr(net, "num_prefix_tokens"):
            expected = net.forward_features(images)[:, net.num_prefix_tokens :]
        elif config.name.startswith("tinynet"):
            # EfficientNet's own features go on into a classifier's convolution; the grid is before it.
            expected = net.blocks(net.bn1(net.conv_stem(images))).flatten(2).transpose(1, 2)
        else:
            features = net.forward_features(images)
            if config.name.startswith("swin"):  # B H W D
                features = features.permute(0, 3, 1, 2)
            expected = features.flatten(2).transpose(1, 2)
    assert tokens.shape == (2, height * 3, dim)
    torch.testing.assert_close(tokens, expected)


def test_register_and_class_tokens_are_left_out():
    config, stride, *_ = FAMILIES["dinov2 reg4"]
    backbone = build(config, image_size=(2 * stride, 2 * stride))
    assert backbone.net.num_prefix_tokens == 5
    assert backbone(torch.randn(1, 3, 28, 28)).shape[1] == 4


def test_mean_and_std(family):
    config, stride, *_ = family
    backbone = build(config, image_size=(2 * stride, 2 * stride))
    expected = timm.data.resolve_model_data_config(timm.create_model(config.name, num_classes=0, **config.options))
    assert (backbone.mean, backbone.std) == (expected["mean"], expected["std"])


def test_clip_has_its_own_mean():
    backbone = build(FAMILIES["clip b16"][0], image_size=(32, 32))
    assert backbone.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert "quickgelu" in type(backbone.net.blocks[0].mlp.act).__name__.lower()


@pytest.mark.parametrize("extra", [(0, 1), (-1, 0), (3, 3)])
def test_illegal_size(family, extra):
    config, stride, *_ = family
    size = (2 * stride + extra[0], 2 * stride + extra[1])
    with pytest.raises(ConfigError, match=rf"image_size=\({size[0]}, {size[1]}\).*multiples of {stride}"):
        build(config, image_size=size)


@pytest.mark.parametrize("name", PYRAMIDS)
@pytest.mark.parametrize("stride", [4, 8, 16])
def test_stride_cuts_a_pyramid(name, stride):
    config, *_ = FAMILIES[name]
    size = (64, 96)
    backbone = build(config, image_size=size, stride=stride)
    assert backbone.grid == (64 // stride, 96 // stride)
    images = torch.randn(1, 3, *size)
    net = unpruned(backbone)
    with torch.no_grad():
        maps = net.forward_intermediates(images, norm=False, intermediates_only=True)
        (expected,) = [one for one in maps if tuple(one.shape[-2:]) == backbone.grid][-1:]
        tokens = backbone(images)
    assert backbone.dim == expected.shape[1]
    torch.testing.assert_close(tokens, expected.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("stride", [None, 16])
def test_no_parameter_waits_in_vain(family, stride):
    config, own, *_ = family
    stride = stride if own == 32 and "depth" not in config.options else None
    backbone = build(config, image_size=(2 * own, 2 * own), stride=stride, trainable_blocks=-1)
    backbone(torch.randn(2, 3, 2 * own, 2 * own)).square().sum().backward()
    assert [name for name, parameter in backbone.named_parameters() if parameter.grad is None] == []


def test_stride_that_no_stage_has(family):
    config, own, *_ = family
    with pytest.raises(ConfigError, match=r"stride=5: .* has stages at \["):
        build(config, image_size=(2 * own, 2 * own), stride=5)


@pytest.mark.parametrize("count", [1, 2])
def test_trainable_blocks(family, count):
    config, own, _, blocks = family
    backbone = build(config, image_size=(2 * own, 2 * own), trainable_blocks=count)
    trainable = {name for name, parameter in backbone.net.named_parameters() if parameter.requires_grad}
    # The last blocks, what halves the grid on the way to them, and the norm after them.
    prefixes = tuple(blocks[:count])
    if any(block.endswith("blocks.0.") for block in prefixes):
        prefixes += ("layers.3.downsample.", "stages.3.downsample.")
    expected = {name for name, _ in backbone.net.named_parameters() if name.startswith((*prefixes, "norm."))}
    assert trainable == expected
    has_norm = any(name.startswith("norm.") for name in trainable)
    assert has_norm == (config.name in {FAMILIES[name][0].name for name in WITH_NORM})
    # The optimizer takes exactly these.
    held = {id(p) for group in make_optimizer(backbone, TrainingConfig()).param_groups for p in group["params"]}
    assert held == {id(parameter) for name, parameter in backbone.net.named_parameters() if name in expected}


@pytest.mark.parametrize(("count", "all_of_it"), [(0, False), (-1, True), (99, True)])
def test_none_or_all_trainable(family, count, all_of_it):
    config, own, *_ = family
    backbone = build(config, image_size=(2 * own, 2 * own), trainable_blocks=count)
    assert {parameter.requires_grad for parameter in backbone.parameters()} == {all_of_it}


def test_blocks_count_from_the_cut():
    config, *_ = FAMILIES["resnet"]
    backbone = build(config, image_size=(64, 64), stride=8, trainable_blocks=1)
    trainable = {name.split(".")[0] for name, p in backbone.net.named_parameters() if p.requires_grad}
    assert trainable == {"layer2"}


def test_frozen_parts_stay_in_eval_mode(family):
    config, own, *_ = family
    backbone = build(config, image_size=(2 * own, 2 * own), trainable_blocks=1)
    backbone.train()
    for name, module in backbone.net.named_modules():
        own_parameters = list(module.parameters(recurse=False))
        if name and own_parameters:  # the root holds a ViT's class token beside the blocks
            assert module.training == own_parameters[0].requires_grad, name
    frozen = {
        name: value.clone()
        for name, value in backbone.net.state_dict().items()
        if not dict(backbone.net.named_parameters()).get(name, torch.zeros(())).requires_grad
    }
    optimizer = make_optimizer(backbone, TrainingConfig(learning_rate=0.1))
    backbone(torch.randn(2, 3, 2 * own, 2 * own)).square().sum().backward()
    optimizer.step()
    last = family[3][0]
    changed = [name for name, value in frozen.items() if not torch.equal(value, backbone.net.state_dict()[name])]
    assert all((name.startswith(last) and "running" in name) or "num_batches" in name for name in changed), changed
    assert not backbone.eval().net.training


# Weights


@pytest.fixture
def vit():
    return replace(FAMILIES["clip b16"][0], image_size=(32, 32))


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_weights_from_a_file(family, ending, tmp_path):
    config, own, *_ = family
    config = replace(config, image_size=(2 * own, 2 * own))
    torch.manual_seed(1)
    sizes = dict(config.options)
    if config.name.startswith(("vit", "swin")):
        sizes["img_size"] = config.image_size
    source = timm.create_model(config.name, num_classes=5, **sizes)  # files come with a classifier
    file = tmp_path / f"weights.{ending}"
    save = save_file if ending == "safetensors" else torch.save
    save(source.state_dict(), file)
    loaded = build(config, weights=str(file)).net.state_dict()
    expected = source.state_dict()
    assert [name for name in loaded if not torch.equal(loaded[name], expected[name])] == []
    assert any(not torch.equal(loaded[name], value) for name, value in build(config).net.state_dict().items())


def test_positions_of_another_grid_are_resampled(vit, tmp_path):
    save_file(build(vit, image_size=(64, 64)).net.state_dict(), tmp_path / "square.safetensors")
    net = build(vit, image_size=(32, 64), weights=str(tmp_path / "square.safetensors")).net
    assert net.pos_embed.shape == (1, 1 + 2 * 4, 32)


def test_wrapped_state_dict(vit, tmp_path):
    source = build(vit, seed=1).net.state_dict()
    torch.save({"state_dict": {f"module.{name}": value for name, value in source.items()}}, tmp_path / "w.pth")
    loaded = build(vit, weights=str(tmp_path / "w.pth")).net.state_dict()
    assert all(torch.equal(loaded[name], source[name]) for name in loaded)


def test_missing_file(vit):
    with pytest.raises(BundleError, match=r"model\.backbone\.weights=nowhere\.pth: no such file"):
        build(vit, weights="nowhere.pth")


def save_file(state, file):
    """Safetensors takes contiguous tensors only; convolutions are kept channels last."""
    safetensors.save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (type(self.path).touch, (self.path,))


def test_pickle_with_code_is_refused(vit, tmp_path):
    torch.save({"weight": Payload(tmp_path / "executed")}, tmp_path / "evil.pth")
    with pytest.raises(BundleError, match=r"evil\.pth: cannot be loaded"):
        build(vit, weights=str(tmp_path / "evil.pth"))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [b"", b"no weights", b"\x80\x02."])
@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_file_that_holds_no_weights(vit, tmp_path, content, ending):
    file = tmp_path / f"broken.{ending}"
    file.write_bytes(content)
    with pytest.raises(BundleError, match=rf"broken\.{ending}: cannot be loaded"):
        build(vit, weights=str(file))


def test_weights_of_another_model(vit, tmp_path):
    state = build(vit).net.state_dict()
    for change, told in (
        (lambda state: state.pop("norm.bias"), r"Missing: norm\.bias; unexpected: none"),
        (lambda state: state.update(surplus=torch.zeros(1)), "Missing: none; unexpected: surplus"),
    ):
        other = dict(state)
        change(other)
        save_file(other, tmp_path / "other.safetensors")
        with pytest.raises(BundleError, match=told):
            build(vit, weights=str(tmp_path / "other.safetensors"))
    wide = build(vit, options={**VIT, "embed_dim": 48}).net.state_dict()
    save_file(wide, tmp_path / "wide.safetensors")
    with pytest.raises(BundleError, match=r"(?s)wide\.safetensors: cannot be loaded .*size mismatch"):
        build(vit, weights=str(tmp_path / "wide.safetensors"))


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))


@pytest.mark.usefixtures("offline")
def test_hub_without_network(vit):
    with pytest.raises(BundleError, match=r"weights=hub: .*--model\.backbone\.weights FILE \(\.safetensors or \.pth\)"):
        build(vit, weights="hub")


@pytest.mark.usefixtures("offline")
def test_a_mistake_in_the_config_is_not_blamed_on_the_network(vit):
    with pytest.raises(ConfigError, match="unexpected keyword argument 'channels'"):
        build(vit, weights="hub", options={"channels": [8, 8, 8, 8]})


@pytest.mark.usefixtures("offline")
def test_a_bundles_backbone_reads_no_weights(vit):
    for weights in ("hub", "nowhere.pth", "/etc/passwd"):
        Backbone(replace(vit, weights=weights), pretrained=False)


# Config


@pytest.mark.parametrize(
    "name", ["hf-hub:timm/resnet18.a1_in1k", "hf_hub:x/y", "local-dir:/tmp", "../x", "timm/resnet18"]
)
def test_paths_and_hubs_are_refused(name):
    with pytest.raises(ConfigError, match=r"model\.backbone\.name=.*only timm's own model names"):
        BackboneConfig(name=name)


@pytest.mark.parametrize("name", ["resnet1234", "", "vit_of_nobody"])
def test_unknown_name(name):
    with pytest.raises(ConfigError, match=rf"model\.backbone\.name={name}: timm has no such model\. Similar: "):
        Backbone(BackboneConfig(name=name, weights="none"))


def test_unknown_tag():
    with pytest.raises(ConfigError, match=r"resnet18\.nobodys .*Invalid pretrained tag"):
        Backbone(BackboneConfig(name="resnet18.nobodys", weights="none"))


@pytest.mark.parametrize("option", ["pretrained_cfg", "checkpoint_path", "features_only", "cache_dir", "act_layer"])
def test_options_that_are_no_sizes_are_refused(option):
    with pytest.raises(ConfigError, match=rf"model\.backbone\.options: {option} may not be set; allowed are"):
        BackboneConfig(options={option: 1})


@pytest.mark.parametrize("value", [0, -3, [], [8, 0], float("inf"), float("nan")])
def test_sizes_must_be_positive(value):
    with pytest.raises(ConfigError, match=r"options\.depth(: a list without sizes| is .*: a value above 0)"):
        BackboneConfig(options={"depth": value})


@pytest.mark.parametrize(
    "options",
    [{"embed_dim": 30, "num_heads": 4}, {"depth": [1, 2]}, {"embed_dim": 0.5}, {"window_size": 4}, {"channels": [4]}],
)
def test_options_that_the_model_cannot_take(options):
    with pytest.raises(ConfigError, match=rf"model\.backbone: {CLIP_VIT_B16} with"):
        Backbone(BackboneConfig(weights="none", image_size=(32, 32), options={**VIT, **options}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_size": (0, 16)}, "image_size is 0: a value from 1"),
        ({"trainable_blocks": -2}, "trainable_blocks is -2: a value from -1"),
        ({"stride": 0}, "stride is 0: a value from 1"),
    ],
)
def test_illegal_config(values, message):
    with pytest.raises(ConfigError, match=rf"model\.backbone\.{message}"):
        BackboneConfig(**values)


def test_models_without_a_grid_or_blocks_are_told():
    with pytest.raises(ConfigError, match="does not tell the blocks of PoolingVisionTransformer apart; use -1"):
        Backbone(BackboneConfig(name="pit_ti_224", weights="none", image_size=(224, 224)))
    padded = Backbone(BackboneConfig(name="inception_v3", weights="none", image_size=(96, 96), trainable_blocks=-1))
    with pytest.raises(ConfigError, match=r"inception_v3 makes a grid of \(1, 1\) tokens of \(96, 96\) pixels"):
        padded.eval()(torch.zeros(1, 3, 96, 96))


def test_the_papers_backbone_is_the_default():
    backbone = HiSemConfig().backbone
    assert (backbone.name, backbone.image_size, backbone.trainable_blocks) == (CLIP_VIT_B16, (224, 224), 4)
