"""Blur with Gaussian, generalised Gaussian, plateau-shaped and sinc kernels.

Shapes and their parameters: Wang et al., "Real-ESRGAN" (2021, arXiv 2107.10833), sections 3.1 and 3.3.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

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


def radial_kernels(plateau: Tensor, sigma: Tensor, angle: Tensor, beta: Tensor) -> Tensor:
    """Generalised Gaussians exp(-q^beta / 2) and plateaus 1 / (1 + q^beta), q = x'S^-1 x, before `cut`.

    S is the covariance with standard deviations `sigma` along axes rotated by `angle`.

    Args:
        plateau: (N,) bool: which kernels are plateaus.
        sigma: (N, 2) float64, pixels; two equal values give an isotropic kernel.
        angle: (N,) radians.
        beta: (N,); 1 gives a Gaussian, less heavier tails, more a flatter top.

    Returns:
        (N, 21, 21) float64.
    """
    x, y = _grid(angle.device)
    cos, sin = (f(angle)[:, None, None] for f in (torch.cos, torch.sin))
    along, across = x * cos + y * sin, y * cos - x * sin
    squared = (along / sigma[:, 0, None, None]).square() + (across / sigma[:, 1, None, None]).square()
    power = squared.pow(beta[:, None, None])
    return torch.where(plateau[:, None, None], 1 / (1 + power), power.mul(-0.5).exp_())


def sinc_kernels(cutoff: Tensor) -> Tensor:
    """Ideal low-pass filters with a circular pass band, before `cut`; they cause the ringing of sharpened images.

    Args:
        cutoff: (N,) float64, radians per pixel, up to pi.

    Returns:
        (N, 21, 21) float64.
    """
    x, y = _grid(cutoff.device)
    radius, cutoff = torch.hypot(x, y), cutoff[:, None, None]
    kernels = cutoff * torch.special.bessel_j1(cutoff * radius) / (2 * math.pi * radius.clamp(min=1))
    kernels[:, RADIUS, RADIUS] = cutoff[:, 0, 0] ** 2 / (4 * math.pi)  # the limit at 0
    return kernels


def cut(kernels: Tensor, size: Tensor) -> Tensor:
    """Set kernels (N, 21, 21) to 0 outside squares of odd sides `size` (N,), and normalise them to sum 1."""
    x, y = _grid(kernels.device)
    kernels = kernels * (torch.maximum(x.abs(), y.abs()) <= size[:, None, None] // 2)
    return kernels / kernels.sum(dim=(1, 2), keepdim=True)


def blur(images: Tensor, kernels: Tensor, sizes: Tensor) -> Tensor:
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
        >>> kernels = Blur({"iso": 0.9, "sinc": 0.1}).draw(torch.arange(4 * 8).view(4, 8) << 58)
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

    def __call__(self, batch: PaddedBatch, random_bits: Tensor, lr_size: tuple[int, int]) -> PaddedBatch:
        images, sizes, fixed_shapes = batch
        applied = uniform(random_bits[:, 0]) < self.probability
        if not fixed_shapes and not applied.any():
            return batch
        kernels = self.draw(random_bits, fixed_shapes)
        return batch._replace(images=apply_where(applied, images, blur, kernels, sizes, fixed_shapes=fixed_shapes))

    def draw(self, random_bits: Tensor, fixed_shapes: bool = False) -> Tensor:
        """Draw a kernel for each image: random bits (N, 8) -> kernels (N, 21, 21) on their device."""
        u = uniform(random_bits)
        kind = sample_index(u[:, 1], [self.kernels.get(kind, 0) for kind in KERNELS])  # (N,)
        sizes = range(self.size[0], self.size[1] + 1, 2)
        size = sizes.start + 2 * sample_index(u[:, 2], [1] * len(sizes))
        sigma, other = scale_to_range(u[:, 3:5], self.sigma).unbind(1)
        sigma = torch.stack([sigma, torch.where(_is(kind, "iso", "generalized_iso", "plateau_iso"), sigma, other)], 1)
        angle = scale_to_range(u[:, 5], (-math.pi, math.pi))
        plateau, beta = _is(kind, "plateau_iso", "plateau_aniso"), torch.ones_like(angle)
        generalized = _is(kind, "generalized_iso", "generalized_aniso")
        for of_this_kind, (low, high) in ((generalized, self.generalized_beta), (plateau, self.plateau_beta)):
            either = torch.where(u[:, 6] < 0.5, scale_to_range(u[:, 7], (low, 1)), scale_to_range(u[:, 7], (1, high)))
            beta = torch.where(of_this_kind, either, beta)
        lowest = torch.full_like(angle, self.cutoff[0]).masked_fill_(size < 13, max(self.cutoff[0], 1 / 3))
        cutoff = math.pi * torch.maximum(lowest, scale_to_range(u[:, 7], (lowest, self.cutoff[1])))

        kernels, ringing = radial_kernels(plateau, sigma, angle, beta), _is(kind, "sinc")
        if self.kernels.get("sinc", 0) and (fixed_shapes or ringing.any()):
            kernels = torch.where(ringing[:, None, None], sinc_kernels(cutoff), kernels)
        return cut(kernels, size)


def _is(kind: Tensor, *names: str) -> Tensor:
    """Compare indices of KERNELS with names: (N,) -> (N,) bool."""
    return torch.stack([kind == KERNELS.index(name) for name in names]).any(0)


def _grid(device: torch.device) -> tuple[Tensor, Tensor]:
    """Coordinates x and y of the kernel's pixels, relative to its centre: (21, 21) float64 each."""
    axis = torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float64, device=device)
    x, y = torch.meshgrid(axis, axis, indexing="xy")
    return x, y


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
