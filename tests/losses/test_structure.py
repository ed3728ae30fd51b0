"""MS-SSIM against torchmetrics, and the artifact map of LDL against a loop over pixels."""

import pytest
import torch
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as ms_ssim
from torchmetrics.functional.image.ssim import _ssim_update

from sr_lightning.errors import InputError
from sr_lightning.losses import LDL, MSSSIM, WeightedSum
from sr_lightning.losses.structure import MS_SSIM_WEIGHTS


def noisy(size, channels=3, noise=0.1):
    """Return smooth images (2, channels, *size) in [0, 1] and the same with noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, channels, 6, 6, generator=generator)
    hr = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1)
    return (hr + noise * torch.randn(hr.shape, generator=generator)).clamp(0, 1), hr


def oracle(sr, hr, weights):
    """Compute MS-SSIM by the SSIM of torchmetrics, whose mean includes a padded border; only the inside counts here."""
    result = 1.0
    for scale, weight in enumerate(weights):
        contrast = _ssim_update(sr, hr, data_range=1.0, return_contrast_sensitivity=True)[1]
        _, ssim = _ssim_update(sr, hr, data_range=1.0, return_full_image=True)
        inside = ssim[..., 5:-5, 5:-5].mean((1, 2, 3))
        result *= (inside if scale == len(weights) - 1 else contrast) ** weight
        sr, hr = (torch.nn.functional.avg_pool2d(image, 2) for image in (sr, hr))
    return result.mean()


@pytest.mark.parametrize(
    ("size", "scales", "channels"), [((176, 190), 5, 3), ((44, 64), 3, 1), ((22, 23), 2, 3), ((11, 13), 1, 3)]
)
def test_ms_ssim_is_that_of_torchmetrics_inside_the_image(size, scales, channels):
    sr, hr = noisy(size, channels)
    weights = MS_SSIM_WEIGHTS[:scales]
    expected = oracle(sr, hr, weights)
    torch.testing.assert_close(1 - MSSSIM(weights)(sr, hr), expected, atol=1e-5, rtol=0)
    assert 0.1 < expected < 0.999
    torch.testing.assert_close(expected, ms_ssim(sr, hr, data_range=1.0, betas=weights), atol=2e-3, rtol=0)


def test_ms_ssim_of_equal_images_is_zero_and_of_opposite_ones_has_a_finite_gradient():
    _, hr = noisy((44, 44))
    loss = MSSSIM(MS_SSIM_WEIGHTS[:3])
    assert loss(hr, hr).item() == pytest.approx(0, abs=1e-5)
    sr = (1 - hr).requires_grad_()
    loss(sr, hr).backward()
    assert sr.grad.isfinite().all()


def test_ms_ssim_falls_when_noise_is_removed_along_its_gradient():
    sr, hr = noisy((48, 48))
    loss = MSSSIM(MS_SSIM_WEIGHTS[:3])
    sr.requires_grad_()
    before = loss(sr, hr)
    before.backward()
    assert loss(sr - sr.grad, hr) < before


@pytest.mark.parametrize("weights", [[], [0.5, 0], [-1]])
def test_ms_ssim_refuses_weights_that_are_not_above_0(weights):
    with pytest.raises(InputError, match="weights="):
        MSSSIM(weights)


def test_ms_ssim_names_the_size_that_its_scales_need():
    with pytest.raises(InputError, match="images of 96x160, its 5 scales need 176x176"):
        MSSSIM()(torch.rand(1, 3, 96, 160), torch.rand(1, 3, 96, 160))


def test_the_artifact_map_is_that_of_the_paper():
    sr, hr = noisy((9, 10))
    found = LDL(window=3).artifact_map(sr, hr)
    for n in range(2):
        error = (hr[n] - sr[n]).abs().sum(0)
        for y, x in ((4, 5), (1, 8), (7, 1)):  # windows inside the image
            inside = error[y - 1 : y + 2, x - 1 : x + 2]
            torch.testing.assert_close(found[n, 0, y, x], error.var() ** 0.2 * inside.var())
        top = torch.stack([error[1, 1:4], error[0, 1:4], error[1, 1:4]])  # mirrored at the border
        torch.testing.assert_close(found[n, 0, 0, 2], error.var() ** 0.2 * top.var())
    torch.testing.assert_close(LDL(window=3)(sr, hr), (found * (sr - hr)).abs().mean())


def test_ldl_has_a_finite_gradient_at_equal_images_and_refuses_even_windows():
    _, hr = noisy((16, 16))
    sr = hr.clone().requires_grad_()
    loss = LDL()(sr, hr)
    loss.backward()
    assert loss == 0 and sr.grad.isfinite().all()
    with pytest.raises(InputError, match="window=4"):
        LDL(window=4)


def test_refined_artifact_map_is_zero_where_the_average_is_worse():
    sr, hr = noisy((24, 20))
    averaged = hr + (sr - hr).flip(-2)
    averaged[..., 10:] = sr[..., 10:]  # equally good: the weight stays
    loss = LDL(refined=True)
    usual, refined = LDL().artifact_map(sr, hr), loss.artifact_map(sr, hr, averaged)
    worse = (averaged - hr).abs().sum(1, keepdim=True) > (sr - hr).abs().sum(1, keepdim=True)
    assert 0 < worse.float().mean() < 0.5 and not worse[..., 10:].any()
    torch.testing.assert_close(refined, usual.masked_fill(worse, 0))
    torch.testing.assert_close(loss(sr, hr, averaged), (refined * (sr - hr)).abs().mean())
    assert torch.equal(loss(sr, hr, None), LDL()(sr, hr))


def test_a_sum_passes_the_average_to_the_losses_that_need_it():
    sr, hr = noisy((24, 20))
    averaged = torch.rand_like(sr)
    both = WeightedSum({"ldl": LDL(refined=True), "pixel": torch.nn.L1Loss()}, {"ldl": 2.0, "pixel": 1.0})
    assert both.needs_average and not WeightedSum({"ldl": LDL()}, {"ldl": 1.0}).needs_average
    expected = {"ldl": 2 * LDL(refined=True)(sr, hr, averaged), "pixel": (sr - hr).abs().mean()}
    torch.testing.assert_close(both.terms(sr, hr, averaged), expected)
    torch.testing.assert_close(both(sr, hr, averaged), sum(expected.values()))
