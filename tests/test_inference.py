import pytest
import torch
from torch import nn

from sr_lightning.color import rgb_to_y, rgb_to_ycbcr
from sr_lightning.inference import super_resolve, to_channels
from sr_lightning.networks import ESPCN, Bicubic


class Colour(nn.Module):
    """A three-channel network that repeats each pixel and keeps its channels apart."""

    scale, num_channels = 2, 3

    def forward(self, lr):
        return lr.repeat_interleave(2, -1).repeat_interleave(2, -2)


def test_a_luma_network_gives_luma_and_bicubic_chroma():
    network = ESPCN(scale=3)
    lr = torch.rand(2, 3, 7, 9)
    sr = super_resolve(network, lr)
    ycbcr = rgb_to_ycbcr(lr)
    torch.testing.assert_close(rgb_to_ycbcr(sr)[:, :1], network(rgb_to_y(lr)), atol=1e-5, rtol=0)
    torch.testing.assert_close(rgb_to_ycbcr(sr)[:, 1:], Bicubic(scale=3)(ycbcr[:, 1:]), atol=1e-5, rtol=0)


def test_bicubic_in_colour_is_bicubic_on_each_channel():
    lr = torch.rand(1, 3, 7, 9)
    torch.testing.assert_close(super_resolve(Bicubic(scale=2), lr), Bicubic(scale=2)(lr), atol=1e-5, rtol=0)


@pytest.mark.parametrize("network", [Colour(), ESPCN(scale=2)])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_keeps_its_channels(network, channels):
    assert super_resolve(network, torch.rand(1, channels, 5, 6)).shape == (1, channels, 10, 12)


def test_a_gray_image_is_luma_as_it_is():
    gray = torch.rand(1, 1, 4, 4)
    assert to_channels(gray, 1) is gray
    torch.testing.assert_close(super_resolve(Colour(), gray), Colour()(gray))
