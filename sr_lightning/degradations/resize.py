"""Resizing without antialiasing, as OpenCV and `torch.nn.functional.interpolate` do it.

It aliases and overshoots: what images on the web have been through.
"""

from collections.abc import Sequence
from dataclasses import dataclass
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
    uniform,
)

METHODS = ("area", "bilinear", "bicubic")
_CUBIC_A = -0.75  # of OpenCV and PyTorch; MATLAB's is -0.5


def resize(images: Tensor, sizes: np.ndarray, new_sizes: np.ndarray, method: np.ndarray) -> Tensor:
    """Resize each image to a size of its own.

    Args:
        images: (N, C, H, W) float64.
        sizes: (N, 2), of the images in their planes.
        new_sizes: (N, 2).
        method: (N,) index into `METHODS`. "area" averages what lies under a new pixel; the others interpolate from
            two or four pixels a side.

    Returns:
        (N, C, H', W') with H' and W' the largest of the new sizes; neither rounded nor clamped.
    """
    taps = None
    for axis in (0, 1):
        old, new = sizes[:, axis], new_sizes[:, axis]
        if axis == 0 or (old != sizes[:, 0]).any() or (new != new_sizes[:, 0]).any():  # else those of the rows serve
            taps = None if (old == new).all() else _taps(old, new, method, images.device)
        if taps is not None:
            images = _along(images, 2 + axis, *taps)
    return images[..., : new_sizes[:, 0].max(), : new_sizes[:, 1].max()]


@dataclass(frozen=True)
class Resize:
    """Resizes by a random factor, by a method drawn from `METHODS`.

    Attributes:
        up: Probability of a factor above 1.
        down: Probability of one below; what is left keeps the size.
        factor: The smallest and the largest one.
        relative_to: "input": the factor is that of the size so far; "lr": that of the LR image.
    """

    up: float = 0.0
    down: float = 0.0
    factor: Sequence[float] = (1.0, 1.0)
    relative_to: str = "input"
    words: ClassVar[int] = 3

    def __post_init__(self) -> None:
        shares = is_probability(self.up) and is_probability(self.down)
        around_1 = is_range(self.factor, 1e-2, 16) and self.factor[0] <= 1 <= self.factor[1]
        check(
            "resize",
            {
                f"up={self.up}, down={self.down}: probabilities of sum 1 or less": not shares
                or self.up + self.down > 1,
                f"factor={self.factor}: one from 0.01 to 1, one from 1 to 16": not around_1,
                f"relative_to={self.relative_to}: choose input or lr": self.relative_to not in ("input", "lr"),
            },
        )

    def __call__(self, canvas: Canvas, words: np.ndarray, lr_sizes: np.ndarray) -> Canvas:
        u = uniform(words)
        low, high = self.factor
        direction = choose(u[:, 0], (self.up, self.down, max(0.0, 1 - self.up - self.down)))
        factor = np.choose(direction, (between(u[:, 1], (1, high)), between(u[:, 1], (low, 1)), 1.0))
        base = canvas.sizes if self.relative_to == "input" else lr_sizes
        new_sizes = np.maximum(np.floor(base * factor[:, None] + 0.5).astype(np.int64), 1)
        method = choose(u[:, 2], np.ones(len(METHODS)))
        return Canvas(resize(canvas.images, canvas.sizes, new_sizes, method), new_sizes)


def _along(images: Tensor, dim: int, index: Tensor, weight: Tensor) -> Tensor:
    """Resize one dimension, 2 or 3, by the pixels and weights (N, new, taps) of every new pixel."""
    n = len(images)
    shape = [*images.shape[:dim], index.shape[1], *images.shape[dim + 1 :]]
    result = images.new_zeros(shape)
    every = [n, 1, -1, 1] if dim == 2 else [n, 1, 1, -1]
    for i, w in zip(index.unbind(-1), weight.unbind(-1), strict=True):
        there = i.reshape(every)
        pixels = images.index_select(dim, i[0]) if n == 1 else images.gather(dim, there.expand(shape))
        result.addcmul_(pixels, w.reshape(every))
    return result


def _taps(old: np.ndarray, new: np.ndarray, method: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """Old pixels and their weights, both (N, largest new size, taps), of every new pixel of an axis."""
    area = method == METHODS.index("area")
    reach = int(np.where(area, -(-old // new) + 1, 4).max())
    at, tap = np.arange(new.max())[:, None], np.arange(reach)
    last, old, new, method = (values[:, None, None] for values in (old - 1, old, new, method))

    first = at * old // new  # whole numbers, so that both ends are exact
    count = -(-(at + 1) * old // new) - first
    area_index, area_weight = first + tap, (tap < count) / count

    centre = (2 * at + 1) * old - new  # in 2*new-ths of an old pixel
    index = centre // (2 * new) - 1 + tap
    distance = np.abs(2 * new * index - centre) / (2 * new)
    linear = np.maximum(1 - distance, 0)
    near = ((_CUBIC_A + 2) * distance - (_CUBIC_A + 3)) * distance**2 + 1
    far = _CUBIC_A * (((distance - 5) * distance + 8) * distance - 4)
    cubic = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))

    index = np.clip(np.where(method == 0, area_index, index), 0, last)
    weight = np.choose(method, (area_weight, linear, cubic))
    return torch.from_numpy(index).to(device), torch.from_numpy(weight).to(device)
