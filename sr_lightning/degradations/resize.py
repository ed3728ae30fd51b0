"""Resizing without antialiasing, as in OpenCV and `torch.nn.functional.interpolate`.

It produces the aliasing and overshoot of images on the web.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
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


def resize(images: Tensor, sizes: np.ndarray, new_sizes: np.ndarray, method: np.ndarray) -> Tensor:
    """Resize each image to its own new size.

    Args:
        images: (N, C, H, W) float64.
        sizes: (N, 2) height and width of each image, see `PaddedBatch`.
        new_sizes: (N, 2) new height and width of each image.
        method: (N,) index into `METHODS`. "area" averages the pixels under a new pixel, "bilinear" and "bicubic"
            interpolate between 2 and 4 pixels per axis.

    Returns:
        (N, C, H', W') with H' and W' the largest of the new sizes; neither rounded nor clamped.
    """
    taps = None
    for axis in (0, 1):
        old, new = sizes[:, axis], new_sizes[:, axis]
        if axis == 0 or (old != sizes[:, 0]).any() or (new != new_sizes[:, 0]).any():  # else reuse the rows' taps
            taps = None if (old == new).all() else _taps(old, new, method, images.device)
        if taps is not None:
            images = _along(images, 2 + axis, *taps)
    return images[..., : new_sizes[:, 0].max(), : new_sizes[:, 1].max()]


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
        >>> batch = PaddedBatch(torch.rand(1, 3, 16, 24, dtype=torch.float64), np.array([[16, 24]]))
        >>> random_bits = np.zeros((1, Resize.num_draws), np.uint64)
        >>> Resize(relative_to="lr")(batch, random_bits, lr_sizes=np.array([[4, 6]])).sizes
        array([[4, 6]])
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

    def __call__(self, batch: PaddedBatch, random_bits: np.ndarray, lr_sizes: np.ndarray) -> PaddedBatch:
        u = uniform(random_bits)
        low, high = self.factor
        direction = sample_index(u[:, 0], (self.up, self.down, max(0.0, 1 - self.up - self.down)))
        larger, smaller = scale_to_range(u[:, 1], (1, high)), scale_to_range(u[:, 1], (low, 1))
        factor = np.choose(direction, (larger, smaller, np.ones_like(larger)))
        base = batch.sizes if self.relative_to == "input" else lr_sizes
        new_sizes = np.maximum(np.floor(base * factor[:, None] + 0.5).astype(np.int64), 1)
        method = sample_index(u[:, 2], np.ones(len(METHODS)))
        return PaddedBatch(resize(batch.images, batch.sizes, new_sizes, method), new_sizes)


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


def _taps(old: np.ndarray, new: np.ndarray, method: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """Source pixels and weights of every new pixel along an axis, both (N, largest new size, taps)."""
    area = method == METHODS.index("area")
    reach = int(np.where(area, -(-old // new) + 1, 4).max())
    at, tap = np.arange(new.max())[:, None], np.arange(reach)
    last, old, new, method = (values[:, None, None] for values in (old - 1, old, new, method))

    first = at * old // new  # integer arithmetic: both ends are exact
    count = -(-(at + 1) * old // new) - first
    area_index, area_weight = first + tap, (tap < count) / count

    centre = (2 * at + 1) * old - new  # in units of 1/(2*new) old pixels
    index = centre // (2 * new) - 1 + tap
    distance = np.abs(2 * new * index - centre) / (2 * new)
    linear = np.maximum(1 - distance, 0)
    near = ((_CUBIC_A + 2) * distance - (_CUBIC_A + 3)) * distance**2 + 1
    far = _CUBIC_A * (((distance - 5) * distance + 8) * distance - 4)
    cubic = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))

    index = np.clip(np.where(method == 0, area_index, index), 0, last)
    weight = np.choose(method, (area_weight, linear, cubic))
    return torch.from_numpy(index).to(device), torch.from_numpy(weight).to(device)
