"""Slow, readable and independent definitions of the metrics, and test images."""

from math import exp, floor, log, pi, sqrt

import numpy as np
import skimage
import torch
from scipy.signal import convolve2d

from sr_lightning.degradations import downscale, upscale


def wang(x: np.ndarray, y: np.ndarray) -> float:
    """SSIM of two planes in [0, 1] as in Wang's ssim_index.m: 2-D Gaussian, valid area, float64."""
    axis = np.arange(11) - 5
    window = np.exp(-(axis[:, None] ** 2 + axis**2) / (2 * 1.5**2))
    window /= window.sum()
    x, y = x.astype(np.float64), y.astype(np.float64)
    mx, my, xx, yy, xy = (convolve2d(t, window, mode="valid") for t in (x, y, x * x, y * y, x * y))
    c1, c2 = 0.01**2, 0.03**2
    quality = (2 * mx * my + c1) * (2 * (xy - mx * my) + c2)
    return float(np.mean(quality / ((mx**2 + my**2 + c1) * (xx - mx**2 + yy - my**2 + c2))))


def daala(x: np.ndarray, y: np.ndarray) -> float:
    """SSIM of two planes of 8-bit integers as in Daala's dump_ssim: pixel by pixel, 2-D window, float64."""
    height, width = x.shape
    sigma = height * 1.5 / 256
    cut = sqrt(pi / 2) * sigma / 256
    reach = min(0 if cut >= 1 else floor(sigma * sqrt(-2 * log(cut))), min(x.shape) - 1)
    side = [floor(0.5 + 256 * exp(-k * k / (2 * sigma * sigma)) / (sigma * sqrt(2 * pi))) for k in range(1, reach + 1)]
    taps = np.array([*side[::-1], 256 - 2 * sum(side), *side], np.float64)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    total = weights = 0.0
    for row in range(height):
        for column in range(width):
            rows = np.arange(max(0, row - reach), min(height, row + reach + 1))
            columns = np.arange(max(0, column - reach), min(width, column + reach + 1))
            window = np.outer(taps[rows - row + reach], taps[columns - column + reach])
            weight = window.sum()
            window /= weight
            a, b = (plane[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float64) for plane in (x, y))
            ma, mb = (window * a).sum(), (window * b).sum()
            va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
            covariance = (window * (a - ma) * (b - mb)).sum()
            quality = (2 * ma * mb + c1) * (2 * covariance + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
            total, weights = total + weight * quality, weights + weight
    return total / weights


def by_channel(function, sr, hr) -> list[float]:
    """Apply a function of two planes to each image and channel of (N, C, H, W), and average over channels."""
    return [
        float(np.mean([function(np.asarray(a), np.asarray(b)) for a, b in zip(x, y, strict=True)]))
        for x, y in zip(sr, hr, strict=True)
    ]


def photos_of(*names: str, size: int = 512) -> torch.Tensor:
    """Load scikit-image's photos: (N, 1, size, size), uint8 luma or green channel."""
    images = [getattr(skimage.data, name)()[:size, :size] for name in names]
    return torch.from_numpy(np.stack([image if image.ndim == 2 else image[..., 1] for image in images]))[:, None]


def blurred(image: torch.Tensor, scale: int = 4) -> torch.Tensor:
    """Downscale and upscale a uint8 image by bicubic."""
    return upscale(downscale(image, scale), scale)


def unit(image: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return image.to(dtype) / 255
