"""PSNR and two definitions of SSIM, as pure functions of batches of images.

Both SSIMs are the mean over a map of the local statistics under a window (means μ, variances σ², covariance σ_xy):

    SSIM = (2 μ_x μ_y + C1) (2 σ_xy + C2) / ((μ_x² + μ_y² + C1) (σ_x² + σ_y² + C2))

The map is summed by `metrics.ssim_map`, which is fast but hard to read. `tests/oracles.py` computes the same two scores
pixel by pixel, straight from the formula; the tests compare both.
"""

import math

import torch
from torch import Tensor

from sr_lightning.color import check_float, quantize
from sr_lightning.errors import InputError
from sr_lightning.metrics.ssim_map import sum_ssim_map

WINDOW = 11  # Wang 2004: an 11x11 Gaussian, sigma 1.5
_GAUSSIAN = torch.exp(-((torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2) ** 2) / (2 * 1.5**2))
WANG_TAPS: list[float] = (_GAUSSIAN / _GAUSSIAN.sum()).tolist()


@torch.no_grad()
def psnr(sr: Tensor, hr: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, -10 log10 of its mean squared error.

    The squared error is accumulated in float64. No gradient: this is a metric, not a loss.

    Args:
        sr: Images in [0, 1], (N, C, H, W).
        hr: Ground truth in [0, 1], same shape.

    Returns:
        (N,) dB, float64; inf for identical images. The score of a data set is the mean of these values; the PSNR of
        the error pooled over all images is a different, lower number.

    Raises:
        InputError: (a ValueError) Shapes differ or are not (N, C, H, W), or the images are not floating point.

    Example:
        >>> hr = torch.zeros(1, 1, 8, 8)
        >>> f"{psnr(hr + 0.1, hr).item():.2f} dB"
        '20.00 dB'
    """
    sr, hr = _check_pair(sr, hr)
    return -10 * (sr - hr).square_().mean(dim=(1, 2, 3), dtype=torch.float64).log10()


def capped_psnr(sr: Tensor, hr: Tensor) -> Tensor:
    """`psnr`, at most that of an error of one grey level in one pixel: identical images have a finite score, too.

    Example:
        >>> hr = torch.zeros(1, 1, 8, 8)
        >>> f"{capped_psnr(hr, hr).item():.2f} dB"
        '66.19 dB'
    """
    return psnr(sr, hr).clamp(max=10 * math.log10(255**2 * hr.shape[-2] * hr.shape[-1]))


@torch.no_grad()
def ssim(sr: Tensor, hr: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) of each image.

    Window: 11x11 Gaussian with sigma 1.5, only where it fits into the image. K1 = 0.01, K2 = 0.03. No gradient: this is
    a metric, not a loss. Computed in the dtype of the images, at least float32, which differs by less than 2e-7 from
    float64 on bicubic Set5 and BSD100. The slow and readable version is `wang` in tests/oracles.py.

    Args:
        sr: Images in [0, 1], (N, C, H, W), at least 11 pixels high and wide.
        hr: Ground truth in [0, 1], same shape.

    Returns:
        (N,), float64: the mean over the map and the channels.

    Raises:
        InputError: (a ValueError) As in `psnr`, or an image is smaller than the window.

    Example:
        >>> hr = torch.linspace(0, 1, 256).view(1, 1, 16, 16)
        >>> ssim(hr, hr).item()
        1.0
        >>> round(ssim(1 - hr, hr).item(), 3)
        -0.826
    """
    sr, hr = _check_pair(sr, hr)
    height, width = sr.shape[2:]
    if min(height, width) < WINDOW:
        raise InputError(f"SSIM needs at least {WINDOW} x {WINDOW} pixels, got {height} x {width}")
    total = sum_ssim_map(sr, hr, 2 * hr.mean(dim=(2, 3)), WANG_TAPS)
    return (total / ((height - WINDOW + 1) * (width - WINDOW + 1))).mean(dim=1)


@torch.no_grad()
def ssim_daala(sr: Tensor, hr: Tensor) -> Tensor:
    """Structural similarity as defined by the tool dump_ssim of Xiph's video codec Daala, which the SRGAN paper used.

    Differences from Wang's: both images are rounded to 8 bits; the Gaussian grows with the image, sigma = height * 1.5
    / 256, with weights rounded to 1/256 and cut off where they round to 0; the map covers the whole image, with windows
    truncated at its border and weighted by the share that is left of them.

    No gradient: this is a metric, not a loss. Precision as in `ssim`. The slow and readable version is `daala` in
    tests/oracles.py.

    Args:
        sr: Images in [0, 1], (N, C, H, W). Shave borders before: sigma depends on the height.
        hr: Ground truth in [0, 1], same shape.

    Returns:
        (N,), float64: the mean over the channels.

    Raises:
        InputError: (a ValueError) As in `psnr`.

    Example:
        >>> hr = torch.linspace(0, 1, 256).view(1, 1, 16, 16)
        >>> ssim_daala(hr, hr).item()
        1.0
    """
    sr, hr = (quantize(image) for image in _check_pair(sr, hr))
    height, width = sr.shape[2:]
    taps = daala_taps(height * 1.5 / 256, min(height, width))
    reach = len(taps) // 2
    rows, columns = (_covered(size, taps).to(sr) for size in (height, width))
    grey = 2 * hr.mean(dim=(2, 3))
    sr, hr = (_pad_with_grey(image, grey / 2, reach) for image in (sr, hr))
    total = sum_ssim_map(sr, hr, grey, taps, rows[:, None] * columns)
    return (total / (rows.sum(dtype=torch.float64) * columns.sum(dtype=torch.float64))).mean(dim=1)


def daala_taps(sigma: float, longest: int) -> list[float]:
    """Daala's Gaussian in 256ths, summing to exactly 1; it extends less than `longest` pixels to each side."""
    least = math.sqrt(math.pi / 2) * sigma / 256
    reach = 0 if least >= 1 else math.floor(sigma * math.sqrt(-2 * math.log(least)))
    reach = min(reach, longest - 1)
    peak = 256 / (math.sqrt(2 * math.pi) * sigma)
    side = [math.floor(peak * math.exp(-0.5 * (k / sigma) ** 2) + 0.5) for k in range(reach, 0, -1)]
    return [tap / 256 for tap in (*side, 256 - 2 * sum(side), *reversed(side))]


def _covered(size: int, taps: list[float]) -> Tensor:
    """Sum of the taps that lie inside a line of `size` pixels, for the window centred at each: (size,) float64."""
    reach = len(taps) // 2
    line = torch.zeros(size + 2 * reach, dtype=torch.float64)
    line[reach : reach + size] = 1
    return line.unfold(0, len(taps), 1).mul(torch.tensor(taps, dtype=torch.float64)).sum(dim=1)


def _pad_with_grey(image: Tensor, grey: Tensor, reach: int) -> Tensor:
    """Pad each plane with its grey level (N, C): (N, C, H, W) -> (N, C, H + 2*reach, W + 2*reach)."""
    height, width = image.shape[2:]
    padded = grey[..., None, None].repeat(1, 1, height + 2 * reach, width + 2 * reach)
    padded[..., reach : reach + height, reach : reach + width] = image
    return padded


def _check_pair(sr: Tensor, hr: Tensor) -> tuple[Tensor, Tensor]:
    """Check both images and convert them to one dtype, at least float32."""
    if sr.shape != hr.shape or sr.ndim != 4:
        raise InputError(f"sr {tuple(sr.shape)} and hr {tuple(hr.shape)} must have one shape, (N, C, H, W)")
    sr, hr = at_least_float32(sr), at_least_float32(hr)
    dtype = torch.promote_types(sr.dtype, hr.dtype)
    return sr.to(dtype), hr.to(dtype)


def at_least_float32(image: Tensor) -> Tensor:
    """Convert half precision to float32; float32 and float64 are returned unchanged."""
    check_float(image)
    return image.to(torch.promote_types(image.dtype, torch.float32))
