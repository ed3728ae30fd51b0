"""Resizing without antialiasing, as in OpenCV and `torch.nn.functional.interpolate`.

It produces the aliasing and overshoot of images on the web.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sr_lightning.degradations.padded_batch import (
    PaddedBatch,
    check,
    is_probability,
    is_range,
    sample_index,
    scale_to_range,
    uniform,
)

METHODS = ("area", "bilinear", "bicubic")
_CUBIC_A = -0.75  # OpenCV and PyTorch; MATLAB has -0.5
_CUBIC_REACH = 4  # pixels, also room for the two of bilinear

Bounds = tuple[tuple[int, int], int]  # largest new height and width, and most source pixels of a new one per axis


def resize(images: Tensor, sizes: Tensor, new_sizes: Tensor, method: Tensor, bounds: "Bounds | None" = None) -> Tensor:
    """Resize each image to its own new size.

    Args:
        images: (N, C, H, W) float64.
        sizes: (N, 2) height and width of each image, see `PaddedBatch`.
        new_sizes: (N, 2) new height and width of each image.
        method: (N,) index into `METHODS`. "area" averages the pixels under a new pixel, "bilinear" and "bicubic"
            interpolate between 2 and 4 pixels per axis.
        bounds: Bounds of the new sizes, then no value is read.

    Returns:
        (N, C, H', W') with H' and W' the largest of the new sizes, or their bounds; neither rounded nor clamped.
    """
    if bounds is not None:
        return _by_products(images, sizes, new_sizes, method, *bounds)
    taps = None
    for axis in (0, 1):
        old, new = sizes[:, axis], new_sizes[:, axis]
        if axis == 0 or (old != sizes[:, 0]).any() or (new != new_sizes[:, 0]).any():  # else reuse the rows' taps
            area = -(-old // new) + 1
            reach = torch.where(method == METHODS.index("area"), area, _CUBIC_REACH)
            taps = None if (old == new).all() else _taps(old, new, method, int(new.max()), int(reach.max()))
        if taps is not None:
            images = _along(images, 2 + axis, *(tap.to(images.device) for tap in taps))
    height, width = new_sizes.amax(0).tolist()
    return images[..., :height, :width]


@dataclass(frozen=True)
class Resize:
    """Random step: resize by a random factor with a random method of `METHODS`.

    Attributes:
        up: Probability of a factor above 1.
        down: Probability of a factor below 1. Otherwise the factor is 1.
        factor: Smallest and largest factor.
        relative_to: "input": the factor is relative to the current size; "lr": to the size of the LR image.

    Raises:
        InputError: One or more settings are invalid; the message lists all of them.

    Example:
        >>> batch = PaddedBatch(torch.rand(1, 3, 16, 24, dtype=torch.float64), torch.tensor([[16, 24]]))
        >>> random_bits = torch.zeros(1, Resize.num_draws, dtype=torch.int64)
        >>> Resize(relative_to="lr")(batch, random_bits, lr_size=(4, 6)).sizes
        tensor([[4, 6]])
    """

    up: float = 0.0
    down: float = 0.0
    factor: Sequence[float] = (1.0, 1.0)
    relative_to: str = "input"
    num_draws: ClassVar[int] = 3

    def __post_init__(self) -> None:
        shares = is_probability(self.up) and is_probability(self.down)
        around_1 = is_range(self.factor, 1e-2, 16) and self.factor[0] <= 1 <= self.factor[1]
        check(
            "resize",
            {
                f"up={self.up}, down={self.down}: give probabilities that sum to 1 or less": not shares
                or self.up + self.down > 1,
                f"factor={self.factor}: give [low, high] with 0.01 <= low <= 1 <= high <= 16": not around_1,
                f"relative_to={self.relative_to}: choose input or lr": self.relative_to not in ("input", "lr"),
            },
        )

    def __call__(self, batch: PaddedBatch, random_bits: Tensor, lr_size: tuple[int, int]) -> PaddedBatch:
        images, sizes, fixed_shapes = batch
        u = uniform(random_bits)
        low, high = self.factor
        direction = sample_index(u[:, 0], (self.up, self.down, max(0.0, 1 - self.up - self.down)))
        larger, smaller = scale_to_range(u[:, 1], (1, high)), scale_to_range(u[:, 1], (low, 1))
        factor = torch.where(direction == 0, larger, torch.where(direction == 1, smaller, 1.0))
        base = sizes.unbind(1) if self.relative_to == "input" else lr_size
        new_sizes = torch.stack([(side * factor + 0.5).floor().long().clamp(min=1) for side in base], dim=1)
        method = sample_index(u[:, 2], [1] * len(METHODS))
        bounds = self._bounds(images.shape[-2:], lr_size) if fixed_shapes else None
        return batch._replace(images=resize(images, sizes, new_sizes, method, bounds), sizes=new_sizes)

    def _bounds(self, shape: Sequence[int], lr_size: Sequence[int]) -> Bounds:
        """Return bounds for images of up to a height and width."""
        low, high = self.factor[0] if self.down else 1, self.factor[1] if self.up else 1
        bases = shape if self.relative_to == "input" else lr_size
        ratios = [
            old / _scaled(old if self.relative_to == "input" else lr_side, low)
            for side, lr_side in zip(shape, lr_size, strict=True)
            for old in range(1, side + 1)
        ]
        height, width = (_scaled(side, high) for side in bases)
        return (height, width), max(_CUBIC_REACH, math.ceil(max(ratios)) + 1)


def _scaled(side: int, factor: float) -> int:
    return max(math.floor(side * factor + 0.5), 1)


def _along(images: Tensor, dim: int, index: Tensor, weight: Tensor) -> Tensor:
    """Resize dimension 2 or 3, given source pixels and weights (N, new, taps) of every new pixel."""
    if dim == 3:
        return _along(images.mT, 2, index, weight).mT
    n, c, height, width = images.shape
    rows = images.reshape(-1, width)
    index = index[:, None] + height * torch.arange(n * c, device=images.device).view(n, c, 1, 1)  # (n, c, new, taps)
    result = images.new_zeros(n, c, index.shape[2], width)
    for i, w in zip(index.unbind(-1), weight.unbind(-1), strict=True):
        pixels = rows.index_select(0, i.flatten()).view_as(result)  # copies whole rows: faster than gather
        result.addcmul_(pixels, w[:, None, :, None])
    return result


def _by_products(
    images: Tensor, sizes: Tensor, new_sizes: Tensor, method: Tensor, shape: tuple[int, int], reach: int
) -> Tensor:
    """Resize to a shape (H', W') as products with matrices (N, H', H) and (N, W, W'), by few and large operations."""
    index, weight = _taps(sizes.T.flatten(), new_sizes.T.flatten(), method.tile(2), max(shape), reach)
    height, width = images.shape[-2:]
    at = torch.arange(max(height, width), device=images.device)
    matrices = images.new_zeros(*index.shape[:2], len(at))  # (2 N, H' or W', H or W)
    for i, w in zip(index.split(1, -1), weight.split(1, -1), strict=True):  # adds: at the border taps share pixels
        matrices += torch.where(i == at, w, 0.0)
    rows, columns = matrices.chunk(2)
    return rows[:, None, : shape[0], :height] @ images @ columns[:, None, : shape[1], :width].mT


def _taps(old: Tensor, new: Tensor, method: Tensor, length: int, reach: int) -> tuple[Tensor, Tensor]:
    """Source pixels and weights of every new pixel along an axis, both (N, length, reach)."""
    at, tap = torch.arange(length, device=old.device)[:, None], torch.arange(reach, device=old.device)
    last, old, new, method = (values[:, None, None] for values in (old - 1, old, new, method))

    first = at * old // new  # integer arithmetic: both ends are exact
    count = -(-(at + 1) * old // new) - first
    area_index, area_weight = first + tap, (tap < count).double() / count

    centre = (2 * at + 1) * old - new  # in units of 1/(2*new) old pixels
    index = centre // (2 * new) - 1 + tap
    distance = (2 * new * index - centre).abs().double() / (2 * new)
    linear = (1 - distance).clamp(min=0)
    near = ((_CUBIC_A + 2) * distance - (_CUBIC_A + 3)) * distance**2 + 1
    far = _CUBIC_A * (((distance - 5) * distance + 8) * distance - 4)
    cubic = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))

    area, bilinear = (method == METHODS.index(name) for name in ("area", "bilinear"))
    index = torch.minimum(torch.where(area, area_index, index).clamp(min=0), last)
    return index, torch.where(area, area_weight, torch.where(bilinear, linear, cubic))
