"""Single-image super-resolution with PyTorch Lightning: `load` a trained network, `train` one, `evaluate` it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sr_lightning.errors import require_training_packages

if TYPE_CHECKING:
    from sr_lightning.api.scores import Scores
    from sr_lightning.api.training import Run
    from sr_lightning.upscale.upscaler import Upscaler

__version__ = "0.1.0"
__all__ = ["evaluate", "load", "train"]


def load(
    path: str | Path = "luma_x2",
    *,
    allow: str | Sequence[str] | None = None,
    network: Mapping[str, Any] | None = None,
    sha256: str | None = None,
    **options: Any,
) -> "Upscaler":
    """Load a trained network as an `Upscaler` for PIL images, arrays and tensors.

    Args:
        path: The name of a network that comes with the package, such as fast_x2, or of a published one
            (docs/weights.md); a checkpoint written by train.py; a run's directory, whose best checkpoint is loaded;
            another project's file of weights, whose network is found by names and shapes (docs/checkpoints.md); an
            address, https://…/FILE; or hf:USER/NAME[@REVISION]. What is elsewhere is downloaded once.
        allow: Packages besides this project, or classes, that the checkpoint may name as its network.
        network: Settings of the network that another project's file does not show, such as {"scale": 2} for VDSR.
        sha256: Digest of the file at an address, 64 hexadecimal digits; None: not verified.
        **options: Arguments of `sr_lightning.upscale.upscaler.Upscaler`: device, precision, tile, self_ensemble.

    Raises:
        InputError: The file is missing, damaged or of an unknown network, names a class that is not allowed, or an
            option is invalid; or a download fails or has another digest.

    Example:
        >>> import numpy as np
        >>> net = load(checkpoint)  # an ESPCN x2
        >>> net.upscale(np.zeros((10, 12, 3), np.uint8)).shape
        (20, 24, 3)
    """
    from sr_lightning.pretrained.web import with_digest

    path = path if sha256 is None else with_digest(str(path), sha256)
    from sr_lightning.upscale.upscaler import Upscaler  # imports torch

    return Upscaler.load(path, allow, network, **options)


def train(*overrides: str, **settings: Any) -> "Run":
    """Train as `python train.py` does, in a process of its own; `sr_lightning.api.training.train` has the details.

    Example:
        >>> train(model="espcnn")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        sr_lightning.errors.InputError: model=espcnn is not one of bicubic, ...
    """
    require_training_packages(__name__)
    from sr_lightning.api import training

    return training.train(*overrides, **settings)


def evaluate(models: Any, benchmarks: str | Sequence[str] = "Set5", *overrides: str, **settings: Any) -> "Scores":
    """Score networks on benchmarks as `python evaluate.py` does; `sr_lightning.api.scores.evaluate` has the details.

    Example:
        >>> evaluate(checkpoint, "Set5", data_root="/data")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        sr_lightning.errors.InputError: /data/benchmark: no test set Set5 ...
    """
    require_training_packages(__name__)
    from sr_lightning.api import scores

    return scores.evaluate(models, benchmarks, *overrides, **settings)
