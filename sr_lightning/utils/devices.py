"""Names of devices and precisions. torch is imported only when a device is chosen."""

import glob
import re
import sys
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from sr_lightning.errors import InputError

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda", "cuda:N")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")  # of inference; training uses Lightning's names


def lacks_gpu() -> bool:
    """Return True if this machine certainly has no GPU: a Linux without its device files."""
    return sys.platform == "linux" and not any(glob.glob(f"/dev/{name}") for name in ("nvidia*", "kfd", "dxg"))


def is_device(name: str) -> bool:
    """Return True for a name of `DEVICES`, where N is the number of a GPU."""
    return name in ("auto", "cpu", "cuda") or re.fullmatch(r"cuda:\d+", name, re.ASCII) is not None


def select_device(name: str) -> "torch.device":
    """Return the device with a name of `is_device`.

    Raises:
        InputError: torch does not find it.
    """
    import torch

    if name == "auto":
        return best_device()
    if name.startswith("cuda"):
        number, count = int(name.partition(":")[2] or 0), torch.cuda.device_count()
        if number >= count:
            there = f"GPUs up to cuda:{count - 1}" if count else "no GPU"
            raise InputError(
                f"device={name!r}: torch finds {there}; choose {'one of them' if count else 'auto or cpu'}"
            )
    return torch.device(name)


def best_device() -> "torch.device":
    """Return the GPU if CUDA has one, else the CPU. Apple's GPUs are not used: scores are summed in float64."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fork_rng(device: "torch.device") -> AbstractContextManager:
    """Return a context after which the random state of torch, on the CPU and on this device, is as before.

    torch's own initialises every GPU of the machine, with a warning, unless it is told which ones are in use.
    """
    import torch

    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def to_device(tensor: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """Copy a tensor of the host to a device; from pinned memory, so that the host does not wait for a GPU."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)
