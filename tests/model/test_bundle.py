"""The bundle on disk: a round trip, its digest, and one clear error for each way to break it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hisem.errors import BundleError
from hisem.model import bundle
from hisem.model.hisem import HiSem

IMAGES = torch.randint(0, 256, (2, 4, 3, 50, 70), generator=torch.Generator().manual_seed(0)).byte()


@pytest.fixture(scope="module")
def model(tiny):
    """Not as initialised: norms with statistics, a calibrated threshold, a router that uses both paths."""
    model = tiny(bdam={"layers": 0}).train()
    tokens = torch.randn(2, 6, 6, model.backbone.dim)
    for _ in range(3):
        model.change(*tokens, torch.tensor([True, False] * 3))
    with torch.no_grad():
        model.change.hasd.router.weight *= 50
    model.eval().change_threshold = 0.3
    return model


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "saved"
    model.save_pretrained(folder, {"bleu_4": 0.5})
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to break."""
    return shutil.copytree(saved, tmp_path / "copy")


def edit(folder: Path, name: str, change) -> None:
    data = json.loads((folder / name).read_text())
    change(data)
    (folder / name).write_text(json.dumps(data))


def edit_weights(folder: Path, change) -> None:
    weights = load_file(folder / bundle.WEIGHTS)
    change(weights)
    save_file(weights, folder / bundle.WEIGHTS)


def test_round_trip(model, saved):
    loaded = HiSem.from_pretrained(saved)
    expected = model.state_dict()
    assert list(loaded.state_dict()) == list(expected)
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name]), name
    assert not any(module.training for module in loaded.modules())
    assert loaded.vocabulary == model.vocabulary
    assert loaded.change_threshold == 0.3
    for beam in (1, 3):
        captions = model.caption(IMAGES[0], IMAGES[1], beam)
        assert loaded.caption(IMAGES[0], IMAGES[1], beam) == captions
        assert len({caption.changed for caption in captions}) == 2


def test_saving_again_gives_the_same_bytes(saved, tmp_path):
    digest = HiSem.from_pretrained(str(saved)).save_pretrained(tmp_path / "again", {"bleu_4": 0.5})
    assert digest == bundle.digest(saved)
    for file in saved.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
    assert sorted(file.name for file in saved.iterdir()) == sorted(
        (bundle.WEIGHTS, bundle.CONFIG, bundle.VOCABULARY, bundle.PREPROCESSING, bundle.METRICS)
    )


def test_digest_ignores_metrics(tiny, tmp_path):
    model = tiny()
    digests = {
        model.save_pretrained(tmp_path / str(number), metrics)
        for number, metrics in enumerate((None, {}, {"bleu_4": 0.1}, {"bleu_4": 0.2, "note": "x"}))
    }
    assert len(digests) == 1
    assert digests == {bundle.digest(tmp_path / "0")}


def test_digest_changes_with_whatever_decides_captions(tiny, words, tmp_path):
    def digest(name, change):
        model = tiny()
        change(model)
        return model.save_pretrained(tmp_path / name)

    def weight(model):
        with torch.no_grad():
            model.decoder.output.bias[4] += 1e-6

    def statistics(model):
        model.change.hasd.changed.fusion.norm_in.running_mean[0] = 1e-6

    def threshold(model):
        model.change_threshold = 0.51

    def vocabulary(model):
        model.vocabulary = type(model.vocabulary)((*model.vocabulary.words[:-1], "another"))

    changes = (lambda model: None, weight, statistics, threshold, vocabulary)
    assert len({digest(str(number), change) for number, change in enumerate(changes)}) == len(changes)


def test_loading_does_not_need_metrics(folder):
    (folder / bundle.METRICS).unlink()
    HiSem.from_pretrained(folder)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (type(self.path).touch, (self.path,))


def test_loading_never_unpickles(folder, tmp_path, monkeypatch):
    for name in ("pytorch_model.bin", "model.pth", "state.pt"):
        torch.save(Payload(tmp_path / "executed"), folder / name)
    monkeypatch.setattr(torch, "load", None)
    HiSem.from_pretrained(folder)
    assert not (tmp_path / "executed").exists()
    (folder / bundle.WEIGHTS).unlink()
    with pytest.raises(BundleError, match=r"model\.safetensors: cannot be read"):
        HiSem.from_pretrained(folder)


def test_a_pickle_in_place_of_the_weights(folder, tmp_path):
    torch.save(Payload(tmp_path / "executed"), folder / bundle.WEIGHTS)
    with pytest.raises(BundleError, match=r"model\.safetensors: cannot be read"):
        HiSem.from_pretrained(folder)
    assert not (tmp_path / "executed").exists()


def test_weights_named_in_the_config_are_not_read(folder, tmp_path):
    torch.save(Payload(tmp_path / "executed"), tmp_path / "evil.pth")
    for weights in (str(tmp_path / "evil.pth"), "hub", "nowhere"):
        edit(folder, bundle.CONFIG, lambda data, weights=weights: data["model"]["backbone"].update(weights=weights))
        HiSem.from_pretrained(folder)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", [bundle.WEIGHTS, bundle.CONFIG, bundle.VOCABULARY, bundle.PREPROCESSING])
def test_missing_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(BundleError, match=name):
        HiSem.from_pretrained(folder)


def test_missing_folder(tmp_path):
    with pytest.raises(BundleError, match=r"is .*nowhere a model bundle"):
        HiSem.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="cannot be read"):
        bundle.digest(tmp_path / "nowhere")


@pytest.mark.parametrize("keep", [0, 7, 500, -1])
def test_truncated_weights(folder, keep):
    file = folder / bundle.WEIGHTS
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(BundleError, match=r"model\.safetensors: cannot be read"):
        HiSem.from_pretrained(folder)


@pytest.mark.parametrize("content", ["", "[]", "7", "{", "\x00", "[" * 100_000, '{"format": ' + "9" * 5000 + "}"])
@pytest.mark.parametrize("name", [bundle.CONFIG, bundle.VOCABULARY, bundle.PREPROCESSING])
def test_json_that_is_none(folder, name, content):
    (folder / name).write_text(content)
    with pytest.raises(BundleError, match=name):
        HiSem.from_pretrained(folder)


@pytest.mark.parametrize("format_", [0, 2, "1", None, [1]])
def test_unknown_format(folder, format_):
    edit(folder, bundle.CONFIG, lambda data: data.update(format=format_))
    with pytest.raises(BundleError, match=r"bundle format .* found, 1 is known"):
        HiSem.from_pretrained(folder)


@pytest.mark.parametrize("content", [None, [], "x", 3])
def test_config_without_a_model(folder, content):
    edit(folder, bundle.CONFIG, lambda data: data.update(model=content))
    with pytest.raises(BundleError, match="under `model`, is missing"):
        HiSem.from_pretrained(folder)


def test_vocabulary_that_does_not_fit(folder):
    edit(folder, bundle.VOCABULARY, lambda data: data.update(surplus=len(data)))
    with pytest.raises(BundleError, match="vocabulary has 12 words but the weights are for 11"):
        HiSem.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(w4=5), "share id 5"),
        (lambda data: data.update(w4=-1), "has id -1"),
        (lambda data: data.update(w4=10**30), "has id 1000000"),
        (lambda data: data.update({"<END>": 4, "w4": 3}), "first entries must be"),
    ],
)
def test_vocabulary_that_is_none(folder, change, message):
    edit(folder, bundle.VOCABULARY, change)
    with pytest.raises(BundleError, match=f"vocabulary: .*{message}"):
        HiSem.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("decoder.output.bias"), "missing: decoder.output.bias"),
        (lambda weights: weights.pop("decoder.embedding.weight"), "missing: decoder.embedding.weight"),
        (lambda weights: weights.update(surplus=torch.zeros(2)), "unexpected: surplus"),
        (
            lambda weights: weights.update({"change.hasd.router.weight": torch.zeros(2, 15)}),
            r"misshapen: change.hasd.router.weight is \(2, 15\) instead of \(2, 16\)",
        ),
        (
            lambda weights: weights.update({"decoder.embedding.weight": torch.zeros(())}),
            r"misshapen: decoder.embedding.weight is \(\) instead of \(11, 16\)",
        ),
        (lambda weights: weights["decoder.output.bias"].fill_(float("nan")), "decoder.output.bias .*not finite"),
        (lambda weights: weights["change.position.row"].fill_(float("inf")), "change.position.row .*not finite"),
        (lambda weights: weights.clear(), "missing: .* and [0-9]+ more"),
    ],
)
def test_weights_that_do_not_fit(folder, change, message):
    edit_weights(folder, change)
    with pytest.raises(BundleError, match=message):
        HiSem.from_pretrained(folder)


def nested(path, value):
    """Set a dotted key of the model's config."""

    def change(data):
        *way, last = path.split(".")
        for key in ["model", *way]:
            data = data[key]
        data[last] = value

    return change


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("surplus", 1, "unknown key.*surplus"),
        ("hasd.moe.surplus", 1, "unknown key.*surplus"),
        ("backbone.name", "hf-hub:someone/evil", "only timm's own model names"),
        ("backbone.name", "local-dir:/tmp", "only timm's own model names"),
        ("backbone.name", "resnet1234", "timm has no such model"),
        ("backbone.options", {"checkpoint_path": [1]}, "checkpoint_path may not be set"),
        ("backbone.options", {"pretrained_cfg": 1}, "pretrained_cfg may not be set"),
        ("backbone.options", {"depth": 2}, "unexpected keyword argument 'depth'"),
        ("backbone.options", {"channels": ["8"]}, "backbone.options"),
        ("backbone.image_size", None, "image_size|not iterable"),
        ("backbone.image_size", [32], "image_size"),
        ("backbone.image_size", [33, 48], "multiples of 16"),
        ("backbone.image_size", [10**9, 48], "image_size is 1000000000: a value from 1 to 2048"),
        (
            "backbone.options.channels",
            [10**12] * 4,
            "backbone.options.channels is 1000000000000: a value above 0 to 65536",
        ),
        ("backbone.options.stem_width", 10**300, "backbone.options.stem_width is a number of more than 100 digits"),
        ("backbone.options.layers", [10**4] * 4, "backbone.options.layers is 10000; at most [0-9]+ is plausible"),
        ("bdam.layers", 65000, "bdam.layers is 65000: a value from 0 to 64"),
        ("decoder.layers", 10**9, "decoder.layers is 1000000000: a value from 1 to 64"),
        ("decoder.max_length", 10**12, "max_length is 1000000000000: a value from 1 to 512"),
        ("decoder.heads", 3, r"model\.decoder\.heads=3: must divide"),
        ("hasd.hidden", 2**70, "hasd.hidden is 1180591620717411303424: a value from 1 to 65536"),
        ("hasd.hidden", 25, r"misshapen: .*feed_forward.*\(24, 16\) instead of \(25, 16\)"),
        ("hasd.threshold", float("nan"), "threshold is nan: a value from 0 to 1"),
        ("hasd.router", False, "unexpected: change.hasd.changed"),
        ("hasd.moe.experts", 2.5, "experts"),
        ("hasd.moe.balance_weight", float("nan"), "balance_weight is nan"),
    ],
)
def test_config_that_does_not_fit(folder, path, value, message):
    edit(folder, bundle.CONFIG, nested(path, value))
    with pytest.raises(BundleError, match=message):
        HiSem.from_pretrained(folder)


def test_sizes_that_the_weights_do_not_have_take_no_memory(folder):
    built = []

    class Watched(HiSem):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            built.append({tensor.device.type for tensor in self.parameters()})

    # 1,024 experts of 16 x 65,536 in two layers each: gigabytes.
    edit(folder, bundle.CONFIG, nested("hasd.moe.hidden", 65_536))
    edit(folder, bundle.CONFIG, nested("hasd.moe.experts", 1024))
    with pytest.raises(BundleError, match="misshapen"):
        Watched.from_pretrained(folder)
    assert built == [{"meta"}]


def test_a_header_that_claims_more_than_its_file_has(folder):
    content = (folder / bundle.WEIGHTS).read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["decoder.output.bias"] |= {"shape": [2**40], "data_offsets": [0, 2**42]}
    for claimed in (json.dumps(header).encode(), None):
        head = (2**60).to_bytes(8, "little") if claimed is None else len(claimed).to_bytes(8, "little") + claimed
        (folder / bundle.WEIGHTS).write_bytes(head + content[end:])
        with pytest.raises(BundleError, match=r"model\.safetensors: cannot be read"):
            HiSem.from_pretrained(folder)


def test_other_files_of_a_bundle_are_not_looked_at(folder, tmp_path):
    marker = tmp_path / "executed"
    code = f"open({str(marker)!r}, 'w')\n"
    for name in ("__init__.py", "modeling.py", "hisem.py", "sitecustomize.py", "conftest.py"):
        (folder / name).write_text(code)
    torch.save(Payload(marker), folder / "optimizer.pkl")
    before = bundle.digest(folder)
    HiSem.from_pretrained(folder)
    assert bundle.digest(folder) == before
    assert not marker.exists()


@pytest.mark.parametrize(
    ("key", "value"), [("mean", [0.0, 0.0, 0.0]), ("image_size", [224, 224]), ("interpolation", "nearest"), ("new", 1)]
)
def test_preprocessing_edited(folder, key, value):
    edit(folder, bundle.PREPROCESSING, lambda data: data.update({key: value}))
    with pytest.raises(BundleError, match=r"preprocessing\.json: .* does not match the backbone's"):
        HiSem.from_pretrained(folder)
