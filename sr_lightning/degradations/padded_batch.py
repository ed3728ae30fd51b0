"""What the steps of a random degradation work on: images of several sizes at once, and random numbers for each image.

All is computed in float64. That is exact enough for the 8-bit results to be the same on every device and however many
images are computed together, and no setting of a training script (TF32, autocast) touches it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sr_lightning.errors import InputError

TIE = 1e-6  # what lies this close below a tie is rounded as the tie: a last bit that differs must not decide it
_LUMA = (0.2989, 0.5870, 0.1140)  # weights of red, green and blue


class Canvas(NamedTuple):
    """Images of several sizes in planes of one.

    Attributes:
        images: (N, 3, H, W) float64, nominally in [0, 1]; each image in the top left, beyond it anything.
        sizes: (N, 2) int64, height and width of each image.
    """

    images: Tensor
    sizes: np.ndarray


def uniform(words: np.ndarray) -> np.ndarray:
    """Random 64-bit words, uint64 -> float64 in [0, 1)."""
    return (words >> np.uint64(11)) * 2.0**-53


def between(u: np.ndarray, bounds: Sequence[float]) -> np.ndarray:
    """[0, 1) -> [low, high)."""
    low, high = bounds
    return low + u * (high - low)


def choose(u: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """[0, 1) -> indices, each as likely as its share of the weights."""
    ends = np.cumsum(weights) / np.sum(weights)
    return np.minimum(np.searchsorted(ends, u, side="right"), len(ends) - 1)


def some(chosen: np.ndarray, images: Tensor, function: Callable[..., Tensor], *parameters: Any) -> Tensor:
    """`function(images, *parameters)` for the chosen images, the others as they are.

    Args:
        chosen: (N,) bool.
        images: (N, ...).
        function: Keeps the shape.
        parameters: Tensors or arrays (N, ...), one entry per image.
    """
    if chosen.all():
        return function(images, *parameters)
    if not chosen.any():
        return images
    index = torch.from_numpy(np.flatnonzero(chosen))
    its = [p[chosen] if isinstance(p, np.ndarray) else p[index.to(p.device)] for p in parameters]
    index = index.to(images.device)
    return images.index_copy(0, index, function(images[index], *its))


def take(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Of each image its own rows and columns: (N, C, H, W), (N, P), (N, Q) -> (N, C, P, Q)."""
    n, c, _, w = images.shape
    if n == 1:
        return images.index_select(2, rows[0]).index_select(3, columns[0])
    picked = images.gather(2, rows[:, None, :, None].expand(n, c, -1, w))
    return picked.gather(3, columns[:, None, None, :].expand(n, c, rows.shape[1], -1))


def per_image(values: np.ndarray, images: Tensor, dims: int = 4) -> Tensor:
    """(N,) or (N, k) numbers of the images, on their device, with ones appended to `dims` dimensions."""
    values = torch.from_numpy(np.ascontiguousarray(values)).to(images.device)
    return values.reshape(*values.shape, *[1] * (dims - values.ndim))


def to_levels(images: Tensor) -> Tensor:
    """What an 8-bit file keeps: [0, 1], clamped -> whole numbers 0..255, float64."""
    return images.clamp(0, 1).mul_(255).add_(0.5 + TIE).floor_()


def luma(images: Tensor) -> Tensor:
    """BT.601's, full range: (..., 3, H, W) -> (..., H, W)."""
    return sum(weight * plane for weight, plane in zip(_LUMA, images.unbind(-3), strict=True))


def check(where: str, problems: Mapping[str, bool]) -> None:
    """Raise InputError with all texts that are true."""
    if wrong := [text for text, is_wrong in problems.items() if is_wrong]:
        raise InputError(f"degradation, {where}: {'; '.join(wrong)}")


def is_range(bounds: Any, low: float, high: float = float("inf")) -> bool:
    """Two ordered numbers within `low` and `high`, both included."""
    return (
        isinstance(bounds, Sequence)
        and len(bounds) == 2
        and all(isinstance(value, int | float) and not isinstance(value, bool) for value in bounds)
        and low <= bounds[0] <= bounds[1] <= high
    )


def is_probability(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
