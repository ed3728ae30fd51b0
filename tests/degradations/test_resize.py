"""Resizing compared with torch's interpolation, image by image."""

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from sr_lightning.degradations import Resize
from sr_lightning.degradations.padded_batch import PaddedBatch, as_int64
from sr_lightning.degradations.resize import METHODS, resize
from sr_lightning.errors import InputError

OLD = [(40, 33), (25, 50), (40, 50), (7, 9), (30, 30), (12, 12)]
NEW = [(17, 40), (25, 50), (80, 3), (1, 1), (30, 11), (12, 12)]


def expected(image, size, method):
    settings = {} if method == "area" else {"align_corners": False}
    return interpolate(image[None], size=tuple(map(int, size)), mode=method, **settings)[0]


@pytest.mark.parametrize("method", METHODS)
def test_images_of_different_sizes_are_resized_like_by_torch(method):
    images = torch.rand(len(OLD), 3, 40, 50, dtype=torch.float64)
    which = torch.full((len(OLD),), METHODS.index(method))
    resized = resize(images, torch.tensor(OLD), torch.tensor(NEW), which)
    assert resized.shape == (len(OLD), 3, 80, 50)
    for image, result, (h, w), new in zip(images, resized, OLD, NEW, strict=True):
        torch.testing.assert_close(
            result[:, : new[0], : new[1]], expected(image[:, :h, :w], new, method), atol=1e-12, rtol=0
        )


@pytest.mark.parametrize("new", [(32, 48), (8, 8), (20, 31)])
def test_methods_can_be_mixed_and_images_do_not_depend_on_the_batch(new):
    images = torch.rand(3, 3, 20, 31, dtype=torch.float64)
    old, new, methods = torch.tensor([(20, 31)] * 3), torch.tensor([new] * 3), torch.arange(3)
    together = resize(images, old, new, methods)
    for i in range(3):
        assert torch.equal(together[i : i + 1], resize(images[i : i + 1], old[:1], new[:1], methods[i : i + 1]))
        torch.testing.assert_close(together[i], expected(images[i], new[0], METHODS[i]), atol=1e-12, rtol=0)


def test_factors_follow_their_probabilities_and_stay_in_their_range():
    random_bits = as_int64(np.random.Philox(key=1).random_raw(900)).view(300, 3)
    batch = PaddedBatch(torch.rand(300, 1, 40, 20, dtype=torch.float64), torch.tensor([(40, 20)] * 300))
    sizes = Resize(up=0.2, down=0.7, factor=(0.5, 1.5))(batch, random_bits, None).sizes
    heights = sizes[:, 0]
    assert heights.min() == 20 and heights.max() == 60
    assert (sizes[:, 1] - heights / 2).abs().max() <= 0.5
    assert 35 < (heights > 40).sum() < 85  # 60 +- 7
    assert 170 < (heights < 40).sum() < 240  # 210 +- 8


def test_a_factor_relative_to_lr_gives_lrs_size_from_any_size():
    batch = PaddedBatch(torch.rand(2, 3, 30, 30, dtype=torch.float64), torch.tensor([(30, 21), (5, 30)]))
    after = Resize(relative_to="lr")(batch, torch.arange(6).view(2, 3) << 61, (8, 7))
    assert after.sizes.tolist() == [[8, 7], [8, 7]] and after.images.shape == (2, 3, 8, 7)


@pytest.mark.parametrize("relative_to", ["input", "lr"])
@pytest.mark.parametrize("low", [0.15, 0.41, 1])
def test_fixed_shapes_hold_every_size_and_number_of_source_pixels(relative_to, low):
    """The smallest factor included, of which 0 is the random number."""
    images, sizes = torch.rand(300, 1, 33, 33, dtype=torch.float64), torch.stack([torch.arange(300) % 33 + 1] * 2, 1)
    random_bits = torch.randint(-(1 << 63), (1 << 63) - 1, (300, 3))
    random_bits[:150, :2] = 0
    resize = Resize(up=0.2 * (low < 1), down=1 - 0.2 * (low < 1), factor=(low, 1.5), relative_to=relative_to)
    usual = resize(PaddedBatch(images, sizes), random_bits, (12, 12))
    fixed = resize(PaddedBatch(images, sizes, fixed_shapes=True), random_bits, (12, 12))
    assert torch.equal(usual.sizes, fixed.sizes) and fixed.fixed_shapes
    for one, other, (height, width) in zip(usual.images, fixed.images, usual.sizes, strict=True):
        torch.testing.assert_close(one[:, :height, :width], other[:, :height, :width], atol=1e-12, rtol=0)
        assert other[:, :height, :width].shape == (1, height, width)


def test_all_invalid_settings_are_named():
    with pytest.raises(InputError) as caught:
        Resize(up=0.7, down=0.7, factor=(1.1, 1.5), relative_to="hr")
    for part in ("up=0.7, down=0.7: ", "factor=(1.1, 1.5): ", "relative_to=hr: choose input or lr"):
        assert part in str(caught.value)
