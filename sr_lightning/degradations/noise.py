"""Gaussian and Poisson noise, independent for each colour or equal for all three.

The noise of a pixel is a function of the image's key and the pixel's position, by SplitMix64 (Steele, Lea, Flood, "Fast
splittable pseudorandom number generators", 2014). It is the same on every device and in every batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import ClassVar

import torch
from torch import Tensor

from sr_lightning.degradations.padded_batch import (
    PaddedBatch,
    apply_where,
    check,
    is_probability,
    is_range,
    luma,
    per_image,
    scale_to_range,
    shift_right,
    to_levels,
    uniform,
)

PHOTONS = 256  # mean number of photons of a white pixel, for Poisson noise of scale 1
_MAX_PHOTONS = PHOTONS + 12 * math.isqrt(PHOTONS)  # exceeded with a probability below 1e-25
_EDGES = 1 << 11  # intervals of a level, see `_search`


def splitmix64(key: Tensor, channels: int, height: int, width: int) -> Tensor:
    """Compute 64 random bits for every position and key.

    The bits at a position depend only on the key, channel, row and column, not on the size of the result.

    Args:
        key: (N,) int64.
        channels: Number of channels.
        height: Number of rows, up to 2^20.
        width: Number of columns, up to 2^20.

    Returns:
        (N, channels, height, width) int64.
    """
    c, y, x = (torch.arange(length, device=key.device) for length in (channels, height, width))
    position = (c[:, None, None] << 40) + (y[:, None] << 20) + x
    bits = key.reshape(-1, 1, 1, 1) + (position + 1) * _as_int64(0x9E3779B97F4A7C15)
    bits ^= shift_right(bits, 30)
    bits *= _as_int64(0xBF58476D1CE4E5B9)
    bits ^= shift_right(bits, 27)
    bits *= _as_int64(0x94D049BB133111EB)
    return bits ^ shift_right(bits, 31)


def standard_normal(key: Tensor, channels: int, height: int, width: int) -> Tensor:
    """Standard normal numbers by the Box-Muller transform: (N, channels, height, width) float64."""
    bits = splitmix64(key, channels, height, width)
    first, second = shift_right(bits, 32), bits & 0xFFFFFFFF
    radius = first.double().add_(0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
    return second.double().mul_(2 * math.pi * 2.0**-32).cos_().mul_(radius)


def gaussian_noise(images: Tensor, sigma: Tensor, key: Tensor, gray: bool | Tensor = False) -> Tensor:
    """Add Gaussian noise.

    Args:
        images: (N, 3, H, W) float64 in [0, 1].
        sigma: (N, 1, 1, 1) standard deviation in 8-bit levels.
        key: (N,) int64 seed of each image.
        gray: Add the same noise to all three colours; (N, 1, 1, 1): of which images.

    Returns:
        (N, 3, H, W), clamped to [0, 1].
    """
    noise = standard_normal(key, 1 if gray is True else 3, *images.shape[2:])
    if isinstance(gray, Tensor):
        noise = torch.where(gray, noise[:, :1], noise)
    return (images + noise * (sigma / 255)).clamp_(0, 1)


def poisson_noise(images: Tensor, scale: Tensor, key: Tensor, gray: bool | Tensor = False) -> Tensor:
    """Add scaled Poisson (shot) noise; a white pixel has `PHOTONS` photons on average.

    Difference from Real-ESRGAN's code: there the number of photons is the power of two above the number of distinct
    levels in the image, which is 256 for most images.

    Args:
        images: (N, 3, H, W) float64 in [0, 1].
        scale: (N, 1, 1, 1) factor of the noise.
        key: (N,) int64 seed of each image.
        gray: Add the noise of the image's luma to all three colours; (N, 1, 1, 1): to those of which images.

    Returns:
        (N, 3, H, W), clamped to [0, 1].
    """
    levels = to_levels(luma(images)[:, None] if gray is True else images)
    u = uniform(splitmix64(key, *levels.shape[1:]))
    if isinstance(gray, Tensor):
        levels, u = torch.where(gray, to_levels(luma(images)[:, None]), levels), torch.where(gray, u[:, :1], u)
    noise = _photons(levels, u, reads_values=isinstance(gray, bool)) / PHOTONS - levels / 255
    return (images + noise * scale).clamp_(0, 1)


@dataclass(frozen=True)
class Noise:
    """Random step: Gaussian or Poisson noise.

    Attributes:
        gaussian: Probability of Gaussian rather than Poisson noise.
        sigma: Range of the standard deviation of Gaussian noise in 8-bit levels.
        poisson_scale: Range of the factor of Poisson noise.
        gray: Probability of equal noise for all three colours.
        probability: Probability that noise is added.

    Raises:
        InputError: One or more settings are invalid; the message lists all of them.

    Example:
        >>> batch = PaddedBatch(torch.full((1, 3, 64, 64), 0.5, dtype=torch.float64), torch.tensor([[64, 64]]))
        >>> random_bits = torch.zeros(1, Noise.num_draws, dtype=torch.int64)
        >>> noisy = Noise(gaussian=1, sigma=(10, 10), gray=0)(batch, random_bits, lr_size=(32, 32))
        >>> round(noisy.images.std().item() * 255)
        10
    """

    gaussian: float = 0.5
    sigma: Sequence[float] = (1.0, 30.0)
    poisson_scale: Sequence[float] = (0.05, 3.0)
    gray: float = 0.4
    probability: float = 1.0
    num_draws: ClassVar[int] = 5

    def __post_init__(self) -> None:
        wrong = {}
        for key in ("gaussian", "gray", "probability"):
            wrong[f"{key}={getattr(self, key)}: give a number from 0 to 1"] = not is_probability(getattr(self, key))
        for key in ("sigma", "poisson_scale"):
            wrong[f"{key}={getattr(self, key)}: give [low, high] from 0 to 255"] = not is_range(
                getattr(self, key), 0, 255
            )
        check("noise", wrong)

    def __call__(self, batch: PaddedBatch, random_bits: Tensor, lr_size: tuple[int, int]) -> PaddedBatch:
        images, u = batch.images, uniform(random_bits)
        applied, gaussian, gray = u[:, 0] < self.probability, u[:, 1] < self.gaussian, u[:, 3] < self.gray
        key = per_image(random_bits[:, 4], images, 1)
        for kind, bounds, add in (
            (applied & gaussian, self.sigma, gaussian_noise),
            (applied & ~gaussian, self.poisson_scale, poisson_noise),
        ):
            strength = per_image(scale_to_range(u[:, 2], bounds), images)
            if batch.fixed_shapes:
                images = apply_where(kind, images, add, strength, key, per_image(gray, images), fixed_shapes=True)
            else:
                images = apply_where(kind & ~gray, images, add, strength, key)
                images = apply_where(kind & gray, images, partial(add, gray=True), strength, key)
        return batch._replace(images=images)


def _as_int64(constant: int) -> int:
    """Reinterpret an unsigned 64-bit constant above 2^63 as int64."""
    return constant - (1 << 64)


def _photons(levels: Tensor, u: Tensor, reads_values: bool) -> Tensor:
    """Poisson numbers with mean PHOTONS * levels / 255, by inverting the distribution at u in [0, 1)."""
    return _search((levels + u).flatten(), reads_values).view_as(levels) - levels * (_MAX_PHOTONS + 1)


def _search(values: Tensor, reads_values: bool = True) -> Tensor:
    """Count the entries of the cumulative table up to each value: (n,) in [0, 256] -> (n,) integers.

    On a CPU a binary search takes ten times as long as reading the results at the two edges of a value's interval. It
    is needed only where these differ.
    """
    table = _cumulative_table(values.device)
    if values.device.type != "cpu" or not reads_values:
        return torch.searchsorted(table, values, right=True)
    edges = _results_at_edges()
    edge = (values * _EDGES).long()
    found = edges.index_select(0, edge)
    (unsure,) = found.ne(edges.index_select(0, edge + 1)).nonzero(as_tuple=True)
    found[unsure] = torch.searchsorted(table, values[unsure], right=True, out_int32=True)
    return found


@cache
@torch.inference_mode(False)
def _results_at_edges() -> Tensor:
    """Results of the search at all multiples of 1/_EDGES up to 256 and one more: (256 * _EDGES + 2,) int32."""
    edges = torch.arange(256 * _EDGES + 2, dtype=torch.float64) / _EDGES
    return torch.searchsorted(_cumulative_table(edges.device), edges, right=True, out_int32=True)


@cache  # without a limit: a CUDA graph reads the tensor at its address
@torch.inference_mode(False)  # the cached tensor must also work outside inference mode
def _cumulative_table(device: torch.device) -> Tensor:
    """Ascending table of level + P(at most n photons) for all 256 levels and n = 0 ... _MAX_PHOTONS."""
    level, n = torch.arange(256, dtype=torch.float64)[:, None], torch.arange(_MAX_PHOTONS + 1, dtype=torch.float64)
    mean = level * (PHOTONS / 255)
    log_probability = torch.special.xlogy(n, mean) - mean - torch.lgamma(n + 1)
    cumulated = log_probability.exp().cumsum(dim=1).clamp_(max=1)
    cumulated[:, -1] = 1
    return (level + cumulated).flatten().to(device)
