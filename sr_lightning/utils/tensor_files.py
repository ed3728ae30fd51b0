"""Reading of files written by torch.save, without running code in them."""

import pickle
import tarfile
from pathlib import Path
from typing import Any

import torch

from sr_lightning.errors import InputError
from sr_lightning.utils.messages import reason
from sr_lightning.utils.tensor_archive import MAGIC, check_archive


class PickledClassesError(InputError):
    """The file holds pickled classes, which loading would run."""


def load_tensors(path: str | Path) -> Any:
    """Read tensors and plain containers to the CPU; pickled classes are refused.

    The checksums of a zip file are verified: a checkpoint of this project is refused if one is wrong. Other files may
    be written without checksums, and are read with a warning.

    Raises:
        PickledClassesError: The file needs more than tensors and plain containers.
        InputError: The file is missing, damaged or of another kind.
    """
    check_archive(path)
    check_kind(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise PickledClassesError(
            f"{path} is damaged, or holds more than tensors and plain containers: give another file of weights"
        ) from error
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(f"{path} cannot be read, it is damaged or cut off: {reason(error)}") from error


def check_kind(path: str | Path) -> None:
    """Raise InputError for a file that torch.save cannot have written, judged by its first bytes."""
    with Path(path).open("rb") as file:
        first = file.read(16)
    if not first:
        raise InputError(f"{path} is empty")
    if b"pytorch" in first[2:12]:  # the producer, second field of an ONNX file
        raise InputError(f"{path} is a network exported to ONNX: give the checkpoint that it was made from")
    if not first.startswith((MAGIC, b"\x80")) and not tarfile.is_tarfile(path):  # tar: the first versions of torch
        raise InputError(f"{path} is no file of weights: it begins with {first!r}")
