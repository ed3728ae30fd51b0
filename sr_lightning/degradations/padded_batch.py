"""Images of different sizes in one batch, and random numbers per image, for the steps of a random degradation.

Everything is computed in float64. That is precise enough for the 8-bit results to be equal on every device and for
every batch size, and it is not affected by TF32 or autocast settings of a training script.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sr_lightning.errors import InputError

TIE = 1e-6  # values this close below a rounding tie round up like the tie, so that the last bit does not decide
_LUMA = (0.2989, 0.5870, 0.1140)  # weights of red, green and blue


class PaddedBatch(NamedTuple):
    """Images of different sizes, padded to one size.

    Attributes:
        images: (N, 3, H, W) float64, nominally in [0, 1]; each image is in the top left corner, the padding has
            arbitrary values.
        sizes: (N, 2) int64, height and width of each image.
    """

    images: Tensor
    sizes: np.ndarray


def uniform(random_bits: np.ndarray) -> np.ndarray:
    """Convert random uint64 to float64 in [0, 1)."""
    return (random_bits >> np.uint64(11)) * 2.0**-53


def scale_to_range(u: np.ndarray, bounds: Sequence[Any]) -> np.ndarray:
    """Map [0, 1) to [low, high)."""
    low, high = bounds
    return low + u * (high - low)


def sample_index(u: np.ndarray, weights: Sequence[float] | np.ndarray) -> np.ndarray:
    """Map [0, 1) to indices, with probabilities proportional to the weights."""
    ends = np.cumsum(weights) / np.sum(weights)
    return np.minimum(np.searchsorted(ends, u, side="right"), len(ends) - 1)


def apply_where(mask: np.ndarray, images: Tensor, function: Callable[..., Tensor], *parameters: Any) -> Tensor:
    """Replace the masked images by `function(images, *parameters)`.

    Args:
        mask: (N,) bool.
        images: (N, ...).
        function: Called with the masked images only; must keep their shape.
        parameters: Tensors or arrays (N, ...), one entry per image.
    """
    if mask.all():
        return function(images, *parameters)
    if not mask.any():
        return images
    index = torch.from_numpy(np.flatnonzero(mask))
    masked = [p[mask] if isinstance(p, np.ndarray) else p[index.to(p.device)] for p in parameters]
    index = index.to(images.device)
    return images.index_copy(0, index, function(images[index], *masked))


def gather_pixels(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Gather rows and columns chosen for each image: (N, C, H, W), (N, P), (N, Q) -> (N, C, P, Q)."""
    n, c, h, w = images.shape
    if n == 1:
        return images.index_select(2, rows[0]).index_select(3, columns[0])
    index = (rows[:, :, None] * w + columns[:, None, :]).reshape(n, 1, -1)
    return images.reshape(n, c, h * w).gather(2, index.expand(n, c, -1)).view(n, c, rows.shape[1], -1)


def per_image(values: np.ndarray, images: Tensor, dims: int = 4) -> Tensor:
    """Move values (N,) or (N, k) to the images' device and append dimensions of length 1, up to `dims` dimensions."""
    tensor = torch.from_numpy(np.ascontiguousarray(values)).to(images.device)
    return tensor.reshape(*tensor.shape, *[1] * (dims - tensor.ndim))


def to_levels(images: Tensor) -> Tensor:
    """Round to 8 bits: [0, 1], clamped -> integers 0..255, float64."""
    return images.clamp(0, 1).mul_(255).add_(0.5 + TIE).floor_()


def luma(images: Tensor) -> Tensor:
    """BT.601 luma, full range: (..., 3, H, W) -> (..., H, W)."""
    red, green, blue = images.unbind(-3)
    return _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue


def check(name: str, problems: Mapping[str, bool]) -> None:
    """Raise InputError with all texts whose value is True."""
    if wrong := [text for text, is_wrong in problems.items() if is_wrong]:
        raise InputError(f"degradation, {name}: {'; '.join(wrong)}")


def is_range(bounds: Any, low: float, high: float = float("inf")) -> bool:
    """Return True for two ordered numbers from `low` to `high`."""
    return (
        isinstance(bounds, Sequence)
        and len(bounds) == 2
        and all(isinstance(value, int | float) and not isinstance(value, bool) for value in bounds)
        and low <= bounds[0] <= bounds[1] <= high
    )


def is_probability(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
