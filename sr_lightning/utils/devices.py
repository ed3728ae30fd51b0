"""Devices and precisions to compute in. torch is imported when a device is asked for."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "float32", "bfloat16")  # of inference; training has Lightning's


def best_device() -> "torch.device":
    """The GPU if CUDA has one, else the CPU. Apple's GPUs lack float64, in which scores are summed."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
