"""Blur with Gaussian, generalised Gaussian, plateau-shaped and sinc kernels.

Shapes and their parameters: Wang et al., "Real-ESRGAN" (2021, arXiv 2107.10833), sections 3.1 and 3.3.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sr_lightning.degradations.padded_batch import (
    PaddedBatch,
    apply_where,
    check,
    gather_pixels,
    is_probability,
    is_range,
    per_image,
    sample_index,
    scale_to_range,
    uniform,
)

RADIUS = 10  # kernels are stored as 21 x 21, smaller ones padded with zeros
KERNELS = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso", "sinc")


def gaussian_kernels(sigma: Tensor, angle: Tensor, beta: Tensor, size: Tensor) -> Tensor:
    """Generalised Gaussians exp(-q^beta / 2), q = x'S^-1 x.

    S is the covariance with standard deviations `sigma` along axes rotated by `angle`.

    Args:
        sigma: (N, 2) float64, pixels; two equal values give an isotropic kernel.
        angle: (N,) radians.
        beta: (N,); 1 gives a Gaussian, less heavier tails, more a flatter top.
        size: (N,) odd, up to 21: the kernel is 0 outside a square of this side.

    Returns:
        (N, 21, 21) float64, summing to 1.
    """
    return _cut(torch.exp(_squared_distance(sigma, angle).pow(beta[:, None, None]).mul(-0.5)), size)


def plateau_kernels(sigma: Tensor, angle: Tensor, beta: Tensor, size: Tensor) -> Tensor:
    """Plateau-shaped kernels 1 / (1 + q^beta); arguments and result as in `gaussian_kernels`."""
    return _cut(1 / (1 + _squared_distance(sigma, angle).pow(beta[:, None, None])), size)


def sinc_kernels(cutoff: Tensor, size: Tensor) -> Tensor:
    """Truncated ideal low-pass filters with a circular pass band; they cause the ringing of sharpened images.

    Args:
        cutoff: (N,) float64, radians per pixel, up to pi.
        size: As in `gaussian_kernels`.

    Returns:
        (N, 21, 21) float64, summing to 1.
    """
    x, y = _grid()
    radius, cutoff = torch.hypot(x, y), cutoff[:, None, None]
    kernels = cutoff * torch.special.bessel_j1(cutoff * radius) / (2 * math.pi * radius.clamp(min=1))
    kernels[:, RADIUS, RADIUS] = cutoff[:, 0, 0] ** 2 / (4 * math.pi)  # the limit at 0
    return _cut(kernels, size)


def blur(images: Tensor, kernels: Tensor, sizes: np.ndarray) -> Tensor:
    """Filter each image with its own kernel; borders are mirrored without repeating the edge pixel.

    Args:
        images: (N, C, H, W) float64.
        kernels: (N, 21, 21).
        sizes: (N, 2) height and width of each image, see `PaddedBatch`.

    Returns:
        (N, C, H, W): sum over (i, j) of kernel[10 + i, 10 + j] * image[y + i, x + j].
    """
    height, width = images.shape[-2:]
    lengths = [_fast_fft_length(side + 2 * RADIUS) for side in (height, width)]
    reach = [torch.arange(-RADIUS, length - RADIUS, device=images.device) for length in lengths]
    last = per_image(sizes - 1, images, 2)
    padded = gather_pixels(images, *(mirrored(at, last[:, i, None]) for i, at in enumerate(reach)))
    spectrum = torch.fft.rfft2(padded)
    spectrum *= torch.fft.rfft2(kernels.to(images.device)[:, None], s=lengths).conj()
    return torch.fft.irfft2(spectrum, s=lengths)[..., :height, :width]


@dataclass(frozen=True)
class Blur:
    """Random step: blur with a random kernel.

    Attributes:
        kernels: Relative probability of each kind in `KERNELS`; missing kinds are not used.
        sigma: Range of the standard deviations in pixels.
        generalized_beta: Range of beta for generalised Gaussians; below and above 1 are equally likely.
        plateau_beta: Range of beta for plateaus; below and above 1 are equally likely.
        cutoff: Range of the sinc's cutoff relative to the Nyquist frequency; at least 1/3 for kernels narrower than 13
            pixels.
        size: Range of the kernel size in pixels, odd.
        probability: Probability that an image is blurred.

    Raises:
        InputError: One or more settings are invalid; the message lists all of them.

    Example:
        >>> kernels = Blur({"iso": 0.9, "sinc": 0.1}).draw(np.random.Philox(0).random_raw(4 * 8).reshape(4, 8))
        >>> kernels.shape, round(kernels.sum().item(), 6)
        (torch.Size([4, 21, 21]), 4.0)
    """

    kernels: Mapping[str, float]
    sigma: Sequence[float] = (0.2, 3.0)
    generalized_beta: Sequence[float] = (0.5, 4.0)
    plateau_beta: Sequence[float] = (1.0, 2.0)
    cutoff: Sequence[float] = (0.2, 1.0)
    size: Sequence[int] = (7, 21)
    probability: float = 1.0
    num_draws: ClassVar[int] = 8

    def __post_init__(self) -> None:
        kinds = ", ".join(KERNELS)
        check(
            "blur",
            {
                f"kernels={self.kernels}: give a weight >= 0 for one or more of {kinds}": not _valid_weights(
                    self.kernels
                ),
                f"sigma={self.sigma}: give [low, high] in pixels, above 0": not is_range(self.sigma, 1e-3),
                f"generalized_beta={self.generalized_beta}: give [low, high] with low <= 1 <= high": not _contains_1(
                    self.generalized_beta
                ),
                f"plateau_beta={self.plateau_beta}: give [low, high] with low <= 1 <= high": not _contains_1(
                    self.plateau_beta
                ),
                f"cutoff={self.cutoff}: give [low, high] above 0, up to 1": not is_range(self.cutoff, 1e-3, 1),
                f"size={self.size}: give [low, high], odd numbers from 3 to 21": not (
                    is_range(self.size, 3, 2 * RADIUS + 1) and all(value % 2 == 1 for value in self.size)
                ),
                f"probability={self.probability}: give a number from 0 to 1": not is_probability(self.probability),
            },
        )

    def __call__(self, batch: PaddedBatch, random_bits: np.ndarray, lr_sizes: np.ndarray) -> PaddedBatch:
        applied = uniform(random_bits[:, 0]) < self.probability
        if not applied.any():
            return batch
        return batch._replace(images=apply_where(applied, batch.images, blur, self.draw(random_bits), batch.sizes))

    def draw(self, random_bits: np.ndarray) -> Tensor:
        """Draw a kernel for each image: random bits (N, 8) -> kernels (N, 21, 21) on the CPU."""
        u = uniform(random_bits)
        kind = np.array(KERNELS)[sample_index(u[:, 1], [self.kernels.get(kind, 0) for kind in KERNELS])]  # (N,)
        sizes = np.arange(self.size[0], self.size[1] + 1, 2)
        size = sizes[sample_index(u[:, 2], np.ones(len(sizes)))]
        sigma = scale_to_range(u[:, 3:5], self.sigma)
        isotropic = np.char.endswith(kind, "_iso") | (kind == "iso")
        sigma[isotropic, 1] = sigma[isotropic, 0]
        angle = scale_to_range(u[:, 5], (-math.pi, math.pi))
        generalized, plateau = np.char.startswith(kind, "generalized"), np.char.startswith(kind, "plateau")
        beta = np.ones(len(u))
        for of_this_kind, (low, high) in ((generalized, self.generalized_beta), (plateau, self.plateau_beta)):
            either = np.where(u[:, 6] < 0.5, scale_to_range(u[:, 7], (low, 1)), scale_to_range(u[:, 7], (1, high)))
            beta = np.where(of_this_kind, either, beta)
        lowest = np.where(size < 13, max(self.cutoff[0], 1 / 3), self.cutoff[0])
        cutoff = math.pi * np.maximum(lowest, scale_to_range(u[:, 7], (lowest, self.cutoff[1])))

        shape = [torch.from_numpy(value) for value in (sigma, angle, beta, size)]
        kernels = gaussian_kernels(*shape)
        if plateau.any():
            kernels = torch.where(torch.from_numpy(plateau)[:, None, None], plateau_kernels(*shape), kernels)
        if (sinc := kind == "sinc").any():
            ringing = sinc_kernels(torch.from_numpy(cutoff), shape[3])
            kernels = torch.where(torch.from_numpy(sinc)[:, None, None], ringing, kernels)
        return kernels


def _grid() -> tuple[Tensor, Tensor]:
    """Coordinates x and y of the kernel's pixels, relative to its centre: (21, 21) float64 each."""
    axis = torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float64)
    x, y = torch.meshgrid(axis, axis, indexing="xy")
    return x, y


def _squared_distance(sigma: Tensor, angle: Tensor) -> Tensor:
    """Squared distance of every pixel from the centre in standard deviations: (N, 21, 21)."""
    x, y = _grid()
    cos, sin = (f(angle)[:, None, None] for f in (torch.cos, torch.sin))
    along, across = x * cos + y * sin, y * cos - x * sin
    return (along / sigma[:, 0, None, None]).square() + (across / sigma[:, 1, None, None]).square()


def _cut(kernels: Tensor, size: Tensor) -> Tensor:
    """Set kernels to 0 outside squares of side `size` and normalise them to sum 1."""
    x, y = _grid()
    kernels = kernels * (torch.maximum(x.abs(), y.abs()) <= size[:, None, None] // 2)
    return kernels / kernels.sum(dim=(1, 2), keepdim=True)


def mirrored(at: Tensor, last: Tensor) -> Tensor:
    """Map any coordinates to 0..last by mirroring at both ends: (P,), (N, 1) -> (N, P)."""
    at = at % (2 * last).clamp(min=1)
    return torch.minimum(at, (2 * last - at).abs())


@lru_cache(maxsize=1024)
def _fast_fft_length(length: int) -> int:
    """Return the next length that is fast for an FFT: a product of primes up to 7."""
    rest = length
    for prime in (2, 3, 5, 7):
        while rest % prime == 0:
            rest //= prime
    return length if rest == 1 else _fast_fft_length(length + 1)


def _valid_weights(kernels: Mapping[str, float]) -> bool:
    known = isinstance(kernels, Mapping) and set(kernels) <= set(KERNELS)
    return known and all(is_range((value, value), 0) for value in kernels.values()) and sum(kernels.values()) > 0


def _contains_1(bounds: Sequence[float]) -> bool:
    return is_range(bounds, 1e-3) and bounds[0] <= 1 <= bounds[1]
