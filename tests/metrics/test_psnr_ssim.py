import numpy as np
import pytest
import skimage
import torch
import torchmetrics.functional.image as torchmetrics_image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from sr_lightning.errors import InputError
from sr_lightning.metrics import ssim_map
from sr_lightning.metrics.psnr_ssim import WANG_TAPS, daala_taps, psnr, ssim, ssim_daala
from sr_lightning.metrics.ssim_map import sum_ssim_strip
from tests.helpers import slow_except
from tests.oracles import blurred, by_channel, daala, photos_of, unit, wang


@pytest.fixture(scope="module")
def photos() -> tuple[torch.Tensor, torch.Tensor]:
    """(sr, hr), each (3, 1, 512, 512) uint8: a portrait, a scene with a large flat sky, a fine texture."""
    hr = photos_of("astronaut", "camera", "gravel")
    return blurred(hr), hr


# --- PSNR


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_psnr_of_each_image_matches_scikit_image(photos, dtype, error):
    expected = by_channel(lambda x, y: peak_signal_noise_ratio(y / 255, x / 255, data_range=1), *photos)
    result = psnr(unit(photos[0], dtype), unit(photos[1], dtype))
    assert result.dtype == torch.float64
    assert result.tolist() == pytest.approx(expected, abs=error)


def test_psnr_matches_torchmetrics_per_image_not_pooled(photos):
    sr, hr = unit(photos[0]), unit(photos[1])
    expected = [torchmetrics_image.peak_signal_noise_ratio(sr[i], hr[i], data_range=1.0).item() for i in range(len(sr))]
    assert psnr(sr, hr).tolist() == pytest.approx(expected, abs=1e-5)
    pooled = torchmetrics_image.peak_signal_noise_ratio(sr, hr, data_range=1.0).item()
    assert psnr(sr, hr).mean().item() > pooled + 0.1


def test_psnr_of_a_difference_of_one_grey_level_is_48_13_db():
    hr = torch.full((2, 3, 16, 16), 100 / 255)
    assert psnr(hr + 1 / 255, hr).tolist() == pytest.approx([20 * np.log10(255)] * 2, abs=1e-4)


def test_psnr_averages_the_error_over_all_channels():
    hr = torch.zeros(1, 3, 12, 12)
    sr = hr.clone()
    sr[:, 0] = 0.3
    assert psnr(sr, hr).item() == pytest.approx(-10 * np.log10(0.09 / 3), abs=1e-5)


def test_identical_images_have_infinite_psnr_and_ssim_one(photos):
    hr = unit(photos[1])
    assert psnr(hr, hr).tolist() == [float("inf")] * 3
    assert ssim(hr, hr).tolist() == [1.0] * 3


# --- SSIM

PRECISIONS = [(torch.float32, 1e-6), (torch.float64, 1e-12)]


@pytest.mark.parametrize(("dtype", "error"), slow_except(PRECISIONS, PRECISIONS[0]))
def test_ssim_matches_wangs_definition(photos, dtype, error):
    expected = by_channel(lambda x, y: wang(x / 255, y / 255), *photos)
    assert ssim(unit(photos[0], dtype), unit(photos[1], dtype)).tolist() == pytest.approx(expected, abs=error)


def test_ssim_matches_scikit_image_over_the_valid_area(photos):
    def valid_mean(x: np.ndarray, y: np.ndarray) -> float:
        settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        return structural_similarity(x / 255, y / 255, data_range=1, full=True, **settings)[1][5:-5, 5:-5].mean()

    expected = by_channel(valid_mean, *photos)
    assert ssim(unit(photos[0]), unit(photos[1])).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("shape", [(11, 11), (11, 40), (40, 11), (12, 13), (700, 131), (37, 5000)])
def test_ssim_is_correct_for_every_shape(shape):
    random = np.random.default_rng(0)
    y = random.random(shape).astype(np.float32)
    x = np.clip(y + 0.1 * random.standard_normal(shape), 0, 1).astype(np.float32)
    assert ssim(*(torch.from_numpy(t)[None, None] for t in (x, y))).item() == pytest.approx(wang(x, y), abs=1e-6)


@pytest.mark.parametrize("grey", [0.004, 0.5, 0.996])
@pytest.mark.parametrize("noise", [0.0005, 0.004, 0.05])
def test_ssim_of_nearly_flat_images_is_accurate(grey, noise):
    random = np.random.default_rng(0)
    x, y = (np.float32(np.clip(grey + noise * random.standard_normal((64, 64)), 0, 1)) for _ in range(2))
    assert ssim(*(torch.from_numpy(t)[None, None] for t in (x, y))).item() == pytest.approx(wang(x, y), abs=1e-6)


def test_ssim_of_very_different_images_is_correct():
    x, y = np.zeros((32, 32), np.float32), np.ones((32, 32), np.float32)
    stripes = np.float32(np.arange(32) % 8 < 4) * y
    for first, second in ((x, y), (stripes, 1 - stripes), (x, stripes)):
        value = ssim(*(torch.from_numpy(t)[None, None] for t in (first, second))).item()
        assert value == pytest.approx(wang(first, second), abs=1e-6)


def test_ssim_averages_channels_and_scores_each_image_of_a_batch():
    hr = torch.from_numpy(np.stack([skimage.data.astronaut()[:96, :80], skimage.data.coffee()[:96, :80]]))
    hr = hr.permute(0, 3, 1, 2)  # (2, 3, 96, 80), channels last
    sr = blurred(hr)
    expected = by_channel(lambda x, y: wang(x / 255, y / 255), sr, hr)
    assert ssim(unit(sr), unit(hr)).tolist() == pytest.approx(expected, abs=1e-6)


def test_summing_all_planes_at_once_equals_summing_them_one_by_one(photos):
    sr, hr = (unit(image[:, :, :100, :90]) for image in photos)
    apart = ssim(sr, hr)
    grey = 2 * hr.mean(dim=(1, 2, 3))
    together = sum_ssim_strip(sr[:, 0], hr[:, 0], grey, WANG_TAPS) / (90 * 80)
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-7)


@pytest.mark.parametrize("num_taps", [1, 3, 11, 35, 53])
@pytest.mark.parametrize(("rows", "width"), [(8, 61), (64, 60), (24, 133)])
def test_matrix_products_and_slices_blur_alike(num_taps, rows, width):
    random = np.random.default_rng(0)
    maps = torch.from_numpy(random.random((1, rows + num_taps, 4, width), dtype=np.float32))
    taps = random.random(num_taps).tolist()
    expected = ssim_map._blur(maps.double(), taps)
    assert expected.shape == (1, rows, 4, width)
    assert ssim_map._products_are_exact(maps)
    blurred = ssim_map._blur(maps.clone(), taps)
    fits = slice(0, width - num_taps + 1)
    torch.testing.assert_close(blurred[..., fits], expected[..., fits].float(), rtol=1e-5, atol=0)


def test_ssim_is_unchanged_by_reduced_matmul_precision(photos):
    sr, hr = (unit(image) for image in photos)
    expected = ssim(sr, hr)
    try:
        torch.set_float32_matmul_precision("medium")
        assert not ssim_map._products_are_exact(sr)
        torch.testing.assert_close(ssim(sr, hr), expected, rtol=0, atol=1e-9)
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("function", [psnr, ssim, ssim_daala])
def test_gpu_scores_match_cpu_scores(photos, function):
    sr, hr = (unit(image) for image in photos)
    torch.testing.assert_close(function(sr.cuda(), hr.cuda()).cpu(), function(sr, hr), rtol=0, atol=1e-6)


def test_ssim_is_unchanged_by_autocast_and_accepts_images_that_require_gradients(photos):
    sr, hr = unit(photos[0][:1]), unit(photos[1][:1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ssim(sr.requires_grad_(), hr), ssim(sr.detach(), hr))


@pytest.mark.parametrize("function", [psnr, ssim, ssim_daala])
def test_invalid_pairs_of_images_are_refused(function):
    with pytest.raises(InputError, match=r"sr \(1, 1, 20, 20\) and hr \(1, 1, 20, 21\) must have one shape"):
        function(torch.zeros(1, 1, 20, 20), torch.zeros(1, 1, 20, 21))
    with pytest.raises(InputError, match=r"must have one shape, \(N, C, H, W\)"):
        function(torch.zeros(1, 20, 20), torch.zeros(1, 20, 20))
    with pytest.raises(InputError, match=r"torch\.uint8: divide 8-bit values by 255"):
        function(torch.zeros(1, 1, 20, 20), torch.zeros(1, 1, 20, 20, dtype=torch.uint8))


def test_an_image_smaller_than_the_window_is_refused_with_its_size():
    with pytest.raises(ValueError, match="at least 11 x 11 pixels, got 10 x 30"):
        ssim(torch.zeros(1, 1, 10, 30), torch.zeros(1, 1, 10, 30))


# --- Daala's SSIM


@pytest.mark.parametrize("shape", [(100, 60), (40, 130), (257, 24), (700, 12), (20, 5), (9, 70), (1, 1)])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_daalas_ssim_matches_its_definition_for_every_shape(shape, dtype, error):
    hr = photos_of("astronaut", size=shape[0] + 100)[:, :, 100:]
    hr = np.resize(hr[0, 0].numpy(), shape)
    sr = np.clip(hr * 0.9 + np.random.default_rng(0).normal(3, 6, shape), 0, 255).astype(np.uint8)
    result = ssim_daala(*(unit(torch.from_numpy(image)[None, None], dtype) for image in (sr, hr)))
    assert result.dtype == torch.float64
    assert result.item() == pytest.approx(daala(sr, hr), abs=error)


def test_daalas_window_at_sigma_1_5_matches_a_manual_calculation():
    # 256 / (1.5 sqrt(2 pi)) = 68.09, then 54.5, 28.0, 9.2, 1.9; the middle tap is 256 minus the others
    assert [256 * tap for tap in daala_taps(1.5, 100)] == [2, 9, 28, 55, 68, 55, 28, 9, 2]
    assert [256 * tap for tap in daala_taps(1.5, 3)] == [28, 55, 90, 55, 28]


def test_daalas_ssim_rounds_to_8_bits_and_scores_images_separately(photos):
    sr, hr = unit(photos[0][..., :90]), unit(photos[1][..., :90])
    together = ssim_daala(sr + 0.4 / 255, hr - 0.3 / 255)
    assert together.tolist() == [ssim_daala(sr[[i]], hr[[i]]).item() for i in range(3)]
    assert ssim_daala(hr, hr).tolist() == [1.0] * 3
