"""RGB and ITU-R BT.601 YCbCr in studio range (MATLAB's rgb2ycbcr), and the 8-bit grid.

Pure functions on floating-point tensors in [0, 1] of shape (..., C, H, W); differentiable; each computes in the dtype
it is given. All are elementwise on purpose: a matrix product would run in TF32 or bfloat16 wherever a training script
allows that, and a grey level is gone.
"""

import torch
from torch import Tensor

from sr_lightning.errors import InputError

# Rows Y, Cb, Cr over columns R, G, B, in grey levels: RGB in [0, 1] -> YCbCr in 16..235 (Y) and 16..240 (Cb, Cr).
_YCBCR = torch.tensor(
    [[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]], dtype=torch.float64
)
_OFFSET = torch.tensor([16.0, 128.0, 128.0], dtype=torch.float64)
_RGB = torch.linalg.inv(_YCBCR)

_TO_YCBCR = list(zip((_YCBCR / 255).tolist(), (_OFFSET / 255).tolist(), strict=True))
_TO_RGB = list(zip((_RGB * 255).tolist(), (-_RGB @ _OFFSET).tolist(), strict=True))
_Y709 = [0.2126 * 219 / 255, 0.7152 * 219 / 255, 0.0722 * 219 / 255]


def rgb_to_y(image: Tensor) -> Tensor:
    """BT.601 luma, not rounded.

    Args:
        image: RGB in [0, 1], (..., 3, H, W).

    Returns:
        (..., 1, H, W), from 16/255 (black) to 235/255 (white).
    """
    return _mix(_planes(image), *_TO_YCBCR[0]).unsqueeze(-3)


def rgb_to_y709(image: Tensor) -> Tensor:
    """BT.709 luma in the same range, not rounded: (..., 3, H, W) in [0, 1] -> (..., 1, H, W)."""
    return _mix(_planes(image), _Y709, 16 / 255).unsqueeze(-3)


def rgb_to_ycbcr(image: Tensor) -> Tensor:
    """BT.601 luma and chroma, not rounded: (..., 3, H, W) in [0, 1] -> the same shape, grey is Cb = Cr = 128/255."""
    planes = _planes(image)
    return torch.stack([_mix(planes, *row) for row in _TO_YCBCR], dim=-3)


def ycbcr_to_rgb(image: Tensor) -> Tensor:
    """The inverse of `rgb_to_ycbcr`, not clamped: YCbCr outside the RGB cube gives values outside [0, 1]."""
    planes = _planes(image)
    return torch.stack([_mix(planes, *row) for row in _TO_RGB], dim=-3)


def quantize(image: Tensor) -> Tensor:
    """What an 8-bit file keeps of an image: clamped to [0, 1], rounded half up to a multiple of 1/255.

    Args:
        image: any shape, float16 or finer (bfloat16 cannot tell 255 levels apart: pass `image.float()`).

    Returns:
        The same shape and dtype. NaN stays NaN.
    """
    check_float(image)
    if image.dtype == torch.bfloat16:
        raise InputError("bfloat16 cannot hold the 8-bit grid: quantize(image.float()) instead")
    return image.clamp(0, 1).mul_(255).add_(0.5).floor_().mul_(1 / 255)


def to_uint8(image: Tensor) -> Tensor:
    """The 8-bit levels of an image: clamped to [0, 1], times 255, rounded half up as in `quantize`.

    Args:
        image: any shape, any floating-point dtype, in [0, 1].

    Returns:
        The same shape, uint8.
    """
    return quantize(image.float()).mul_(255).round_().to(torch.uint8)


def _mix(planes: tuple[Tensor, ...], weights: list[float], offset: float) -> Tensor:
    """One row of the matrix: Σ weight·plane + offset, with no memory but the result."""
    first, second, third = planes
    return (first * weights[0]).add_(second, alpha=weights[1]).add_(third, alpha=weights[2]).add_(offset)


def _planes(image: Tensor) -> tuple[Tensor, ...]:
    check_float(image)
    if image.ndim < 3 or image.shape[-3] != 3:
        raise InputError(f"three colour planes are needed, (..., 3, H, W); got {tuple(image.shape)}")
    return image.unbind(-3)


def check_float(image: Tensor) -> None:
    """Refuse integers: 0..255 would pass for [0, 1] and score nonsense."""
    if not image.is_floating_point():
        raise InputError(f"an image in [0, 1] is needed, got {image.dtype}: divide 8-bit values by 255")
