"""MATLAB's `imresize(image, factor, "bicubic")`, bit for bit: it makes the LR images of every benchmark table.

A uint8 result equals MATLAB's because of these details: rows are resized first and rounded to uint8, then columns,
rounded again; the cubic kernel has a = -0.5 (Keys, "Cubic convolution interpolation for digital image processing",
1981) and is widened by the scale when downscaling; weights are normalised; halves round up. Newer versions of MATLAB
mirror the border (DIV2K, the EDSR benchmark archive), older ones replicate it (the SelfExSR archive).

Resizing along one axis is a product with a banded matrix. It is computed in float64, in blocks of `_BLOCK` output rows,
as a dense product of the block's part of the band with the input rows it needs. On a CPU, torch's kernel for uint8
downscales 8-bit images instead, except at the border: it is faster, and provably gives the same bits at the scales in
`_INTEGER_SCALES`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from typing import ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from sr_lightning.errors import InputError

Image = TypeVar("Image", Tensor, np.ndarray)

BORDERS = ("mirror", "replicate")
_BLOCK = 16
_LEVELS = {torch.uint8: 255, torch.uint16: 65535}

# Scales at which torch's antialiased bicubic kernel for uint8 gives MATLAB's bits away from the border. It has the same
# taps, rounds the weights to at least 16 fractional bits, sums in integers and rounds half up after each axis.
# x2, x4, x8: the weights are multiples of 1/256, 1/4096, 1/65536 (see _taps), so that the sums are exact.
# x3: the weights are multiples of 1/81, so that no exact result is closer than 1/162 = 0.0062 to a tie, and rounding
# the weights to 16 bits moves a result by less than 0.0053.
_INTEGER_SCALES = (2, 3, 4, 8)


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


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Resize like newer MATLAB's `imresize(image, [height width], "bicubic")`, antialiased.

    Args:
        image: (..., H, W); uint8, uint16, or floating point of any range.
        height: At least 1.
        width: At least 1.

    Returns:
        (..., height, width) with the image's dtype. Integers are rounded after each of the two passes, floating point
        is neither rounded nor clamped.

    Example:
        >>> resize(torch.zeros(3, 8, 8), height=5, width=7).shape
        torch.Size([3, 5, 7])
    """
    return torch.cat(list(resize_strips([image], (image.shape[-2], image.shape[-1]), (height, width))), dim=-2)


def resize_strips(strips: Iterable[Tensor], size: tuple[int, int], new_size: tuple[int, int]) -> Iterator[Tensor]:
    """Resize an image that arrives in strips, so that it is never whole in memory; the result is that of `resize`.

    Args:
        strips: (..., rows, W) of any number of rows, from top to bottom.
        size: H and W of the image.
        new_size: H and W of the result.

    Yields:
        Strips of the result, from top to bottom.

    Example:
        >>> image = torch.arange(128.0).view(16, 8)
        >>> strips = list(resize_strips(image.split(4), size=(16, 8), new_size=(10, 5)))
        >>> torch.equal(torch.cat(strips), resize(image, height=10, width=5))
        True
    """
    (rows_up, rows_down), (up, down) = (
        (new // gcd(new, old), old // gcd(new, old)) for new, old in zip(new_size, size, strict=True)
    )
    if up * rows_down < rows_up * down:  # MATLAB resizes along the axis of the smaller factor first
        strips = (_resize_axis(strip, -1, up, down, "mirror") for strip in strips)
        yield from _resize_rows(strips, size[0], rows_up, rows_down)
    else:
        for strip in _resize_rows(strips, size[0], rows_up, rows_down):
            yield _resize_axis(strip, -1, up, down, "mirror")


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
    for axis in (-2, -1):  # rows, then columns
        image = _resize_axis(image, axis, up, down, border)
    return image.contiguous()


def _resize_axis(image: Tensor, axis: int, up: int, down: int, border: str) -> Tensor:
    """Resize along one axis (-2 or -1) by up/down, in lowest terms."""
    if up == down:
        return image
    integers = image.dtype == torch.uint8 and image.device.type == "cpu" and up == 1 and down in _INTEGER_SCALES
    if integers and image.shape[axis] >= 4 * down and _kernel_is_exact(down):
        return _downscale_in_integers(image, axis, down, border)
    return _multiply(image, axis, up, down, border)


def _resize_rows(strips: Iterable[Tensor], height: int, up: int, down: int) -> Iterator[Tensor]:
    """Resize along the rows by up/down, in lowest terms, an image of this height that arrives in strips."""
    if up == down:
        yield from strips
        return
    rows, top, bands = None, 0, None  # the rows that later bands need, the first one's number
    for strip in strips:
        rows = strip if rows is None else torch.cat([rows, strip], dim=-2)
        bands = list(_bands(height, up, down, "mirror", rows.device)) if bands is None else bands
        blocks = []
        while bands and bands[0][1] <= top + rows.shape[-2]:
            start, stop, weight = bands.pop(0)
            blocks.append(_product(weight, rows[..., start - top : stop - top, :], max(up, down)))
        if blocks:
            yield torch.cat(blocks, dim=-2)
        needed = min((start for start, _, _ in bands), default=height)
        rows, top = rows[..., needed - top :, :], needed


def _multiply(image: Tensor, axis: int, up: int, down: int, border: str) -> Tensor:
    """Resize along one axis (-2 or -1) by matrix products."""
    image = image.transpose(axis, -2)
    bands = _bands(image.shape[-2], up, down, border, image.device)
    blocks = [_product(weight, image[..., start:stop, :], max(up, down)) for start, stop, weight in bands]
    return torch.cat(blocks, dim=-2).transpose(axis, -2)


def _product(weight: Tensor, rows: Tensor, scale: int) -> Tensor:
    """Multiply (b, k) @ (..., k, W) -> (..., b, W), with the dtype of the rows."""
    block = weight @ rows.double()
    if rows.dtype in _LEVELS:
        # With 8-bit samples every exact result is a multiple of 1/(16 scale^4) (see _taps). A quarter of that step is
        # added to the half so that ties round up even if float64 cannot represent the weights (scale 6, 10, 12, ...).
        half = 0.5 + 1 / (64 * scale**4)
        block = block.add_(half).clamp_(0, _LEVELS[rows.dtype]).int()  # truncates; directly to uint8 is slower
    return block.to(rows.dtype)


def _downscale_in_integers(image: Tensor, axis: int, scale: int, border: str) -> Tensor:
    """Downscale uint8 along one axis (-2 or -1) by torch's kernel, at the border by matrix products."""
    size = list(image.shape[-2:])
    size[axis] //= scale
    planes = image.reshape(-1, *(1, *image.shape)[-3:])  # (N, C, H, W)
    lr = interpolate(planes, size=size, mode="bicubic", antialias=True).reshape(*image.shape[:-2], *size)
    # torch drops the taps beyond the border, which belong to the two outer pixels. These depend on 4*scale HR pixels.
    for start, outer in ((0, 0), (image.shape[axis] - 4 * scale, 2)):
        four = _multiply(image.narrow(axis, start, 4 * scale), axis, 1, scale, border)
        lr.narrow(axis, start // scale + outer, 2).copy_(four.narrow(axis, outer, 2))
    return lr


@lru_cache
def _kernel_is_exact(scale: int) -> bool:
    """Compare torch's kernel with matrix products on noise, in case another version of torch computes differently."""
    noise = torch.randint(0, 256, (64 * scale, 256), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return torch.equal(_downscale_in_integers(noise, -2, scale, "mirror"), _multiply(noise, -2, 1, scale, "mirror"))


@lru_cache(maxsize=128)
@torch.inference_mode(False)  # cached tensors must also work in later calls that need gradients
def _bands(size: int, up: int, down: int, border: str, device: torch.device):
    """Matrix of one pass as a list of (start, stop, weight): the next b output rows are weight @ rows[start:stop]."""
    bands = []
    for index, tap in zip(*(t.split(_BLOCK) for t in _taps(size, up, down, border)), strict=True):
        start, stop = int(index.min()), int(index.max()) + 1
        weight = torch.zeros(len(index), stop - start, dtype=torch.float64)
        weight.scatter_add_(1, index - start, tap)  # adds, because taps beyond the border share pixels
        bands.append((start, stop, weight.to(device)))
    return bands


def _taps(size: int, up: int, down: int, border: str) -> tuple[Tensor, Tensor]:
    """Source pixels and weights of every output pixel of a resize by up/down, both (size*up//down, taps).

    In units of 1/(2 up) pixels all positions are integers, and a tap's distance in units of the kernel is an integer
    divided by 2*scale. So, if `up` or `down` is 1, weights are multiples of 1/(16 scale^3), and after normalisation
    (their sum is `scale` when downscaling, 1 when upscaling) of 1/(16 scale^4).
    """
    scale = max(up, down)
    reach = -(-2 * scale // up)  # source pixels on each side
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
