"""Images of different sizes in one batch, and random numbers per image, for the steps of a random degradation.

Everything is computed in float64. That is precise enough for the 8-bit results to be equal on every device and for
every batch size, and it is not affected by TF32 or autocast settings of a training script.

Random numbers, sizes and all else that has one value per image are on the CPU, which reads them: images are padded to
the largest of the batch, and only those that a step changes are computed. For a CUDA graph, which cannot be recorded if
shapes or operations depend on values, they are on the images' device instead (`PaddedBatch.fixed_shapes`).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
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
            arbitrary finite values.
        sizes: (N, 2) int64, height and width of each image.
        fixed_shapes: H and W follow from the settings, not from the sizes; steps read no value, but compute all that
            may be needed and select from it; sizes and random numbers are on the images' device, otherwise on the CPU.
    """

    images: Tensor
    sizes: Tensor
    fixed_shapes: bool = False


def shift_right(bits: Tensor, count: int) -> Tensor:
    """Shift int64 to the right; zeros enter from the left."""
    return (bits >> count) & ((1 << 64 - count) - 1)


def as_int64(random_bits: np.ndarray) -> Tensor:
    """Return 64-bit random numbers as int64, because torch computes little with uint64."""
    return torch.from_numpy(random_bits.view(np.int64))


def uniform(random_bits: Tensor) -> Tensor:
    """Convert 64 random bits, as int64, to float64 in [0, 1)."""
    return shift_right(random_bits, 11).double() * 2.0**-53


def scale_to_range(u: Tensor, bounds: Sequence[Any]) -> Tensor:
    """Map [0, 1) to [low, high)."""
    low, high = bounds
    return low + u * (high - low)


def sample_index(u: Tensor, weights: Sequence[float]) -> Tensor:
    """Map [0, 1) to indices, with probabilities proportional to the weights."""
    ends = constant(tuple((np.cumsum(weights) / np.sum(weights)).tolist()), u.device)
    return torch.searchsorted(ends, u.contiguous(), right=True).clamp_(max=len(ends) - 1)


@cache
@torch.inference_mode(False)  # the cached tensor must also work outside inference mode
def constant(values: tuple[Any, ...], device: torch.device) -> Tensor:
    """Return numbers as a tensor that stays on the device: while a graph is recorded, none can be copied there."""
    return torch.tensor(values, dtype=torch.float64 if isinstance(values[0], float) else None, device=device)


def apply_where(
    mask: Tensor, images: Tensor, function: Callable[..., Tensor], *parameters: Tensor, fixed_shapes: bool = False
) -> Tensor:
    """Replace the masked images by `function(images, *parameters)`.

    Args:
        mask: (N,) bool, on the CPU unless `fixed_shapes`.
        images: (N, ...).
        function: Called with the masked images only, or with all if `fixed_shapes`; must keep their shape.
        parameters: (N, ...), one entry per image.
        fixed_shapes: As of a `PaddedBatch`.
    """
    if fixed_shapes:
        return torch.where(mask.view(-1, *[1] * (images.ndim - 1)), function(images, *parameters), images)
    if mask.all():
        return function(images, *parameters)
    if not mask.any():
        return images
    (index,) = mask.nonzero(as_tuple=True)
    masked = [parameter[index.to(parameter.device)] for parameter in parameters]
    index = index.to(images.device)
    return images.index_copy(0, index, function(images[index], *masked))


def gather_pixels(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Gather rows and columns chosen for each image: (N, C, H, W), (N, P), (N, Q) -> (N, C, P, Q)."""
    n, c, h, w = images.shape
    if n == 1:
        return images.index_select(2, rows[0]).index_select(3, columns[0])
    index = (rows[:, :, None] * w + columns[:, None, :]).reshape(n, 1, -1)
    return images.reshape(n, c, h * w).gather(2, index.expand(n, c, -1)).view(n, c, rows.shape[1], -1)


def per_image(values: Tensor, images: Tensor, dims: int = 4) -> Tensor:
    """Move values (N,) or (N, k) to the images' device and append dimensions of length 1, up to `dims` dimensions."""
    return values.to(images.device).reshape(*values.shape, *[1] * (dims - values.ndim))


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
