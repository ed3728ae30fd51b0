import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from sr_lightning.networks.layers import FoldedUpsampler, conv3x3, pixel_shuffle, upsampler


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_pixel_shuffle_matches_pytorch(scale, channels, memory_format):
    x = torch.rand(2, channels * scale * scale, 5, 7).contiguous(memory_format=memory_format)
    assert torch.equal(pixel_shuffle(x, scale), F.pixel_shuffle(x, scale))


def test_an_exported_pixel_shuffle_is_one_operator():
    class Shuffle(torch.nn.Module):
        def forward(self, x):
            return pixel_shuffle(x, 2)

    calls = [node.target for node in torch.export.export(Shuffle(), (torch.rand(1, 4, 5, 7),)).graph.nodes]
    assert torch.ops.aten.pixel_shuffle.default in calls


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_folded_upsampler_matches_its_layers_including_the_border(scale, channels):
    torch.manual_seed(0)
    layers = nn.Sequential(upsampler(6, scale), conv3x3(6, channels))
    with torch.inference_mode():
        folded = FoldedUpsampler(layers, 6, scale)
        for height, width in [(1, 1), (1, 4), (2, 3), (3, 2), (7, 9)]:
            x = torch.randn(2, 6, height, width)
            torch.testing.assert_close(folded(x), layers(x), rtol=0, atol=1e-6)
        # The border needs its own computation: the convolution alone differs there, and only there.
        x = torch.randn(1, 6, 7, 9)
        off = (pixel_shuffle(folded.conv(x), scale) - layers(x)).abs().amax(dim=(0, 1))
        assert off[:scale].max() > 1e-2
        assert off[scale:-scale, scale:-scale].max() < 1e-6


def test_a_folded_upsampler_needs_less_than_a_quarter_of_the_multiplications():
    layers = nn.Sequential(upsampler(64, 4), conv3x3(64, 3))
    x = torch.rand(1, 64, 100, 100)
    counts = []
    for network in (layers, FoldedUpsampler(layers, 64, 4)):
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            network(x)
        counts.append(counter.get_total_flops())
    assert counts[1] < counts[0] / 4
