"""Blur compared with SciPy's filters, kernels with their formulas and spectra."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage, special

from sr_lightning.degradations import Blur
from sr_lightning.degradations.blur import KERNELS, blur, cut, radial_kernels, sinc_kernels
from sr_lightning.degradations.padded_batch import PaddedBatch, as_int64
from sr_lightning.errors import InputError


def float64(*values):
    return torch.tensor(values, dtype=torch.float64)


def random_bits(count, seed=0):
    return as_int64(np.random.Philox(key=seed).random_raw(count * Blur.num_draws)).view(count, -1)


def radial(sigma, angle, beta, is_plateau=False):
    """A normalised kernel of 21 x 21."""
    kernels = radial_kernels(torch.tensor([is_plateau]), *map(float64, (sigma, angle, beta)))
    return cut(kernels, torch.tensor([21]))[0]


def sinc(cutoff, size=21):
    return cut(sinc_kernels(float64(cutoff * math.pi)), torch.tensor([size]))[0]


@pytest.mark.parametrize("sizes", [[(40, 33), (25, 50)], [(11, 11), (1, 3)], [(6, 2)]])
def test_each_image_is_filtered_with_its_own_kernel_and_mirrored_at_its_own_border(sizes):
    rng = np.random.default_rng(0)
    height, width = np.max(sizes, axis=0)
    images = torch.full((len(sizes), 3, height, width), 1e3, dtype=torch.float64)  # the padding may have any value
    kernels = rng.standard_normal((len(sizes), 21, 21))
    for image, (h, w) in zip(images, sizes, strict=True):
        image[:, :h, :w] = torch.from_numpy(rng.random((3, h, w)))
    blurred = blur(images, torch.from_numpy(kernels), torch.tensor(sizes))
    for i, (h, w) in enumerate(sizes):
        for c in range(3):
            expected = ndimage.correlate(images[i, c, :h, :w].numpy(), kernels[i], mode="mirror")
            np.testing.assert_allclose(blurred[i, c, :h, :w], expected, atol=1e-10)


def test_isotropic_gaussians_match_scipy_at_every_angle():
    impulse = np.zeros((21, 21))
    impulse[10, 10] = 1
    kernels = [radial([1.7, 1.7], angle, 1) for angle in (0, 1)]
    np.testing.assert_allclose(
        kernels[0], ndimage.gaussian_filter(impulse, 1.7, radius=10, mode="constant"), atol=1e-12
    )
    np.testing.assert_allclose(kernels[1], kernels[0], atol=1e-12)


def test_an_anisotropic_gaussian_has_the_given_covariance():
    angle, (long, short) = 0.6, (2.5, 0.9)
    kernel = radial([long, short], angle, 1).numpy()
    at = np.arange(-10, 11)
    xx, yy = (kernel.sum(0) * at**2).sum(), (kernel.sum(1) * at**2).sum()
    xy = (kernel * np.outer(at, at)).sum()
    axis = np.array([math.cos(angle), math.sin(angle)])
    cov = np.array([[xx, xy], [xy, yy]])
    assert axis @ cov @ axis == pytest.approx(long**2, rel=0.01)
    across = np.array([-axis[1], axis[0]])
    assert across @ cov @ across == pytest.approx(short**2, rel=0.01)
    assert axis @ cov @ across == pytest.approx(0, abs=0.01)


def test_beta_flattens_gaussians_and_plateaus_fall_to_half_at_one_sigma():
    gaussian, flat = (radial([3, 3], 0, beta)[10] for beta in (1, 4))
    assert gaussian[11] / gaussian[10] == pytest.approx(math.exp(-1 / 18))
    assert flat[11] / flat[10] == pytest.approx(math.exp(-0.5 / 9**4))
    plateau = radial([3, 3], 0, 2, is_plateau=True)[10]
    assert plateau[13] / plateau[10] == pytest.approx(0.5)
    assert plateau[16] / plateau[10] == pytest.approx(1 / (1 + 4**2))


@pytest.mark.parametrize("cutoff", [0.4, 0.7])
def test_the_sinc_passes_frequencies_below_its_cutoff_and_rings(cutoff):
    kernel = sinc(cutoff)
    spectrum = torch.fft.fft2(kernel, s=(64, 64)).abs()
    along = np.arange(33) / 32  # the highest frequency is 1
    assert (spectrum[0, :33][along < cutoff - 0.12] - 1).abs().max() < 0.15
    assert spectrum[0, :33][along > cutoff + 0.12].max() < 0.15
    assert kernel.min() < -1e-3
    radius = math.hypot(2, 3)
    ratio = special.j1(cutoff * math.pi * radius) / radius / (cutoff * math.pi / 2)
    assert kernel[12, 13] / kernel[10, 10] == pytest.approx(ratio)


@pytest.mark.parametrize("kind", KERNELS)
def test_kernels_of_every_kind_are_normalised_symmetric_and_of_odd_size(kind):
    kernels = Blur({kind: 1}, sigma=(2, 3)).draw(random_bits(64))
    np.testing.assert_allclose(kernels.sum((1, 2)), 1, atol=1e-12)
    np.testing.assert_allclose(kernels, kernels.flip(1, 2), atol=1e-12)
    if not kind.endswith("aniso"):
        np.testing.assert_allclose(kernels, kernels.mT, atol=1e-12)
    else:
        assert (kernels - kernels.mT).abs().amax((1, 2)).median() > 1e-4
    sides = {int((kernel.abs().sum(0) > 0).sum()) for kernel in kernels}
    assert sides == {7, 9, 11, 13, 15, 17, 19, 21}


def test_kinds_are_drawn_by_their_weights_in_any_order():
    draws = random_bits(2000)
    sizes = {"size": (21, 21)}
    mixed = Blur({"sinc": 0.1, "iso": 0.9}, **sizes).draw(draws)
    assert torch.equal(mixed, Blur({"iso": 9, "sinc": 1}, **sizes).draw(draws))
    ringing = (mixed.amin((1, 2)) < -1e-9).double().mean()
    assert 0.07 < ringing < 0.13  # 0.1 +- 0.007, and a sinc with a high cutoff hardly rings


def test_the_cutoff_of_narrow_sincs_is_at_least_a_third():
    def lowest(size):
        kernels = Blur({"sinc": 1}, cutoff=(0.2, 0.2), size=(size, size)).draw(random_bits(1))
        return kernels[0, 10, 10]

    assert lowest(11) == pytest.approx(sinc(1 / 3, 11)[10, 10])
    assert lowest(13) == pytest.approx(sinc(1 / 5, 13)[10, 10])


def test_blur_is_skipped_with_the_given_probability():
    images = torch.rand(400, 3, 4, 4, dtype=torch.float64)
    batch = PaddedBatch(images, torch.full((400, 2), 4))
    blurred = Blur({"iso": 1}, sigma=(1, 1), probability=0.8)(batch, random_bits(400), None).images
    same = (blurred == images).flatten(1).all(dim=1)
    assert 40 < same.sum() < 120  # 80 +- 8


def test_all_invalid_settings_are_named():
    with pytest.raises(InputError) as caught:
        Blur({"box": 1}, sigma=(3, 0.2), plateau_beta=(1.5, 2), cutoff=(0, 1), size=(7, 22), probability=1.5)
    message = str(caught.value)
    for part in ("degradation, blur:", "kernels={'box': 1}", "sigma=(3, 0.2)", "plateau_beta=(1.5, 2)"):
        assert part in message
    for part in ("cutoff=(0, 1)", "size=(7, 22)", "probability=1.5"):
        assert part in message
    assert "generalized_beta" not in message
