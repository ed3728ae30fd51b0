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
    Canvas,
    between,
    check,
    choose,
    is_probability,
    is_range,
    per_image,
    some,
    take,
    uniform,
)

RADIUS = 10  # kernels are kept as 21 x 21, smaller ones with zeros around
KERNELS = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso", "sinc")


def gaussian_kernels(sigma: Tensor, angle: Tensor, beta: Tensor, size: Tensor) -> Tensor:
    """exp(-q^beta / 2) with q = x'S^-1 x, where S has the standard deviations `sigma` along axes turned by `angle`.

    Args:
        sigma: (N, 2) float64, pixels; equal ones make an isotropic kernel.
        angle: (N,) radians.
        beta: (N,); 1 for Gaussians, less for heavier tails, more for flatter tops.
        size: (N,) odd, up to 21: side of the square beyond which the kernel is cut off.

    Returns:
        (N, 21, 21) float64 of sum 1.
    """
    return _cut(torch.exp(_squared_distance(sigma, angle).pow(beta[:, None, None]).mul(-0.5)), size)


def plateau_kernels(sigma: Tensor, angle: Tensor, beta: Tensor, size: Tensor) -> Tensor:
    """1 / (1 + q^beta); arguments and result as of `gaussian_kernels`."""
    return _cut(1 / (1 + _squared_distance(sigma, angle).pow(beta[:, None, None])), size)


def sinc_kernels(cutoff: Tensor, size: Tensor) -> Tensor:
    """The ideal low-pass filter of a circular band, cut off: it rings as sharpened and compressed images do.

    Args:
        cutoff: (N,) float64, radians per pixel, up to pi.
        size: As of `gaussian_kernels`.

    Returns:
        (N, 21, 21) float64 of sum 1.
    """
    x, y = _grid()
    radius, cutoff = torch.hypot(x, y), cutoff[:, None, None]
    kernels = cutoff * torch.special.bessel_j1(cutoff * radius) / (2 * math.pi * radius.clamp(min=1))
    kernels[:, RADIUS, RADIUS] = cutoff[:, 0, 0] ** 2 / (4 * math.pi)  # the limit at 0
    return _cut(kernels, size)


def blur(images: Tensor, kernels: Tensor, sizes: np.ndarray) -> Tensor:
    """Filter each image with its kernel; the border is mirrored without repeating the edge pixel.

    Args:
        images: (N, C, H, W) float64.
        kernels: (N, 21, 21).
        sizes: (N, 2), of the images in their planes.

    Returns:
        (N, C, H, W): sum over (i, j) of kernel[10 + i, 10 + j] * image[y + i, x + j].
    """
    height, width = images.shape[-2:]
    reach = [torch.arange(-RADIUS, side + RADIUS, device=images.device) for side in (height, width)]
    last = per_image(sizes - 1, images, 2)
    padded = take(images, *(_mirrored(at, last[:, i, None]) for i, at in enumerate(reach)))
    lengths = [_smooth(side) for side in padded.shape[-2:]]
    spectrum = torch.fft.rfft2(padded, s=lengths)
    spectrum *= torch.fft.rfft2(kernels.to(images.device)[:, None], s=lengths).conj()
    return torch.fft.irfft2(spectrum, s=lengths)[..., :height, :width]


@dataclass(frozen=True)
class Blur:
    """Blurs by a random kernel.

    Attributes:
        kernels: Kind, one of `KERNELS` -> how likely it is, relative to the others.
        sigma: Range of the standard deviations in pixels.
        generalized_beta: Range of beta of generalised Gaussians: half of them below 1, half above.
        plateau_beta: Range of beta of plateaus; likewise.
        cutoff: Range of the sinc's cutoff, 1 being the highest frequency there is; kernels narrower than 13 pixels
            keep above 1/3.
        size: Range of the odd kernel sizes.
        probability: Of being applied at all.
    """

    kernels: Mapping[str, float]
    sigma: Sequence[float] = (0.2, 3.0)
    generalized_beta: Sequence[float] = (0.5, 4.0)
    plateau_beta: Sequence[float] = (1.0, 2.0)
    cutoff: Sequence[float] = (0.2, 1.0)
    size: Sequence[int] = (7, 21)
    probability: float = 1.0
    words: ClassVar[int] = 8  # random words taken per image

    def __post_init__(self) -> None:
        kinds = ", ".join(KERNELS)
        check(
            "blur",
            {
                f"kernels={self.kernels}: a weight for one or more of {kinds}": not _are_weights(self.kernels),
                f"sigma={self.sigma}: two ordered pixels above 0": not is_range(self.sigma, 1e-3),
                f"generalized_beta={self.generalized_beta}: two numbers, one on each side of 1": not _around_1(
                    self.generalized_beta
                ),
                f"plateau_beta={self.plateau_beta}: two numbers, one on each side of 1": not _around_1(
                    self.plateau_beta
                ),
                f"cutoff={self.cutoff}: two ordered numbers above 0, up to 1": not is_range(self.cutoff, 1e-3, 1),
                f"size={self.size}: two ordered odd numbers from 3 to 21": not (
                    is_range(self.size, 3, 2 * RADIUS + 1) and all(value % 2 == 1 for value in self.size)
                ),
                f"probability={self.probability}: from 0 to 1": not is_probability(self.probability),
            },
        )

    def __call__(self, canvas: Canvas, words: np.ndarray, lr_sizes: np.ndarray) -> Canvas:
        applied = uniform(words[:, 0]) < self.probability
        if not applied.any():
            return canvas
        return canvas._replace(images=some(applied, canvas.images, blur, self.draw(words), canvas.sizes))

    def draw(self, words: np.ndarray) -> Tensor:
        """Random words (N, 8) -> kernels (N, 21, 21) on the CPU."""
        u = uniform(words)
        kind = np.array(KERNELS)[choose(u[:, 1], [self.kernels.get(kind, 0) for kind in KERNELS])]  # (N,)
        sizes = np.arange(self.size[0], self.size[1] + 1, 2)
        size = sizes[choose(u[:, 2], np.ones(len(sizes)))]
        sigma = between(u[:, 3:5], self.sigma)
        isotropic = np.char.endswith(kind, "_iso") | (kind == "iso")
        sigma[isotropic, 1] = sigma[isotropic, 0]
        angle = between(u[:, 5], (-math.pi, math.pi))
        generalized, plateau = np.char.startswith(kind, "generalized"), np.char.startswith(kind, "plateau")
        beta = np.ones(len(u))
        for chosen, (low, high) in ((generalized, self.generalized_beta), (plateau, self.plateau_beta)):
            either = np.where(u[:, 6] < 0.5, between(u[:, 7], (low, 1)), between(u[:, 7], (1, high)))
            beta = np.where(chosen, either, beta)
        lowest = np.where(size < 13, max(self.cutoff[0], 1 / 3), self.cutoff[0])
        cutoff = math.pi * np.maximum(lowest, between(u[:, 7], (lowest, self.cutoff[1])))

        shape = [torch.from_numpy(value) for value in (sigma, angle, beta, size)]
        kernels = gaussian_kernels(*shape)
        if plateau.any():
            kernels = torch.where(torch.from_numpy(plateau)[:, None, None], plateau_kernels(*shape), kernels)
        if (sinc := kind == "sinc").any():
            ringing = sinc_kernels(torch.from_numpy(cutoff), shape[3])
            kernels = torch.where(torch.from_numpy(sinc)[:, None, None], ringing, kernels)
        return kernels


def _grid() -> tuple[Tensor, Tensor]:
    """Of the kernel's pixels, x and y, (21, 21) float64."""
    axis = torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float64)
    return torch.meshgrid(axis, axis, indexing="xy")


def _squared_distance(sigma: Tensor, angle: Tensor) -> Tensor:
    """Of every pixel from the centre, in squared standard deviations: (N, 21, 21)."""
    x, y = _grid()
    cos, sin = (f(angle)[:, None, None] for f in (torch.cos, torch.sin))
    along, across = x * cos + y * sin, y * cos - x * sin
    return (along / sigma[:, 0, None, None]).square() + (across / sigma[:, 1, None, None]).square()


def _cut(kernels: Tensor, size: Tensor) -> Tensor:
    """Zero outside the squares of `size`, and of sum 1."""
    x, y = _grid()
    kernels = kernels * (torch.maximum(x.abs(), y.abs()) <= size[:, None, None] // 2)
    return kernels / kernels.sum(dim=(1, 2), keepdim=True)


def _mirrored(at: Tensor, last: Tensor) -> Tensor:
    """Pixels 0..last for places anywhere, mirrored at both ends as often as needed: (P,), (N, 1) -> (N, P)."""
    at = at % (2 * last).clamp(min=1)
    return torch.minimum(at, (2 * last - at).abs())


@lru_cache(maxsize=1024)
def _smooth(length: int) -> int:
    """The next length that a Fourier transform takes quickly: a product of primes up to 7."""
    rest = length
    for prime in (2, 3, 5, 7):
        while rest % prime == 0:
            rest //= prime
    return length if rest == 1 else _smooth(length + 1)


def _are_weights(kernels: Mapping[str, float]) -> bool:
    known = isinstance(kernels, Mapping) and set(kernels) <= set(KERNELS)
    return known and all(is_range((value, value), 0) for value in kernels.values()) and sum(kernels.values()) > 0


def _around_1(bounds: Sequence[float]) -> bool:
    return is_range(bounds, 1e-3) and bounds[0] <= 1 <= bounds[1]
