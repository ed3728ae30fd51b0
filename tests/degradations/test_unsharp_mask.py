"""Sharpened images against SciPy's Gaussian filter, in the formula of Real-ESRGAN's code."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from sr_lightning.degradations import sharpen


def blurred(image):
    return ndimage.gaussian_filter(image, 8.0, radius=25, mode="mirror", axes=(1, 2))


def by_scipy(image, weight):
    """Sharpen (C, H, W) in float64."""
    residual = image - blurred(image)
    mask = blurred((np.abs(residual) * 255 > 10).astype(float))
    return mask * np.clip(image + weight * residual, 0, 1) + (1 - mask) * image


def photo(*shape, seed=0):
    """Smooth shapes with noise, multiples of 1/255."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=shape), (0, *[3] * (len(shape) - 1)))
    image = 0.5 + 0.2 * smooth / smooth.std() + 0.02 * rng.normal(size=shape)
    return torch.from_numpy(np.round(255 * image.clip(0, 1))).float() / 255


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 40), (8, 300), (1, 5)])
@pytest.mark.parametrize("weight", [0.5, 2])
def test_result_is_that_of_scipy_to_a_level(height, width, weight):
    image = photo(3, height, width)
    found = sharpen(image[None], weight)[0].double().numpy() * 255
    np.testing.assert_allclose(found, np.round(found), atol=1e-4)
    wanted = by_scipy(image.double().numpy(), weight) * 255
    assert np.abs(found - wanted).max() < 0.5 + 1e-4
    if height > 8:
        assert np.abs(wanted - 255 * image.numpy()).max() > 5


def test_result_does_not_depend_on_the_batch():
    images = torch.stack([photo(3, 48, 64, seed=i) for i in range(7)])
    together = sharpen(images, 0.5)
    for i in range(7):
        assert torch.equal(sharpen(images[i : i + 1], 0.5)[0], together[i])


def test_flat_regions_and_their_noise_do_not_change():
    levels = torch.randint(100, 110, (1, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    assert torch.equal(sharpen(levels / 255, 0.5).mul(255).round().long(), levels)
