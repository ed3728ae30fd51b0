"""What tests of several networks use."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Images are tiny here: more threads only wait for each other, the longer the busier the machine is."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def reached_radius() -> Callable[[nn.Module, int], int]:
    """How far the gradient of one LR pixel's outputs reaches in an LR image of margin pixels to each side."""

    def measure(network: nn.Module, margin: int) -> int:
        network = network.eval()
        for parameter in network.parameters():  # all positive: nothing cancels, no ReLU is dead
            parameter.data.abs_()
        lr = torch.ones(1, network.num_channels, 2 * margin + 1, 2 * margin + 1, requires_grad=True)
        s, c = network.scale, margin
        network(lr)[..., c * s : (c + 1) * s, c * s : (c + 1) * s].sum().backward()
        reached = (lr.grad[0].sum(0) != 0).nonzero() - c
        return reached.abs().max().item()

    return measure
