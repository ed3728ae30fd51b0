"""Fixtures for tests of networks."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread: the images are tiny, and more threads would only wait for each other."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def measured_radius() -> Callable[[nn.Module, int], int]:
    """A function that measures how many LR pixels the gradient of one LR pixel's outputs extends."""

    def measure(network: nn.Module, margin: int) -> int:
        network = network.eval()
        for parameter in network.parameters():  # positive weights: nothing cancels, no ReLU is inactive
            parameter.data.abs_().mul_(0.2)  # and small ones: no sigmoid is saturated
        places = getattr(network, "alignment", 1)  # pixels of a window, or unshuffled ones, differ
        s, reached = network.scale, 0
        for c in range(margin, margin + places):
            lr = torch.ones(1, network.num_channels, 2 * margin + places, 2 * margin + places, requires_grad=True)
            network(lr)[..., c * s : (c + 1) * s, c * s : (c + 1) * s].sum().backward()
            reached = max(reached, ((lr.grad[0].sum(0) != 0).nonzero() - c).abs().max().item())
        return reached

    return measure
