"""Names of devices and precisions. torch is imported only when a device is chosen."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")  # of inference; training uses Lightning's names


def best_device() -> "torch.device":
    """Return the GPU if CUDA has one, else the CPU. Apple's GPUs are not used: scores are summed in float64."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
