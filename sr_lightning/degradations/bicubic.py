"""MATLAB's `imresize(image, factor, "bicubic")`: the LR images every benchmark table is measured on, bit for bit.

What makes a uint8 result equal to MATLAB's: rows first, rounded to uint8, then columns, rounded again; the cubic kernel
with a = -0.5 (Keys, "Cubic convolution interpolation for digital image processing", 1981), widened by the scale when
shrinking; weights normalised; halves rounded up. The border depends on MATLAB's age: newer ones mirror it (DIV2K, the
EDSR benchmark archive), older ones replicate it (the SelfExSR archive).

A pass is a product with a banded matrix. It is computed in blocks of `_BLOCK` output rows, as a small dense product of
each block's part of the band with the input rows it reaches: at x2 that does five times the multiplications needed,
but in matrix products, and each input pixel is read from memory about once.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from sr_lightning.errors import InputError

BORDERS = ("mirror", "replicate")
_BLOCK = 16


def downscale(hr: Tensor, scale: int, border: str = "mirror") -> Tensor:
    """Shrink as MATLAB's `imresize(hr, 1/scale, "bicubic")`, antialiased.

    Args:
        hr: (..., H, W), H and W multiples of `scale`; uint8 in 0..255, or floating point of any range.
        scale: an integer >= 2.
        border: "mirror" (newer MATLAB, DIV2K) or "replicate" (older MATLAB, SelfExSR's benchmark files).

    Returns:
        (..., H/scale, W/scale) of hr's dtype, contiguous. uint8 is rounded after each of the two passes, bit-exact to
        MATLAB; floating point is computed in float64 and neither rounded nor clamped.

    Raises:
        InputError: a size that is no multiple of the scale, an unknown border, a dtype or scale that is not as above.
    """
    _check(hr, scale, border)
    if hr.shape[-2] % scale or hr.shape[-1] % scale:
        raise InputError(
            f"cannot shrink {hr.shape[-2]}x{hr.shape[-1]} (height x width) by {scale}: "
            "crop it to a multiple of the scale first (crop_to_multiple)"
        )
    return _resize(hr, 1, scale, border)


def upscale(lr: Tensor, scale: int, border: str = "mirror") -> Tensor:
    """Enlarge as MATLAB's `imresize(lr, scale, "bicubic")`: (..., h, w) -> (..., h*scale, w*scale).

    Types, ranges, rounding and errors as in `downscale`; h and w are free.
    """
    _check(lr, scale, border)
    return _resize(lr, scale, 1, border)


def crop_to_multiple(image, scale: int):
    """The largest top left part of a tensor or array (..., H, W) whose sides are multiples of `scale`; a view."""
    height, width = image.shape[-2:]
    if min(height, width) < scale:
        raise InputError(f"an image of {height}x{width} (height x width) has no pixel left at scale {scale}")
    return image[..., : height - height % scale, : width - width % scale]


@dataclass(frozen=True)
class Bicubic:
    """The benchmark degradation, `lr = degradation(hr, scale)`: `downscale` of uint8 images with a fixed border."""

    border: str = "mirror"
    version: ClassVar[int] = 1  # raise it when a pixel of the result changes, so that stored LR images are made anew
    lr_source: ClassVar[str] = "made"  # of the protocol that scores by the result

    def __post_init__(self):
        _check_border(self.border)

    @property
    def key(self) -> dict[str, str | int]:
        """All that the LR images depend on, besides the HR images and the scale."""
        return {"degradation": "bicubic", "version": self.version, "border": self.border}

    def __call__(self, hr: Tensor, scale: int) -> Tensor:
        if hr.dtype != torch.uint8:
            raise InputError(f"the bicubic degradation takes uint8 images, got {hr.dtype}")
        return downscale(hr, scale, self.border)


def _check(image: Tensor, scale: int, border: str) -> None:
    _check_border(border)
    if not isinstance(scale, int) or scale < 2:
        raise InputError(f"scale must be an integer of at least 2, got {scale!r}")
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise InputError(f"bicubic takes uint8 or floating point images, got {image.dtype}")


def _check_border(border: str) -> None:
    if border not in BORDERS:
        raise InputError(f"border must be one of {', '.join(BORDERS)}, got {border!r}")


def _resize(image: Tensor, up: int, down: int, border: str) -> Tensor:
    scale, dtype = max(up, down), _working_dtype(image, max(up, down))
    # With 8-bit samples every exact result is a multiple of 1/(16 scale^4) (see _taps). The quarter of that step on top
    # of the half keeps a tie from falling on the wrong side when float64 cannot hold the weights (scale 6, 10, 12, ..).
    half = 0.5 + 1 / (64 * scale**4)
    for size in image.shape[-2:]:  # rows, then by transposition columns
        blocks = []
        for start, stop, weight in _bands(size, up, down, border, dtype, image.device):
            block = weight @ image[..., start:stop, :].to(dtype)  # (b, k) @ (..., k, W) -> (..., b, W)
            if image.dtype == torch.uint8:
                block = block.add_(half).clamp_(0, 255).int()  # cuts the fraction off; straight to uint8 is slower
            blocks.append(block.to(image.dtype))
        image = torch.cat(blocks, dim=-2).mT
    return image.contiguous()


def _working_dtype(image: Tensor, scale: int) -> torch.dtype:
    """float32 where it provably gives the same bits, on the CPU and for uint8; else float64.

    x2, x4: the weights are multiples of 1/256 and 1/4096, so every product with a sample and every partial sum, in
    whatever order they are added, is a multiple of 1/4096 below 512: 21 of float32's 24 bits, all exact.
    x3: the weights are multiples of 1/81, so no result is closer than 1/162 to a tie, and float32 is off by < 0.001.
    Enlarging has coarser weights. A GPU, autocast and torch.set_float32_matmul_precision may multiply float32 in TF32
    or bfloat16, which is not enough; float64 they leave alone.
    """
    true_float32 = (
        image.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.matmul.fp32_precision in ("none", "ieee")
    )
    return torch.float32 if image.dtype == torch.uint8 and scale in (2, 3, 4) and true_float32 else torch.float64


@lru_cache(maxsize=128)
@torch.inference_mode(False)  # what is kept here must serve later calls that need gradients, too
def _bands(size: int, up: int, down: int, border: str, dtype: torch.dtype, device: torch.device):
    """The matrix of one pass as bands (start, stop, weight): the next b output rows are weight @ rows[start:stop]."""
    bands = []
    for index, tap in zip(*(t.split(_BLOCK) for t in _taps(size, up, down, border)), strict=True):
        start, stop = int(index.min()), int(index.max()) + 1
        weight = torch.zeros(len(index), stop - start, dtype=torch.float64)
        weight.scatter_add_(1, index - start, tap)  # adds: beyond the border several taps meet the same pixel
        bands.append((start, stop, weight.to(device, dtype)))
    return bands


def _taps(size: int, up: int, down: int, border: str) -> tuple[Tensor, Tensor]:
    """Source pixels and weights, both (size*up//down, taps), of every output pixel of a resize by up/down (one is 1).

    In twice-`up`-ths of a pixel all positions are integers, and a tap's distance in units of the kernel is an integer
    over 2*scale. So a weight is a multiple of 1/(16 scale^3), and after normalisation (their sum is `scale` when
    shrinking, 1 when enlarging) of 1/(16 scale^4).
    """
    scale = max(up, down)
    reach = 2 * down  # pixels on each side
    centre = (2 * torch.arange(size * up // down)[:, None] + 1) * down - up
    index = centre // (2 * up) + torch.arange(1 - reach, reach + 1)
    weight = _cubic((2 * up * index - centre).double() / (2 * scale))
    if border == "mirror":  # the edge pixel is repeated, and an image narrower than the kernel wraps more than once
        index = index % (2 * size)
        index = torch.minimum(index, 2 * size - 1 - index)
    else:
        index = index.clamp(0, size - 1)
    return index, weight / weight.sum(dim=1, keepdim=True)


def _cubic(x: Tensor) -> Tensor:
    """Keys' kernel, a = -0.5."""
    x = x.abs()
    inner = (1.5 * x - 2.5) * x**2 + 1
    outer = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, inner, torch.where(x < 2, outer, 0.0))
