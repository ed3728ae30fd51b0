"""Time of an optimizer step, Muon against Adam: python tests/benchmarks/bench_muon.py.

One thread; medians of interleaved rounds, so that a busy machine slows both alike.
"""

import sys
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))
from sr_lightning.optim import Muon


def plain(*layers: tuple[int, int, int]) -> nn.Module:
    """Convolutions (inputs, outputs, kernel)."""
    return nn.Sequential(*(nn.Conv2d(inputs, outputs, kernel, padding="same") for inputs, outputs, kernel in layers))


NETS = {
    "SRCNN 9-1-5": plain((1, 64, 9), (64, 32, 1), (32, 1, 5)),
    "ESPCN 64-64-32": plain((1, 64, 5), (64, 64, 3), (64, 32, 3), (32, 9, 3)),
    "EDSR 4x24": plain((1, 24, 3), *[(24, 24, 3)] * 9, (24, 4, 3)),
    "EDSR 16x64": plain((3, 64, 3), *[(64, 64, 3)] * 33, (64, 12, 3)),
}


def main(rounds: int = 60) -> None:
    torch.set_num_threads(1)
    print(f"us/step, 1 thread, median of {rounds} interleaved rounds")
    for name, net in NETS.items():
        for parameter in net.parameters():
            parameter.grad = 1e-3 * torch.randn_like(parameter)
        optimizers = {
            "Adam": torch.optim.Adam(net.parameters(), lr=1e-6),
            "Adam foreach": torch.optim.Adam(net.parameters(), lr=1e-6, foreach=True),
            "Muon": Muon(net.parameters(), lr=1e-6),
        }
        times = {key: [] for key in optimizers}
        for _ in range(rounds):
            for key, optimizer in optimizers.items():
                start = perf_counter()
                optimizer.step()
                times[key].append(perf_counter() - start)
        medians = {key: median(values) for key, values in times.items()}
        figures = "  ".join(f"{key} {1e6 * value:6.0f}" for key, value in medians.items())
        print(f"{name:15s} {figures}  Muon/Adam {medians['Muon'] / medians['Adam']:.2f}")


if __name__ == "__main__":
    main()
