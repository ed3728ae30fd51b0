"""MATLAB's `imresize(image, factor, "bicubic")`, bit for bit: it makes the LR images of every benchmark table.

A uint8 result equals MATLAB's because of these details: rows are resized first and rounded to uint8, then columns,
rounded again; the cubic kernel has a = -0.5 (Keys, "Cubic convolution interpolation for digital image processing",
1981) and is widened by the scale when downscaling; weights are normalised; halves round up. Newer versions of MATLAB
mirror the border (DIV2K, the EDSR benchmark archive), older ones replicate it (the SelfExSR archive).

Resizing along one axis is a product with a banded matrix. It is computed in blocks of `_BLOCK` output rows, as a dense
product of the block's part of the band with the input rows it needs. At x2 this takes five times the necessary
multiplications, but as matrix products, which read each input pixel from memory about once.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from sr_lightning.errors import InputError

Image = TypeVar("Image", Tensor, np.ndarray)

BORDERS = ("mirror", "replicate")
_BLOCK = 16


def downscale(hr: Tensor, scale: int, border: str = "mirror") -> Tensor:
    """Downscale like MATLAB's `imresize(hr, 1/scale, "bicubic")`, antialiased.

    Args:
        hr: (..., H, W), H and W multiples of `scale`; uint8 in 0..255, or floating point of any range.
        scale: Integer of at least 2.
        border: "mirror" (newer MATLAB, DIV2K) or "replicate" (older MATLAB, SelfExSR's benchmark files).

    Returns:
        (..., H/scale, W/scale) with hr's dtype, contiguous. uint8 is rounded after each of the two passes and equals
        MATLAB's result; floating point is computed in float64 and neither rounded nor clamped.

    Raises:
        InputError: The size is not a multiple of the scale, or the scale, the border or the dtype is not as above.

    Example:
        >>> downscale(torch.arange(16, dtype=torch.uint8).view(1, 4, 4), scale=2)
        tensor([[[ 2,  5],
                 [10, 13]]], dtype=torch.uint8)
    """
    _check(hr, scale, border)
    if hr.shape[-2] % scale or hr.shape[-1] % scale:
        raise InputError(
            f"cannot downscale {hr.shape[-2]}x{hr.shape[-1]} (height x width) by {scale}: "
            "crop it to a multiple of the scale first (crop_to_multiple)"
        )
    return _resize(hr, 1, scale, border)


def upscale(lr: Tensor, scale: int, border: str = "mirror") -> Tensor:
    """Upscale like MATLAB's `imresize(lr, scale, "bicubic")`: (..., h, w) -> (..., h*scale, w*scale).

    Any h and w. Dtypes, ranges, rounding and errors as in `downscale`.

    Example:
        >>> upscale(torch.tensor([[0.0, 1.0]]), scale=2).shape
        torch.Size([2, 4])
    """
    _check(lr, scale, border)
    return _resize(lr, scale, 1, border)


def crop_to_multiple(image: Image, scale: int) -> Image:
    """Crop a tensor or array (..., H, W) at the bottom and right to multiples of `scale`; returns a view.

    Raises:
        InputError: A side is smaller than the scale.

    Example:
        >>> crop_to_multiple(torch.zeros(3, 10, 13), scale=4).shape
        torch.Size([3, 8, 12])
    """
    height, width = image.shape[-2:]
    if min(height, width) < scale:
        raise InputError(f"an image of {height}x{width} (height x width) is too small for scale {scale}")
    return image[..., : height - height % scale, : width - width % scale]


@dataclass(frozen=True)
class Bicubic:
    """The benchmark degradation, `lr = degradation(hr, scale)`: `downscale` of uint8 images.

    Attributes:
        border: As in `downscale`.

    Raises:
        InputError: The border is unknown.

    Example:
        >>> Bicubic()(torch.zeros(3, 8, 8, dtype=torch.uint8), scale=4).shape
        torch.Size([3, 2, 2])
    """

    border: str = "mirror"
    version: ClassVar[int] = 1  # raise it when a pixel of the result changes, so that stored LR images are made again
    lr_source: ClassVar[str] = "made"  # the protocol's `lr_source` for LR made by this

    def __post_init__(self):
        _check_border(self.border)

    @property
    def key(self) -> dict[str, str | int]:
        """All that LR depends on besides HR and the scale."""
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
    # With 8-bit samples every exact result is a multiple of 1/(16 scale^4) (see _taps). A quarter of that step is added
    # to the half so that ties round up even if float64 cannot represent the weights (scale 6, 10, 12, ...).
    half = 0.5 + 1 / (64 * scale**4)
    for size in image.shape[-2:]:  # rows, then, transposed, columns
        blocks = []
        for start, stop, weight in _bands(size, up, down, border, dtype, image.device):
            block = weight @ image[..., start:stop, :].to(dtype)  # (b, k) @ (..., k, W) -> (..., b, W)
            if image.dtype == torch.uint8:
                block = block.add_(half).clamp_(0, 255).int()  # truncates; converting to uint8 directly is slower
            blocks.append(block.to(image.dtype))
        image = torch.cat(blocks, dim=-2).mT
    return image.contiguous()


def _working_dtype(image: Tensor, scale: int) -> torch.dtype:
    """Return float32 where it provably gives the same bits (uint8 on the CPU), else float64.

    x2, x4: the weights are multiples of 1/256 and 1/4096, so all products with samples and all partial sums, in any
    order, are multiples of 1/4096 below 512: 21 of float32's 24 bits, all exact.
    x3: the weights are multiples of 1/81, so no result is closer than 1/162 to a tie, and float32 is off by < 0.001.
    Upscaling has coarser weights. A GPU, autocast and torch.set_float32_matmul_precision may multiply float32 in TF32
    or bfloat16, which is too imprecise; they do not affect float64.
    """
    # pyright does not see `matmul`, which torch sets at run time
    precision = torch.backends.mkldnn.matmul.fp32_precision  # pyright: ignore[reportAttributeAccessIssue]
    true_float32 = image.device.type == "cpu" and not torch.is_autocast_enabled("cpu") and precision in ("none", "ieee")
    return torch.float32 if image.dtype == torch.uint8 and scale in (2, 3, 4) and true_float32 else torch.float64


@lru_cache(maxsize=128)
@torch.inference_mode(False)  # cached tensors must also work in later calls that need gradients
def _bands(size: int, up: int, down: int, border: str, dtype: torch.dtype, device: torch.device):
    """Matrix of one pass as a list of (start, stop, weight): the next b output rows are weight @ rows[start:stop]."""
    bands = []
    for index, tap in zip(*(t.split(_BLOCK) for t in _taps(size, up, down, border)), strict=True):
        start, stop = int(index.min()), int(index.max()) + 1
        weight = torch.zeros(len(index), stop - start, dtype=torch.float64)
        weight.scatter_add_(1, index - start, tap)  # adds, because taps beyond the border share pixels
        bands.append((start, stop, weight.to(device, dtype)))
    return bands


def _taps(size: int, up: int, down: int, border: str) -> tuple[Tensor, Tensor]:
    """Source pixels and weights of every output pixel of a resize by up/down, both (size*up//down, taps).

    Either `up` or `down` is 1. In units of 1/(2 up) pixels all positions are integers, and a tap's distance in units of
    the kernel is an integer divided by 2*scale. So weights are multiples of 1/(16 scale^3), and after normalisation
    (their sum is `scale` when downscaling, 1 when upscaling) of 1/(16 scale^4).
    """
    scale = max(up, down)
    reach = 2 * down  # source pixels on each side
    centre = (2 * torch.arange(size * up // down)[:, None] + 1) * down - up
    index = centre // (2 * up) + torch.arange(1 - reach, reach + 1)
    weight = _cubic((2 * up * index - centre).double() / (2 * scale))
    if border == "mirror":  # the edge pixel is repeated; images narrower than the kernel are mirrored repeatedly
        index = index % (2 * size)
        index = torch.minimum(index, 2 * size - 1 - index)
    else:
        index = index.clamp(0, size - 1)
    return index, weight / weight.sum(dim=1, keepdim=True)


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic kernel with a = -0.5."""
    x = x.abs()
    inner = (1.5 * x - 2.5) * x**2 + 1
    outer = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, inner, torch.where(x < 2, outer, 0.0))
