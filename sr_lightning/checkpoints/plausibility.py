"""Checks of weights that a file holds, where no checksum tells whether they are as written."""

from collections.abc import Mapping

import torch
from torch import Tensor

LARGEST = 1e7  # of a plausible weight; published files have up to a few hundred, for images in 0..255


def check_tensors(weights: Mapping[str, object]) -> None:
    """Check that every value is an ordinary tensor, with memory for all of its values.

    Raises:
        TypeError: Names the first that is not.
    """
    for key, value in weights.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{key} is no tensor but {type(value).__name__}")
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized or value.is_nested:
            raise TypeError(f"{key} is a sparse, quantized or nested tensor, or has no values")
        if value.numel() * value.itemsize > value.untyped_storage().nbytes():
            raise TypeError(f"{key} has more values ({value.numel()}) than memory")


def not_finite(weights: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors with NaN or infinite values."""
    return [key for key, value in weights.items() if not value.isfinite().all()]


def implausible(weights: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors with values that no training yields: NaN, infinite, beyond LARGEST."""
    return [key for key, value in weights.items() if value.is_floating_point() and not (value.abs() <= LARGEST).all()]
