"""Fine detail, agreement with LR and LPIPS: compared with known spectra, other code and a stand-in torchvision."""

import logging
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from sr_lightning.color import quantize, rgb_to_y
from sr_lightning.degradations import crop_to_multiple, downscale, upscale
from sr_lightning.errors import InputError
from sr_lightning.images.files import read_image
from sr_lightning.inference import with_chroma
from sr_lightning.metrics.extra import (
    MEASURES,
    consistency,
    fine_power,
    lpips,
    lpips_network,
    select_measures,
    spectrum,
)
from sr_lightning.metrics.measure_names import MEASURE_NAMES
from sr_lightning.metrics.protocol import Protocol
from tests.oracles import blurred, photos_of, unit


def wave(fx: float, fy: float, size: tuple[int, int] = (96, 120)) -> torch.Tensor:
    """A cosine, (1, 1, H, W); frequencies relative to Nyquist's, 0 to 1."""
    y, x = np.mgrid[: size[0], : size[1]]
    return torch.from_numpy(np.cos(np.pi * (fx * x + fy * y)))[None, None]


def ratio(image: torch.Tensor, other: torch.Tensor) -> float:
    return (fine_power(image) / fine_power(other)).item()


# --- the spectrum


def test_fine_power_matches_a_slow_fourier_transform():
    for height, width in ((24, 31), (25, 32), (17, 17)):
        image = np.random.default_rng(0).random((height, width))
        y, x = np.mgrid[:height, :width]
        window = np.sin(np.pi * y / height) ** 2 * np.sin(np.pi * x / width) ** 2
        windowed = (image - (image * window).sum() / window.sum()) * window
        expected = 0.0
        for v in range(height):
            for u in range(width):
                ring = 2 * np.hypot(min(v, height - v) / height, min(u, width - u) / width)
                if 0.5 < ring <= 1:
                    expected += abs((windowed * np.exp(-2j * np.pi * (u * x / width + v * y / height))).sum()) ** 2
        assert fine_power(torch.from_numpy(image)[None, None]).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("direction", [(1, 0), (0, 1), (0.6, 0.8), (0.6, -0.8)])
def test_only_waves_from_half_nyquist_to_nyquist_count_in_every_direction(direction):
    unit_of_power = fine_power(wave(0.75, 0)).item()
    powers = [fine_power(wave(*(f * part for part in direction))).item() for f in (0.1, 0.4, 0.6, 0.75, 0.9)]
    assert [power / unit_of_power for power in powers] == pytest.approx([0, 0, 1, 1, 1], abs=1e-3)
    corner = 1.15 * torch.tensor(direction)
    if corner.abs().max() < 0.95:  # beyond the circle, within the square
        assert fine_power(wave(*corner.tolist())).item() < 1e-3 * unit_of_power


def test_half_the_amplitude_has_a_quarter_of_the_power_and_coarse_waves_and_brightness_are_ignored():
    fine, coarse = wave(0.7, 0.1), wave(0.2, 0.1)
    assert ratio(0.5 * fine, fine) == pytest.approx(0.25, rel=1e-9)
    assert ratio(fine + 3 * coarse + 7, fine + 1) == pytest.approx(1, rel=1e-3)


def test_the_power_of_white_noise_is_proportional_to_its_variance_and_a_ramp_leaks_little():
    noise = torch.randn(1, 1, 200, 160, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    other = torch.randn(1, 1, 200, 160, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert ratio(2 * other, noise) == pytest.approx(4, rel=0.05)
    assert ratio(torch.linspace(0, 1, 160, dtype=torch.float64).expand(1, 1, 200, 160), noise) < 1e-9


def test_spectrum_is_1_for_a_copy_near_0_for_a_blurred_photo_and_above_1_for_a_noisy_one():
    levels = photos_of("astronaut", "camera")
    hr, lr = unit(levels), unit(downscale(levels, 4))
    noisy = hr + 0.05 * torch.randn(hr.shape, generator=torch.Generator().manual_seed(0))
    assert spectrum(hr, lr, hr, 4, Protocol()).tolist() == pytest.approx([1, 1], abs=1e-6)
    assert max(spectrum(unit(blurred(levels)), lr, hr, 4, Protocol()).tolist()) < 0.02
    assert min(spectrum(noisy, lr, hr, 4, Protocol()).tolist()) > 1.2


@pytest.mark.parametrize("channel", ["y", "rgb"])
def test_spectrum_uses_8_bit_luma_without_the_border(channel):
    colour = torch.rand(1, 3, 40, 48, generator=torch.Generator().manual_seed(0))
    hr = quantize(colour.flip(-1))
    inner = [rgb_to_y(image[..., 3:-3, 3:-3]) for image in (quantize(colour), hr)]
    result = spectrum(colour, colour[..., ::3, ::3], hr, 3, Protocol(channel=channel)).item()
    assert result == pytest.approx(ratio(*inner), rel=1e-5)


def test_spectrum_of_a_flat_hr_is_nan():
    flat = torch.full((1, 1, 40, 40), 0.5)
    assert spectrum(flat, flat, flat, 2, Protocol()).isnan().item()


# --- consistency


def test_hr_is_consistent_with_matlabs_lr_files(data_root):
    folder = data_root / "benchmark" / "Set5"
    for scale in (2, 3, 4):
        for path in sorted((folder / "HR").iterdir()):
            hr = crop_to_multiple(unit(torch.from_numpy(read_image(path)))[None], scale)
            lr = unit(torch.from_numpy(read_image(folder / "LR_bicubic" / f"X{scale}" / f"{path.stem}x{scale}.png")))[
                None
            ]
            height, width = (side - 4 for side in lr.shape[2:])  # without two pixels on each side
            equal = 10 * math.log10(255**2 * height * width)  # one grey level in one pixel
            assert consistency(hr, lr, hr, scale, Protocol(channel="rgb")).item() == equal
            assert consistency(hr + 1 / 255, lr, hr, scale, Protocol(channel="rgb")).item() < 49


def test_consistency_measures_a_change_of_brightness_and_ignores_fine_noise():
    hr = photos_of("camera", size=240)
    hr = hr.clamp(25, 205)  # leaves room, nothing is clamped
    lr, hr = unit(downscale(hr, 4)), unit(hr)
    assert consistency(hr + 10 / 255, lr, hr, 4, Protocol()).item() == pytest.approx(20 * np.log10(25.5), abs=0.1)
    checks = 10 / 255 * wave(1, 1, (240, 240)).float()
    assert consistency(hr + checks, lr, hr, 4, Protocol()).item() > 50


def test_consistency_compares_luma_or_rgb_with_a_colour_lr():
    lr = quantize(torch.rand(1, 3, 20, 24, generator=torch.Generator().manual_seed(0)))
    sr = upscale(lr, 2) + 0.02
    inner = np.s_[..., 2:-2, 2:-2]

    def reduced(image):
        return unit(downscale((255 * quantize(image)).round().byte(), 2))

    def decibels(a, b):
        return -10 * np.log10(((a - b)[inner].double() ** 2).mean().item())

    luma = rgb_to_y(sr)
    for image, protocol, pair in (
        (sr, Protocol(), (rgb_to_y(reduced(sr)), rgb_to_y(lr))),
        (sr, Protocol(channel="rgb"), (reduced(sr), lr)),
        (luma, Protocol(), (reduced(luma), rgb_to_y(lr))),
        (luma, Protocol(quantize=False), (downscale(luma, 2), rgb_to_y(lr))),
    ):
        assert consistency(image, lr, sr, 2, protocol).item() == pytest.approx(decibels(*pair), abs=1e-3)


# --- LPIPS


@pytest.fixture
def no_lpips():
    """Clear the cached LPIPS network before and after the test."""
    lpips_network.cache_clear()
    yield
    lpips_network.cache_clear()


@pytest.fixture
def stand_in(monkeypatch, no_lpips):
    """A stand-in for torchvision with an AlexNet of random weights, used by the real torchmetrics."""
    from torchmetrics.functional.image import lpips as functional
    from torchmetrics.image import lpip

    def alexnet(weights):
        torch.manual_seed(0)
        sizes = [(3, 64, 11, 4, 2), None, (64, 192, 5, 1, 2), None]
        sizes += [(192, 384, 3, 1, 1), (384, 256, 3, 1, 1), (256, 256, 3, 1, 1)]
        layers = []
        for size in sizes:
            layers += [nn.Conv2d(*size), nn.ReLU()] if size else [nn.MaxPool2d(3, 2)]
        return SimpleNamespace(features=nn.Sequential(*layers))

    models = SimpleNamespace(alexnet=alexnet, AlexNet_Weights=SimpleNamespace(DEFAULT="random"))
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(models=models))
    for module in (lpip, functional):
        monkeypatch.setattr(module, "_TORCHVISION_AVAILABLE", True)


def test_lpips_is_left_out_without_torchvision_and_one_warning_says_what_to_install(monkeypatch, no_lpips, caplog):
    from torchmetrics.image import lpip

    monkeypatch.setattr(lpip, "_TORCHVISION_AVAILABLE", False)
    with caplog.at_level(logging.INFO):
        assert list(select_measures(["lpips", "spectrum"])) == ["spectrum"]
        assert list(select_measures(["lpips"])) == []
    assert len(caplog.records) == 1
    assert "lpips is left out" in caplog.text and "pip install torchvision" in caplog.text


@pytest.mark.parametrize("error", [RuntimeError("operator torchvision::nms does not exist"), OSError("no internet")])
def test_a_broken_torchvision_leaves_lpips_out_and_its_error_is_logged(monkeypatch, no_lpips, caplog, error):
    from torchmetrics.image import lpip

    def broken(*args, **kwargs):
        raise error

    monkeypatch.setattr(lpip, "LearnedPerceptualImagePatchSimilarity", broken)
    assert select_measures(["lpips"]) == {}
    assert str(error) in caplog.text


def test_lpips_is_0_for_a_copy_and_grows_with_noise(stand_in):
    assert list(select_measures(["lpips"])) == ["lpips"]
    hr = photos_of("astronaut", "camera", size=96)
    lr, hr = unit(downscale(hr, 4)), unit(hr)
    noise = torch.randn(hr.shape, generator=torch.Generator().manual_seed(0))
    slightly, much = (lpips(hr + part * noise, lr, hr, 4, Protocol()) for part in (0.03, 0.3))
    assert lpips(hr, lr, hr, 4, Protocol()).tolist() == [0, 0]
    assert ((slightly > 0) & (slightly < much)).all()
    assert lpips(hr[:1] + 0.3 * noise[:1], lr[:1], hr[:1], 4, Protocol()).item() == pytest.approx(
        much[0].item(), abs=1e-6
    )


def test_lpips_uses_8_bit_rgb_without_the_border_and_adds_bicubic_chroma_to_luma(stand_in):
    hr = quantize(torch.rand(1, 3, 48, 56, generator=torch.Generator().manual_seed(0)))
    lr = downscale(hr, 2)
    luma = rgb_to_y(upscale(lr, 2))
    colours = quantize(with_chroma(luma, lr, 2))[..., 2:-2, 2:-2]
    expected = lpips_network().net(2 * colours - 1, 2 * hr[..., 2:-2, 2:-2] - 1).item()
    assert lpips(luma, lr, hr, 2, Protocol()).item() == pytest.approx(expected, abs=1e-6)


def test_an_image_too_small_for_lpips_is_refused_with_its_size():
    image = torch.zeros(1, 3, 34, 60)
    with pytest.raises(InputError, match="lpips needs 31 x 31 pixels, there are 30 x 56"):
        lpips(image, image, image, 2, Protocol())


# --- names


@pytest.mark.parametrize(
    ("names", "wrong"),
    [(["spectrum", "vmaf", "niqe"], "unknown vmaf, niqe"), ("vmaf, niqe", "'vmaf, niqe' is not a list")],
)
def test_unknown_measures_are_refused_with_the_valid_ones(names, wrong):
    with pytest.raises(
        InputError, match=f"measures: {wrong}; give a list of spectrum, consistency, lpips, dists, fid, such as"
    ):
        select_measures(names)
    assert select_measures(None) == select_measures([]) == {}


def test_the_checked_names_are_those_of_the_measures():
    assert tuple(MEASURES) == MEASURE_NAMES


def test_names_are_checked_without_importing_torch():
    code = "import sys; from sr_lightning.metrics.measure_names import check_measures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


@pytest.mark.slow
def test_the_package_does_not_import_torchmetrics():
    code = "import sys; from sr_lightning.metrics import score; sys.exit('torchmetrics' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
