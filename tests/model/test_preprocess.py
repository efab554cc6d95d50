"""Pixels to the backbone's input against PIL and timm's own transform (section 1)."""

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image

from hisem.model.preprocess import Preprocess, two_passes

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def picture(height: int, width: int, seed: int = 0):
    """Smooth shapes, hard edges and noise, uint8 H W 3."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    smooth = 127 + 100 * np.sin(x / 9 + seed) * np.cos(y / 7)
    edges = np.where((x // 13 + y // 11) % 2, 255.0, 0.0)
    noise = random.uniform(0, 255, (height, width))
    return np.stack([smooth, edges, noise], axis=-1).round().astype(np.uint8)


def tensor(images):
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def grey_levels(normalised):
    return (normalised * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)) * 255


SIZES = [
    ((256, 256), (224, 224)),
    ((100, 60), (48, 32)),
    ((64, 64), (224, 224)),
    ((90, 128), (64, 112)),
    ((64, 40), (64, 96)),
    ((512, 17), (128, 17)),
]


def check(levels, expected, passes):
    """PIL works in fixed point: one pass may round one grey level apart, and the next may double that."""
    difference = (levels - expected.float()).abs()
    assert float(difference.max()) <= passes
    assert float((difference == 0).float().mean()) > 0.97
    assert float((difference <= 1).float().mean()) > 0.9995


def passes_of(source, target):
    return sum(one != other for one, other in zip(source, target, strict=True))


@pytest.mark.parametrize(("source", "target"), SIZES)
@pytest.mark.parametrize("contiguous", [True, False])
def test_resize_equals_pil(source, target, contiguous):
    images = [picture(source[0], source[1], seed) for seed in range(2)]
    batch = tensor(images).contiguous() if contiguous else tensor(images)
    found = grey_levels(Preprocess(target, MEAN, STD)(batch))
    torch.testing.assert_close(found, found.round(), rtol=0, atol=1e-3)  # rounded before it is scaled
    expected = tensor([np.array(Image.fromarray(i).resize(target[::-1], Image.Resampling.BICUBIC)) for i in images])
    check(found.round(), expected, passes_of(source, target))
    # What devices that cannot resample uint8 compute.
    elsewhere = two_passes(batch, target)
    assert elsewhere.equal(elsewhere.round())
    check(elsewhere, expected, passes_of(source, target))


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_equals_timms_transform(source, target):
    """timm's evaluation transform, squashing straight to the input size with no crop."""
    transform = timm.data.create_transform(
        (3, *target), interpolation="bicubic", crop_mode="squash", crop_pct=1.0, mean=MEAN, std=STD
    )
    image = picture(*source)
    found = grey_levels(Preprocess(target, MEAN, STD)(tensor([image]))[0])
    expected = grey_levels(transform(Image.fromarray(image)))
    torch.testing.assert_close(expected, expected.round(), rtol=0, atol=1e-3)
    check(found.round(), expected.round(), passes_of(source, target))


@pytest.mark.parametrize(
    ("mean", "std"), [(MEAN, STD), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5,) * 3,) * 2]
)
def test_no_resize_of_the_right_size(mean, std, monkeypatch):
    module = Preprocess((40, 56), mean, std)
    monkeypatch.setattr(torch.nn.functional, "interpolate", None)
    image = picture(40, 56)
    found = module(tensor([image]))
    assert found.dtype == torch.float32
    expected = (image / 255 - np.array(mean)) / np.array(std)  # float64
    np.testing.assert_allclose(found[0].permute(1, 2, 0).numpy(), expected, atol=1e-6)


def test_every_grey_level():
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    found = Preprocess((16, 16), MEAN, STD)(ramp)
    torch.testing.assert_close(grey_levels(found), ramp.float(), rtol=0, atol=1e-3)


def test_flat_images_stay_flat():
    for level in (0, 1, 127, 254, 255):
        found = grey_levels(Preprocess((30, 50), MEAN, STD)(torch.full((1, 3, 64, 48), level, dtype=torch.uint8)))
        torch.testing.assert_close(found, torch.full_like(found, level), rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_only_uint8(dtype):
    with pytest.raises(TypeError, match="must be uint8"):
        Preprocess((8, 8), MEAN, STD)(torch.zeros(1, 3, 8, 8, dtype=dtype))


def test_nothing_of_it_is_stored(tiny):
    assert [name for name in tiny().state_dict() if name.startswith("preprocess")] == []
