"""Gaussian and Poisson noise, for each colour or for all of them alike.

The noise of a pixel is a function of its image's key and of its place, by SplitMix64 (Steele, Lea, Flood, "Fast
splittable pseudorandom number generators", 2014): the same on every device, and in whatever company the image is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sr_lightning.degradations.padded_batch import (
    Canvas,
    between,
    check,
    is_probability,
    is_range,
    luma,
    per_image,
    some,
    to_levels,
    uniform,
)

PHOTONS = 256  # that white stands for in Poisson noise of scale 1
_MOST = PHOTONS + 12 * math.isqrt(PHOTONS)  # photons of a white pixel, but for less than 1 in 10^25


def random_bits(key: Tensor, channels: int, height: int, width: int) -> Tensor:
    """64 random bits for every place.

    Args:
        key: (N,) int64.
        channels: Places per pixel.
        height: Up to 2^20, as the width.
        width: What is drawn at a place does not depend on any of the three.

    Returns:
        (N, channels, height, width) int64.
    """
    c, y, x = (torch.arange(length, device=key.device) for length in (channels, height, width))
    place = (c[:, None, None] << 40) + (y[:, None] << 20) + x
    bits = key.reshape(-1, 1, 1, 1) + (place + 1) * _signed(0x9E3779B97F4A7C15)
    bits ^= _shifted(bits, 30)
    bits *= _signed(0xBF58476D1CE4E5B9)
    bits ^= _shifted(bits, 27)
    bits *= _signed(0x94D049BB133111EB)
    return bits ^ _shifted(bits, 31)


def standard_normal(key: Tensor, channels: int, height: int, width: int) -> Tensor:
    """Normal numbers of mean 0 and variance 1 by Box and Muller: (N, channels, height, width) float64."""
    bits = random_bits(key, channels, height, width)
    first, second = _shifted(bits, 32), bits & 0xFFFFFFFF
    radius = first.double().add_(0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
    return second.double().mul_(2 * math.pi * 2.0**-32).cos_().mul_(radius)


def gaussian_noise(images: Tensor, sigma: Tensor, key: Tensor, gray: bool = False) -> Tensor:
    """Add normal noise.

    Args:
        images: (N, 3, H, W) float64 in [0, 1].
        sigma: (N, 1, 1, 1) standard deviation in 8-bit levels.
        key: (N,) int64.
        gray: The same noise for all three colours.

    Returns:
        (N, 3, H, W), clamped to [0, 1].
    """
    noise = standard_normal(key, 1 if gray else 3, *images.shape[2:])
    return (images + noise * (sigma / 255)).clamp_(0, 1)


def poisson_noise(images: Tensor, scale: Tensor, key: Tensor, gray: bool = False) -> Tensor:
    """Add the noise of counting photons, `PHOTONS` of them in a white pixel, magnified.

    Real-ESRGAN's code lets the number of photons depend on the image: the power of two above the number of different
    levels in it, which is 256 for most.

    Args:
        images: (N, 3, H, W) float64 in [0, 1].
        scale: (N, 1, 1, 1) factor of the noise.
        key: (N,) int64.
        gray: The noise of the image's luma, for all three colours.

    Returns:
        (N, 3, H, W), clamped to [0, 1].
    """
    levels = to_levels(luma(images)[:, None] if gray else images)
    u = _shifted(random_bits(key, *levels.shape[1:]), 11).double().mul_(2.0**-53)
    noise = _photons(levels, u) / PHOTONS - levels / 255
    return (images + noise * scale).clamp_(0, 1)


@dataclass(frozen=True)
class Noise:
    """Adds Gaussian or Poisson noise.

    Attributes:
        gaussian: Probability of Gaussian noise; else it is Poisson.
        sigma: Range of the Gaussian's standard deviation in 8-bit levels.
        poisson_scale: Range of the factor of Poisson noise.
        gray: Probability of noise that is the same for all three colours.
        probability: Of being applied at all.
    """

    gaussian: float = 0.5
    sigma: Sequence[float] = (1.0, 30.0)
    poisson_scale: Sequence[float] = (0.05, 3.0)
    gray: float = 0.4
    probability: float = 1.0
    words: ClassVar[int] = 5

    def __post_init__(self) -> None:
        wrong = {}
        for key in ("gaussian", "gray", "probability"):
            wrong[f"{key}={getattr(self, key)}: from 0 to 1"] = not is_probability(getattr(self, key))
        for key in ("sigma", "poisson_scale"):
            wrong[f"{key}={getattr(self, key)}: two ordered numbers from 0 to 255"] = not is_range(
                getattr(self, key), 0, 255
            )
        check("noise", wrong)

    def __call__(self, canvas: Canvas, words: np.ndarray, lr_sizes: np.ndarray) -> Canvas:
        images, u = canvas.images, uniform(words)
        applied, gaussian, gray = u[:, 0] < self.probability, u[:, 1] < self.gaussian, u[:, 3] < self.gray
        key = per_image(words[:, 4].view(np.int64), images, 1)
        for kind, bounds, add in (
            (gaussian, self.sigma, gaussian_noise),
            (~gaussian, self.poisson_scale, poisson_noise),
        ):
            strength = per_image(between(u[:, 2], bounds), images)
            images = some(applied & kind & ~gray, images, add, strength, key)
            images = some(applied & kind & gray, images, partial(add, gray=True), strength, key)
        return canvas._replace(images=images)


def _signed(word: int) -> int:
    """A 64-bit word as int64."""
    return word - (1 << 64)


def _shifted(bits: Tensor, count: int) -> Tensor:
    """To the right, zeros coming in from the left."""
    return (bits >> count) & ((1 << 64 - count) - 1)


def _photons(levels: Tensor, u: Tensor) -> Tensor:
    """Poisson numbers of mean PHOTONS * levels / 255, by inversion of u in [0, 1)."""
    table = _distribution(levels.device)
    found = torch.searchsorted(table, (levels + u).flatten(), right=True).view_as(levels)
    return found - levels * (_MOST + 1)


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # what is kept here must serve later calls outside of it, too
def _distribution(device: torch.device) -> Tensor:
    """Sums level + P(at most n photons), of all 256 levels and n = 0 ... _MOST, one after the other: ascending."""
    level, n = torch.arange(256, dtype=torch.float64)[:, None], torch.arange(_MOST + 1, dtype=torch.float64)
    mean = level * (PHOTONS / 255)
    log_probability = torch.special.xlogy(n, mean) - mean - torch.lgamma(n + 1)
    cumulated = log_probability.exp().cumsum(dim=1).clamp_(max=1)
    cumulated[:, -1] = 1
    return (level + cumulated).flatten().to(device)
