"""Single-image super-resolution: `load` for the use of a trained network; the commands are train.py and evaluate.py."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sr_lightning.upscale.upscaler import Upscaler

__version__ = "0.1.0"


def load(path: str | Path, **options: object) -> "Upscaler":
    """A trained network that enlarges pictures: `load("best.ckpt").upscale(image)`.

    Args:
        path: A checkpoint of train.py, or its run's directory, whose best checkpoint is taken.
        options: Of `sr_lightning.upscale.upscaler.Upscaler`: device, precision, tile, self_ensemble.

    Raises:
        InputError: The file is missing, unreadable or not of this project, or an option is wrong.
    """
    from sr_lightning.upscale.upscaler import Upscaler  # brings torch

    return Upscaler.load(path, **options)
