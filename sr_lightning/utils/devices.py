"""Choice of the device to compute on."""

import torch


def best_device() -> torch.device:
    """The GPU if CUDA has one, else the CPU. Apple's GPUs lack float64, in which scores are summed."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
