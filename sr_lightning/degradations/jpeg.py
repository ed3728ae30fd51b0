"""JPEG compression and decompression of batches on any device: ITU-T T.81 with 4:2:0 chroma.

The result equals libjpeg's (and so Pillow's) bit for bit: quantisation tables of annex K scaled by libjpeg's rule, its
fixed-point arithmetic, its edge padding and its "fancy" chroma upsampling. Exception: libjpeg does not use fancy
upsampling for images up to 4 pixels wide; this module does.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from sr_lightning.degradations.padded_batch import (
    PaddedBatch,
    apply_where,
    check,
    constant,
    gather_pixels,
    is_probability,
    is_range,
    per_image,
    sample_index,
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

# Matrix of jfdctint.c and jidctint.c, rows are frequencies; left half only, the right half follows by symmetry.
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

# Matrices of jccolor.c and jdcolor.c in 1/65536: RGB to YCbCr, and Cb and Cr to what they add to RGB.
_YCBCR = ((19595, 38470, 7471), (-11058, -21710, 32768), (32768, -27439, -5329))
_RGB = ((0, 91881), (-22554, -46802), (116130, 0))


def jpeg(images: Tensor, quality: Tensor, sizes: Tensor) -> Tensor:
    """Compress images as JPEG and decompress them.

    Args:
        images: (N, 3, H, W) float64, RGB in [0, 1]; rounded to 8 bits first.
        quality: (N,) integers 1..100.
        sizes: (N, 2) height and width of each image, see `PaddedBatch`.

    Returns:
        (N, 3, H, W), multiples of 1/255.
    """
    height, width = images.shape[-2:]
    ycbcr = _to_ycbcr(to_levels(images))
    size = per_image(sizes, images, 2)
    chroma_size = (size + 1) // 2
    # Pad to units of 16 x 16 pixels by repeating the last row and column; chroma rows are repeated after subsampling.
    row, column = (torch.arange(math.ceil(side / 16) * 16, device=images.device) for side in (height, width))
    rows, columns = (torch.minimum(at, size[:, i, None] - 1) for i, at in enumerate((row, column)))
    chroma_rows = torch.minimum(row // 2, chroma_size[:, 0, None] - 1) * 2 + row % 2
    chroma_rows = torch.minimum(chroma_rows, size[:, 0, None] - 1)
    luma = _quantise_blocks(gather_pixels(ycbcr[:, :1], rows, columns), quality_table(LUMA, quality))
    chroma = _quantise_blocks(_halve(gather_pixels(ycbcr[:, 1:], chroma_rows, columns)), quality_table(CHROMA, quality))
    luma = luma[..., :height, :width]
    return _to_rgb(luma, _double(chroma, chroma_size, height, width)).mul_(1 / 255)


def quality_table(table: tuple[tuple[int, ...], ...], quality: Tensor) -> Tensor:
    """Scale a quantisation table by libjpeg's rule for each quality (N,) in 1..100: (N, 8, 8) in 1..255."""
    percent = torch.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    return ((constant(table, quality.device) * percent[:, None, None] + 50) // 100).clamp_(1, 255)


@dataclass(frozen=True)
class JPEG:
    """Random step: JPEG compression at a random quality.

    Attributes:
        quality: Lowest and highest quality; each integer between them is equally likely.
        probability: Probability that an image is compressed.

    Raises:
        InputError: One or more settings are invalid; the message lists all of them.

    Example:
        >>> batch = PaddedBatch(torch.full((1, 3, 8, 8), 0.3, dtype=torch.float64), torch.tensor([[8, 8]]))
        >>> random_bits = torch.zeros(1, JPEG.num_draws, dtype=torch.int64)
        >>> JPEG(quality=(50, 50))(batch, random_bits, lr_size=(4, 4)).images.mul(255).unique()
        tensor([76.], dtype=torch.float64)
    """

    quality: Sequence[int] = (30, 95)
    probability: float = 1.0
    num_draws: ClassVar[int] = 2

    def __post_init__(self) -> None:
        whole = is_range(self.quality, 1, 100) and all(isinstance(value, int) for value in self.quality)
        check(
            "jpeg",
            {
                f"quality={self.quality}: give [low, high], integers from 1 to 100": not whole,
                f"probability={self.probability}: give a number from 0 to 1": not is_probability(self.probability),
            },
        )

    def __call__(self, batch: PaddedBatch, random_bits: Tensor, lr_size: tuple[int, int]) -> PaddedBatch:
        images, sizes, fixed_shapes = batch
        u = uniform(random_bits)
        low, high = self.quality
        quality = low + sample_index(u[:, 1], [1] * (high - low + 1))
        applied = u[:, 0] < self.probability
        return batch._replace(images=apply_where(applied, images, jpeg, quality, sizes, fixed_shapes=fixed_shapes))


def _to_ycbcr(rgb: Tensor) -> Tensor:
    """JFIF's full-range YCbCr in libjpeg's 16-bit fixed point: integers 0..255 -> 0..255, (N, 3, H, W)."""
    ycbcr = _combine(rgb, _YCBCR)
    ycbcr[:, :1].add_(32768)
    ycbcr[:, 1:].add_(128 * 65536 + 32767)
    return ycbcr.mul_(2.0**-16).floor_()


def _to_rgb(y: Tensor, chroma: Tensor) -> Tensor:
    """Inverse of `_to_ycbcr`, clamped to 0..255: (N, 1, H, W), (N, 2, H, W) -> (N, 3, H, W)."""
    change = _combine(chroma - 128, _RGB)
    return change.add_(32768).mul_(2.0**-16).floor_().add_(y).clamp_(0, 255)


def _combine(planes: Tensor, matrix: Sequence[Sequence[int]]) -> Tensor:
    """Multiply the colours by an integer matrix (D, C): (N, C, H, W) -> (N, D, H, W)."""
    n, _, height, width = planes.shape
    combined = planes.new_zeros(n, len(matrix), height, width)
    for result, weights in zip(combined.unbind(1), matrix, strict=True):
        for plane, weight in zip(planes.unbind(1), weights, strict=True):
            result.add_(plane, alpha=weight)
    return combined


def _halve(chroma: Tensor) -> Tensor:
    """Average 2 x 2 pixels, (N, 2, P, Q) -> (N, 2, P/2, Q/2), with libjpeg's alternating rounding bias.

    The mean is floor((sum + bias) / 4), with bias 1 in even columns and 2 in odd columns.
    """
    pairs = chroma[..., ::2, :] + chroma[..., 1::2, :]
    total = pairs[..., ::2] + pairs[..., 1::2]
    bias = 1 + torch.arange(total.shape[-1], device=total.device) % 2
    return total.add_(bias).mul_(0.25).floor_()


def _double(chroma: Tensor, size: Tensor, height: int, width: int) -> Tensor:
    """Upsample by libjpeg's triangle filter (3/4 nearer, 1/4 farther): (N, 2, P, Q) -> (N, 2, height, width)."""
    reach = [torch.arange(-1, (side + 1) // 2 + 1, device=chroma.device) for side in (height, width)]
    rows, columns = (torch.minimum(at.clamp(min=0), size[:, i, None] - 1) for i, at in enumerate(reach))
    total = _interleave(_interleave(gather_pixels(chroma, rows, columns), 2), 3)[..., :height, :width]
    bias = 8 - torch.arange(width, device=chroma.device) % 2
    return total.add_(bias).mul_(1 / 16).floor_()


def _interleave(chroma: Tensor, dim: int) -> Tensor:
    """Upsample dimension 2 or 3 by 4 times the triangle filter; it has one more pixel at each end: P + 2 -> 2P."""
    length = chroma.shape[dim] - 2
    before, near, after = (chroma.narrow(dim, start, length) for start in range(3))
    pairs = chroma.new_empty(*near.shape[: dim + 1], 2, *near.shape[dim + 1 :])
    for i, far in enumerate((before, after)):
        torch.add(far, near, alpha=3, out=pairs.select(dim + 1, i))
    return pairs.flatten(dim, dim + 1)


def _quantise_blocks(planes: Tensor, table: Tensor) -> Tensor:
    """Transform 8 x 8 blocks, quantise, and transform back: levels (N, C, P, Q), table (N, 8, 8) -> levels."""
    dct, step = _dct(planes.device), per_image(table, planes, 3)[:, None, None, :, None].double()
    coefficients = _descaled(_down(dct, _descaled(_across(planes - 128, dct.T), 11)), 15)
    coefficients = coefficients.unflatten(-2, (-1, 8)).unflatten(-1, (-1, 8))  # 8 times the orthonormal DCT
    quantised = coefficients.abs().add_(4 * step).div_(8 * step).floor_().mul_(coefficients.sign())
    quantised = quantised.mul_(step).view(planes.shape)
    return _descaled(_across(_descaled(_down(dct.T, quantised), 11), dct), 18).add_(128).clamp_(0, 255)


def _across(planes: Tensor, matrix: Tensor) -> Tensor:
    """Multiply the rows of 8 x 8 blocks by a matrix (8, 8) from the right: (N, C, P, Q) -> (N, C, P, Q)."""
    return (planes.unflatten(-1, (-1, 8)) @ matrix).flatten(-2)


def _down(matrix: Tensor, planes: Tensor) -> Tensor:
    """Multiply the columns of 8 x 8 blocks by a matrix (8, 8) from the left: (N, C, P, Q) -> (N, C, P, Q)."""
    return (matrix @ planes.unflatten(-2, (-1, 8))).flatten(-3, -2)


def _descaled(values: Tensor, bits: int) -> Tensor:
    """Divide integers by 2^bits and round half up."""
    return values.add_(2.0 ** (bits - 1)).mul_(2.0**-bits).floor_()


@cache  # without a limit: a CUDA graph reads the tensor at its address
@torch.inference_mode(False)  # the cached tensor must also work outside inference mode
def _dct(device: torch.device) -> Tensor:
    """Integer matrix of libjpeg's accurate transform ("islow"): (8, 8) float64.

    Entries are sums of libjpeg's 13-bit constants, so they differ by up to 1 from a rounded cosine. Products with
    levels are integers far below 2^53, so float64 is exact.
    """
    half = torch.tensor(_ISLOW, dtype=torch.float64)
    sign = 1 - 2 * (torch.arange(8) % 2)[:, None]  # the right half is the mirrored left half, negated in odd rows
    return torch.cat([half, sign * half.flip(1)], dim=1).to(device)
