"""Costs of networks: parameters, multiply-adds and receptive field; time and memory on this machine."""

import platform
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from sr_lightning.checkpoints.checkpoint import Allow, build_network
from sr_lightning.inference import FastInference, SelfEnsemble, fuse_for_inference
from sr_lightning.utils.cuda_graphs import Replays
from sr_lightning.utils.devices import best_device
from sr_lightning.utils.messages import counted

WIDTH, HEIGHT = 1280, 720  # size of the output for which papers report multiply-adds


class Counts(NamedTuple):
    """Costs of a network, independent of the machine.

    Attributes:
        parameters: Number of trainable parameters.
        multiply_adds: Of all convolutions and linear layers for one image, bicubic upscaling included; without the
            products of attention, as in papers.
        receptive_field: Side in LR pixels of the area that an output pixel depends on; None: the whole image.
    """

    parameters: int
    multiply_adds: int
    receptive_field: int | None


class Cost(NamedTuple):
    """Cost of an image on this machine: median milliseconds, peak MiB with weights, and precision."""

    milliseconds: float
    mebibytes: float
    precision: str


class MultiplyAdds(TorchFunctionMode):
    """Counts the multiply-adds of convolutions and linear layers.

    Attributes:
        total: Multiply-adds so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (F.conv2d, torch.conv2d, F.linear):
            self.total += out.numel() * args[1][0].numel()
        elif func in (F.conv_transpose2d, torch.conv_transpose2d):
            self.total += args[0].numel() * args[1][0].numel()
        return out


def lr_size(scale: int) -> tuple[int, int]:
    """Return height and width of the smallest LR image whose output is at least 1280x720.

    >>> lr_size(3)
    (240, 427)
    """
    return -(-HEIGHT // scale), -(-WIDTH // scale)


def build(description: Mapping[str, Any], self_ensemble: bool = False, allow: Allow = None) -> nn.Module:
    """Build the network that a config describes, or its self-ensemble, in evaluation mode."""
    network = build_network(description, "the config", allow).eval()
    return SelfEnsemble(network) if self_ensemble else network


def count(
    description: Mapping[str, Any], height: int, width: int, self_ensemble: bool = False, allow: Allow = None
) -> Counts:
    """Count parameters, and multiply-adds from tiny images: they are bilinear in the image's height and width.

    A network with an `alignment` pads the sides to multiples of it. SAFMN's count is 0.2 % low: it pools by halves.
    (The meta device would count at any size, but imports TorchDynamo, which takes longer than all networks here.)

    Args:
        description: Config of the network, with `_target_`.
        height: Height of the LR image.
        width: Width of the LR image.
        self_ensemble: Count the network on all flips and rotations.
        allow: Packages besides this project, or classes, that may define the network.
    """
    network = build(description, self_ensemble, allow)
    unit = getattr(network, "alignment", 1)
    low, high = 4 * unit, 5 * unit  # LR pixels

    @torch.no_grad()
    def multiply_adds(height: int, width: int) -> int:
        with MultiplyAdds() as counter:
            network(torch.zeros(1, network.num_channels, height, width))
        return counter.total

    corner, by_width = multiply_adds(low, low), multiply_adds(low, high)
    by_height, both = multiply_adds(high, low), multiply_adds(high, high)
    rows, columns = (-(-side // unit) - 4 for side in (height, width))
    total = corner + rows * (by_height - corner) + columns * (by_width - corner)
    total += rows * columns * (both - by_height - by_width + corner)
    radius = network.receptive_radius
    return Counts(sum(p.numel() for p in network.parameters()), total, None if radius is None else 2 * radius + 1)


def measure_in_subprocess(description: Mapping[str, Any], height: int, width: int, budget: float) -> Cost | None:
    """Call `measure` for the fastest form in a new process, so that the peak memory is that of this network alone."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, description, height, width, budget, fastest=True).result()


def measure(
    description: Mapping[str, Any],
    height: int,
    width: int,
    budget: float,
    self_ensemble: bool = False,
    fastest: bool = False,
    allow: Allow = None,
) -> Cost | None:
    """Measure the upscaling of a random image: in elapsed time, on one thread in processor time.

    Args:
        description: `model.network` of a config.
        height: LR rows.
        width: LR columns.
        budget: Seconds per image.
        self_ensemble: Measure all eight passes of the self-ensemble.
        fastest: Measure as upscaling with precision=auto does it; else as evaluation does it, fused and in float32.
        allow: Packages besides this project, or classes, that may define the network.

    Returns:
        The cost; None if it would exceed the budget, estimated from a small image.
    """
    device = best_device()
    base = peak_memory(device)
    network = build(description, self_ensemble, allow).to(device)
    network = FastInference(network, device) if fastest else fuse_for_inference(network)
    replays = Replays(device) if getattr(network, "as_graph", False) else None
    # Other processes disturb processor time less, but only of one thread does it equal elapsed time
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter

    def seconds(height: int, width: int) -> float:
        lr = torch.rand(1, network.num_channels, height, width, device=device)
        start = clock()
        network(lr) if replays is None else replays(lambda lr: (network(lr),), lr)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - start

    with torch.inference_mode():
        seconds(32, 32)  # the first call is slower
        if seconds(32, 32) * (height * width) / (32 * 32) > budget:
            return None
        times = sorted(seconds(height, width) for _ in range(3 if replays is None else 5))  # the second one records
    return Cost(1000 * times[1], (peak_memory(device) - base) / 2**20, getattr(network, "precision", "float32"))


def peak_memory(device: torch.device) -> int:
    """Return the peak memory of this process so far, in bytes: on the GPU, or in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # on Linux getrusage starts from the memory of the parent process
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: in bytes


def machine() -> str:
    """Return the name of the measured device: the GPU, or the processor with its number of threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.processor() or platform.machine()}, {counted(torch.get_num_threads(), 'thread')}"
