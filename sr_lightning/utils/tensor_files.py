"""Reading of files written by torch.save, without running code in them."""

import pickle
from pathlib import Path
from typing import Any

import torch

from sr_lightning.errors import InputError


class PickledClassesError(InputError):
    """The file holds pickled classes, which loading would run."""


def load_tensors(path: str | Path) -> Any:
    """Read tensors and plain containers to the CPU; pickled classes are refused.

    Raises:
        PickledClassesError: The file needs more than tensors and plain containers.
        InputError: The file is missing, damaged or of another kind.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise PickledClassesError(
            f"{path} is damaged, or holds more than tensors and plain containers: give another file of weights"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise InputError(f"{path} cannot be read, it is damaged or cut off: {error}") from error
