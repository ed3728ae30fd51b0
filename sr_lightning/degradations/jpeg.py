"""JPEG compression and decompression in one: ITU-T T.81 with 4:2:0 chroma, in batches.

Bit for bit what libjpeg (and Pillow with it) makes of an image: the quantisation tables of annex K scaled by its rule,
its fixed point, its edge padding and its "fancy" chroma upsampling, which images of up to 4 pixels' width do without
there, but not here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sr_lightning.degradations.padded_batch import (
    Canvas,
    check,
    choose,
    is_probability,
    is_range,
    per_image,
    some,
    take,
    to_levels,
    uniform,
)

# Annex K, tables K.1 and K.2.
LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)

# jfdctint.c and jidctint.c, multiplied out: frequency by row, the left four of eight values by column.
_ISLOW = (
    (8192, 8192, 8192, 8192),
    (11363, 9633, 6437, 2260),
    (10703, 4433, -4433, -10703),
    (9633, -2259, -11362, -6436),
    (8192, -8192, -8192, 8192),
    (6437, -11362, 2261, 9633),
    (4433, -10704, 10704, -4433),
    (2260, -6436, 9633, -11363),
)


def jpeg(images: Tensor, quality: np.ndarray, sizes: np.ndarray) -> Tensor:
    """What is left of images after they were saved as JPEG and opened again.

    Args:
        images: (N, 3, H, W) float64, RGB in [0, 1]; rounded to 8 bits first.
        quality: (N,) whole numbers 1..100.
        sizes: (N, 2), of the images in their planes.

    Returns:
        (N, 3, H, W), multiples of 1/255.
    """
    height, width = images.shape[-2:]
    ycbcr = _to_ycbcr(to_levels(images))
    size = per_image(sizes, images, 2)
    chroma_size = (size + 1) // 2
    # Whole units of 16 x 16 pixels. The last row and column go on; of chroma, the last row after it was halved.
    row, column = (torch.arange(math.ceil(side / 16) * 16, device=images.device) for side in (height, width))
    rows, columns = (torch.minimum(at, size[:, i, None] - 1) for i, at in enumerate((row, column)))
    chroma_rows = torch.minimum(row // 2, chroma_size[:, 0, None] - 1) * 2 + row % 2
    chroma_rows = torch.minimum(chroma_rows, size[:, 0, None] - 1)
    luma = _through_blocks(take(ycbcr[:, :1], rows, columns), quality_table(LUMA, quality))
    chroma = _through_blocks(_halve(take(ycbcr[:, 1:], chroma_rows, columns)), quality_table(CHROMA, quality))
    luma = luma[..., :height, :width]
    return _to_rgb(luma, _double(chroma, chroma_size, height, width)).mul_(1 / 255)


def quality_table(table: Sequence[Sequence[int]], quality: np.ndarray) -> np.ndarray:
    """A quantisation table for each quality (N,) of 1..100, by libjpeg's rule: (N, 8, 8) of 1..255."""
    percent = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    return np.clip((np.array(table) * percent[:, None, None] + 50) // 100, 1, 255)


@dataclass(frozen=True)
class JPEG:
    """Compresses at a random quality.

    Attributes:
        quality: The lowest and the highest, each whole number between them as likely.
        probability: Of being applied at all.
    """

    quality: Sequence[int] = (30, 95)
    probability: float = 1.0
    words: ClassVar[int] = 2

    def __post_init__(self) -> None:
        whole = is_range(self.quality, 1, 100) and all(isinstance(value, int) for value in self.quality)
        check(
            "jpeg",
            {
                f"quality={self.quality}: two ordered whole numbers from 1 to 100": not whole,
                f"probability={self.probability}: from 0 to 1": not is_probability(self.probability),
            },
        )

    def __call__(self, canvas: Canvas, words: np.ndarray, lr_sizes: np.ndarray) -> Canvas:
        u = uniform(words)
        low, high = self.quality
        quality = low + choose(u[:, 1], np.ones(high - low + 1))
        applied = u[:, 0] < self.probability
        return canvas._replace(images=some(applied, canvas.images, jpeg, quality, canvas.sizes))


def _to_ycbcr(rgb: Tensor) -> Tensor:
    """JFIF's, full range, in libjpeg's fixed point of 16 bits: whole numbers 0..255 -> 0..255, (N, 3, H, W)."""
    r, g, b = rgb.unbind(1)
    y = 19595 * r + 38470 * g + 7471 * b + 32768
    cb = -11058 * r - 21710 * g + 32768 * b + (128 * 65536 + 32767)
    cr = 32768 * r - 27439 * g - 5329 * b + (128 * 65536 + 32767)
    return torch.stack([y, cb, cr], dim=1).mul_(2.0**-16).floor_()


def _to_rgb(y: Tensor, chroma: Tensor) -> Tensor:
    """Back, likewise, and clamped: (N, 1, H, W), (N, 2, H, W) -> (N, 3, H, W)."""
    cb, cr = (chroma - 128).unbind(1)
    change = torch.stack([91881 * cr, -22554 * cb - 46802 * cr, 116130 * cb], dim=1)
    return change.add_(32768).mul_(2.0**-16).floor_().add_(y).clamp_(0, 255)


def _halve(chroma: Tensor) -> Tensor:
    """Means of 2 x 2; what falls on a quarter or a half is rounded down in even columns and up in odd ones, by halves.

    (N, 2, P, Q) -> (N, 2, P/2, Q/2).
    """
    total = chroma.unflatten(-1, (-1, 2)).sum(-1).unflatten(-2, (-1, 2)).sum(-2)
    bias = 1 + torch.arange(total.shape[-1], device=total.device) % 2
    return total.add_(bias).mul_(0.25).floor_()


def _double(chroma: Tensor, size: Tensor, height: int, width: int) -> Tensor:
    """The triangle filter, 3 parts of the nearer and 1 of the farther: (N, 2, P, Q) -> (N, 2, height, width)."""
    places = []
    for i, side in enumerate((height, width)):
        at = torch.arange(side, device=chroma.device)
        last = size[:, i, None] - 1
        near = torch.minimum(at // 2, last)
        far = torch.minimum((near + 2 * (at % 2) - 1).clamp(min=0), last)
        places.append((near, far))
    (near_rows, far_rows), (near, far) = places
    every = torch.arange(chroma.shape[-1], device=chroma.device).expand(len(chroma), -1)
    columns = 3 * take(chroma, near_rows, every) + take(chroma, far_rows, every)  # (N, 2, height, Q)
    every = torch.arange(height, device=chroma.device).expand(len(chroma), -1)
    total = 3 * take(columns, every, near) + take(columns, every, far)
    bias = 8 - torch.arange(width, device=chroma.device) % 2
    return total.add_(bias).mul_(1 / 16).floor_()


def _through_blocks(planes: Tensor, table: np.ndarray) -> Tensor:
    """Cosine transform of 8 x 8 blocks, quantisation and back: levels (N, C, P, Q), table (N, 8, 8) -> levels."""
    dct, step = _dct(planes.device), per_image(table, planes, 3)[:, None, None, None].double()
    blocks = planes.unflatten(-2, (-1, 8)).unflatten(-1, (-1, 8)).transpose(-3, -2)  # (N, C, P/8, Q/8, 8, 8)
    coefficients = _descaled(dct @ _descaled((blocks - 128) @ dct.T, 11), 15)  # of 8 times the orthonormal transform
    quantised = coefficients.abs().add_(4 * step).div_(8 * step).floor_().mul_(coefficients.sign())
    blocks = _descaled(_descaled(dct.T @ (quantised * step), 11) @ dct, 18).add_(128).clamp_(0, 255)
    return blocks.transpose(-3, -2).flatten(-2).flatten(-3, -2)


def _descaled(values: Tensor, bits: int) -> Tensor:
    """Whole numbers divided by 2^bits and rounded, halves up."""
    return values.add_(2.0 ** (bits - 1)).mul_(2.0**-bits).floor_()


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # what is kept here must serve later calls outside of it, too
def _dct(device: torch.device) -> Tensor:
    """The whole numbers that libjpeg's exact transform ("islow") multiplies with, in effect: (8, 8) float64.

    Its constants have 13 bits; each entry is a sum of them, and so up to 1 off a rounded cosine. Products with levels
    are whole numbers far below 2^53: float64 holds them all.
    """
    half = torch.tensor(_ISLOW, dtype=torch.float64)
    sign = 1 - 2 * (torch.arange(8) % 2)[:, None]  # the right half mirrors the left one, odd rows with the other sign
    return torch.cat([half, sign * half.flip(1)], dim=1).to(device)
