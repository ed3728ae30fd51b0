import pytest
import torch
from torch.nn import functional as F

from sr_lightning.networks.parts import pixel_shuffle


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_pixel_shuffle_is_pytorchs(scale, channels, memory_format):
    x = torch.rand(2, channels * scale * scale, 5, 7).contiguous(memory_format=memory_format)
    assert torch.equal(pixel_shuffle(x, scale), F.pixel_shuffle(x, scale))


def test_an_exported_pixel_shuffle_is_one_operator():
    class Shuffle(torch.nn.Module):
        def forward(self, x):
            return pixel_shuffle(x, 2)

    calls = [node.target for node in torch.export.export(Shuffle(), (torch.rand(1, 4, 5, 7),)).graph.nodes]
    assert torch.ops.aten.pixel_shuffle.default in calls
