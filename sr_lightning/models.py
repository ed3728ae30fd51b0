"""The networks of conf/model in numbers: python -m sr_lightning.models --scale 2."""

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

CONF = Path(__file__).parents[1] / "conf"
WIDTH, HEIGHT = 1280, 720  # of the output for which the papers count multiply-adds
EXAMPLE = """example:
  python -m sr_lightning.models --scale 4             counts
  python -m sr_lightning.models --scale 4 --measure   and what this machine needs for an image"""


class Numbers(NamedTuple):
    """What can be said of a network without weights.

    Attributes:
        parameters: How many are trained.
        multiply_adds: Of all convolutions, the bicubic enlargement's too, for one image.
        receptive_field: LR pixels on a side that an output pixel depends on; None: the whole image.
    """

    parameters: int
    multiply_adds: int
    receptive_field: int | None


class Cost(NamedTuple):
    """What an image needs on this machine: median milliseconds, and MiB at the highest, weights included."""

    milliseconds: float
    mebibytes: float


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m sr_lightning.models",
        description="Parameters, multiply-adds and receptive field of every network in conf/model.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--scale", type=int, choices=[2, 3, 4, 8], default=2, help="the factor (default: 2)")
    parser.add_argument("--measure", action="store_true", help="milliseconds and peak memory on this machine as well")
    parser.add_argument(
        "--budget", type=float, default=5, metavar="SECONDS", help="measure no network that needs more (default: 5)"
    )
    options = parser.parse_args(arguments)
    print(report(options.scale, options.budget if options.measure else None))


def report(scale: int, budget: float | None = None) -> str:
    """A Markdown table, the network with fewest multiply-adds first.

    Args:
        scale: The factor.
        budget: Also measure networks that need at most this many seconds for an image.
    """
    from sr_lightning.utils.markdown import markdown_table

    height, width = lr_size(scale)
    found = {name: (description, count(description, height, width)) for name, description in networks(scale).items()}
    lines = [["network", "parameters", "multiply-adds", "receptive field"]]
    if budget is not None:
        lines[0] += ["ms", "MiB"]
    for name, (description, numbers) in sorted(found.items(), key=lambda item: item[1][1].multiply_adds):
        side = numbers.receptive_field
        field = "whole image" if side is None else f"{side}x{side}"
        giga = numbers.multiply_adds / 1e9
        lines.append([name, f"{numbers.parameters:,}", f"{giga:.{2 if giga < 1 else 1}f} G", field])
        if budget is not None:
            print(f"measuring {name}", file=sys.stderr)
            cost = measure_apart(description, height, width, budget)
            lines[-1] += ["over budget", ""] if cost is None else [f"{cost.milliseconds:.0f}", f"{cost.mebibytes:.0f}"]
    text = f"x{scale}, output {width * scale}x{height * scale}, receptive field in LR pixels\n{markdown_table(lines)}"
    return text if budget is None else f"{text}\nmeasured in float32 on {machine()}; budget {budget:g} s an image"


def lr_size(scale: int) -> tuple[int, int]:
    """Height and width of the smallest LR image whose output is at least 1280x720."""
    return -(-HEIGHT // scale), -(-WIDTH // scale)


def networks(scale: int) -> dict[str, dict[str, Any]]:
    """The file's name -> how it describes its network, for every conf/model/*.yaml that has one."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    descriptions = {}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for path in sorted((CONF / "model").glob("*.yaml")):
            network = compose(overrides=[f"+model={path.stem}", f"+scale=x{scale}"]).model.get("network", {})
            if "_target_" in network:
                descriptions[path.stem] = OmegaConf.to_container(network, resolve=True)
    return descriptions


def count(description: dict[str, Any], height: int, width: int) -> Numbers:
    """Count without computing: tensors have a shape and no memory.

    Args:
        description: How a config describes the network.
        height: Of the LR image.
        width: Of the LR image.
    """
    import torch
    from hydra.utils import instantiate
    from torch._subclasses.fake_tensor import FakeTensorMode  # the meta device knows no autocast
    from torch.utils.flop_counter import FlopCounterMode

    with FakeTensorMode(), torch.no_grad():
        network = instantiate(description).eval()
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, network.num_channels, height, width))
    radius = network.receptive_radius
    return Numbers(
        sum(p.numel() for p in network.parameters()),
        counter.get_total_flops() // 2,
        None if radius is None else 2 * radius + 1,
    )


def measure_apart(description: dict[str, Any], height: int, width: int, budget: float) -> Cost | None:
    """As `measure`, in a process of its own, whose highest memory is then this network's."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, description, height, width, budget).result()


def measure(description: dict[str, Any], height: int, width: int, budget: float) -> Cost | None:
    """Enlarge an image of random numbers, as evaluation does: float32, in the inference form.

    Args:
        description: How a config describes the network.
        height: Of the LR image.
        width: Of the LR image.
        budget: Seconds.

    Returns:
        None where a small image tells that this one would need more than the budget.
    """
    import time

    import torch
    from hydra.utils import instantiate

    from sr_lightning.inference import inference_form

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    base = peak_memory(device)
    network = inference_form(instantiate(description).to(device).eval())

    def seconds(height: int, width: int) -> float:
        lr = torch.rand(1, network.num_channels, height, width, device=device)
        start = time.perf_counter()
        network(lr)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    with torch.inference_mode():
        seconds(32, 32)  # the first call is slower
        if seconds(32, 32) * (height * width) / (32 * 32) > budget:
            return None
        times = sorted(seconds(height, width) for _ in range(3))
    return Cost(1000 * times[1], (peak_memory(device) - base) / 2**20)


def peak_memory(device: Any) -> int:
    """The most bytes this process has held so far, on the GPU or in all."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where getrusage starts from the memory of the process that started this one
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: in bytes


def machine() -> str:
    """The device that measures, in words."""
    import platform

    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
