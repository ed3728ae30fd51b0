"""Single-image super-resolution with PyTorch Lightning. `load` returns a trained network, ready to upscale images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sr_lightning.upscale.upscaler import Upscaler

__version__ = "0.1.0"
__all__ = ["load"]


def load(
    path: str | Path,
    *,
    allow: str | Sequence[str] | None = None,
    network: Mapping[str, Any] | None = None,
    **options: Any,
) -> "Upscaler":
    """Load a trained network as an `Upscaler` for PIL images, arrays and tensors.

    Args:
        path: A checkpoint written by train.py; a run's directory, whose best checkpoint is loaded; or another project's
            file of weights, whose network is found by names and shapes (docs/checkpoints.md).
        allow: Packages besides this project, or classes, that the checkpoint may name as its network.
        network: Settings of the network that another project's file does not show, such as {"scale": 2} for VDSR.
        **options: Arguments of `sr_lightning.upscale.upscaler.Upscaler`: device, precision, tile, self_ensemble.

    Raises:
        InputError: The file is missing, damaged or of an unknown network, names a class that is not allowed, or an
            option is invalid.

    Example:
        >>> import numpy as np
        >>> net = load(checkpoint)  # an ESPCN x2
        >>> net.upscale(np.zeros((10, 12, 3), np.uint8)).shape
        (20, 24, 3)
    """
    from sr_lightning.upscale.upscaler import Upscaler  # imports torch

    return Upscaler.load(path, allow, network, **options)
