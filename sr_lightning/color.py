"""Conversion between RGB and ITU-R BT.601 YCbCr in studio range (MATLAB's rgb2ycbcr), and rounding to 8 bits.

Pure, differentiable functions of floating-point tensors in [0, 1], (..., C, H, W), computed in the dtype of the input.
They are elementwise, because a matrix product would run in TF32 or bfloat16 if a training script allows it, and be off
by a grey level.
"""

from collections.abc import Iterable

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
    """Convert RGB to BT.601 luma, not rounded.

    Args:
        image: RGB in [0, 1], (..., 3, H, W).

    Returns:
        (..., 1, H, W), from 16/255 (black) to 235/255 (white).

    Example:
        >>> round(rgb_to_y(torch.ones(3, 1, 1)).item() * 255, 3)
        235.0
    """
    return _mix(_planes(image), *_TO_YCBCR[0]).unsqueeze(-3)


def rgb_to_y709(image: Tensor) -> Tensor:
    """Convert RGB to BT.709 luma in the same range, not rounded: (..., 3, H, W) in [0, 1] -> (..., 1, H, W)."""
    return _mix(_planes(image), _Y709, 16 / 255).unsqueeze(-3)


def rgb_to_ycbcr(image: Tensor) -> Tensor:
    """Convert RGB (..., 3, H, W) in [0, 1] to BT.601 YCbCr, not rounded; grey has Cb = Cr = 128/255."""
    planes = _planes(image)
    return _image(_mix(planes, *row) for row in _TO_YCBCR)


def ycbcr_to_rgb(image: Tensor) -> Tensor:
    """Convert YCbCr to RGB, the inverse of `rgb_to_ycbcr`. Not clamped: colours outside the RGB gamut exceed [0, 1]."""
    planes = _planes(image)
    return _image(_mix(planes, *row) for row in _TO_RGB)


def quantize(image: Tensor) -> Tensor:
    """Round an image to 8 bits: clamp to [0, 1] and round half up to a multiple of 1/255.

    Args:
        image: Any shape, at least float16 (bfloat16 cannot represent 256 levels: pass `image.float()`).

    Returns:
        Same shape and dtype. NaN stays NaN.

    Raises:
        InputError: The dtype is an integer or bfloat16.

    Example:
        >>> (quantize(torch.tensor([-0.1, 0.5, 2.0])) * 255).tolist()
        [0.0, 128.0, 255.0]
    """
    check_float(image)
    if image.dtype == torch.bfloat16:
        raise InputError("bfloat16 cannot represent 8-bit levels: use quantize(image.float())")
    return image.clamp(0, 1).mul_(255).add_(0.5).floor_().mul_(1 / 255)


def to_uint8(image: Tensor) -> Tensor:
    """Convert an image to 8 bits: clamp to [0, 1], multiply by 255, round half up as in `quantize`.

    Args:
        image: Any shape, any floating-point dtype.

    Returns:
        The same shape, uint8.
    """
    return quantize(image.float()).mul_(255).round_().to(torch.uint8)


def _mix(planes: tuple[Tensor, ...], weights: list[float], offset: float) -> Tensor:
    """Compute Σ weight·plane + offset, allocating only the result."""
    first, second, third = planes
    return (first * weights[0]).add_(second, alpha=weights[1]).add_(third, alpha=weights[2]).add_(offset)


def _image(planes: Iterable[Tensor]) -> Tensor:
    """Stack planes (..., H, W) to (..., 3, H, W); torch.stack cannot be exported to ncnn."""
    return torch.cat([plane.unsqueeze(-3) for plane in planes], dim=-3)


def _planes(image: Tensor) -> tuple[Tensor, ...]:
    check_float(image)
    if image.ndim < 3 or image.shape[-3] != 3:
        raise InputError(f"expected three colour planes, (..., 3, H, W), got {tuple(image.shape)}")
    return image.unbind(-3)


def check_float(image: Tensor) -> None:
    """Refuse integers, because 0..255 would be taken for [0, 1].

    Raises:
        InputError: The dtype is not floating point.
    """
    if not image.is_floating_point():
        raise InputError(f"expected a floating-point image in [0, 1], got {image.dtype}: divide 8-bit values by 255")
