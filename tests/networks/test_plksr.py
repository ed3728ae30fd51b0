"""PLKSR and RealPLKSR: DySample against bilinear interpolation, and settings that are refused."""

import pytest
import torch
from torch.nn import functional as F

from sr_lightning.errors import InputError
from sr_lightning.networks import PLKSR, RealPLKSR
from sr_lightning.networks.realplksr import DySample


def samples(x: torch.Tensor, channels: int, scale: int, offset: torch.Tensor) -> torch.Tensor:
    """Sample with a constant offset, (x, y) in LR pixels, and average the channels."""
    network = DySample(channels, scale)
    with torch.no_grad():
        network.offset.weight.zero_()
        # the sigmoid of 0 is 1/2, and half of that is used
        network.offset.bias.copy_(4 * offset.repeat_interleave(len(network.offset.bias) // 2))
        network.end_conv.weight.fill_(1 / x.shape[1])
        network.end_conv.bias.zero_()
        return network(x)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_dysample_without_offsets_interpolates_bilinearly(channels, scale):
    x = torch.rand(2, channels * scale**2, 5, 7)
    expected = F.interpolate(x.mean(1, keepdim=True), scale_factor=scale, mode="bilinear", align_corners=False)
    sr = samples(x, channels, scale, torch.zeros(2))
    torch.testing.assert_close(sr, expected.expand_as(sr), rtol=0, atol=1e-5)


def test_dysample_moves_by_its_offsets():
    x = torch.rand(1, 12, 8, 9)
    still, moved = samples(x, 3, 2, torch.zeros(2)), samples(x, 3, 2, torch.tensor([1.0, -2.0]))
    torch.testing.assert_close(moved[..., 4:-2, 2:-4], still[..., :-6, 4:-2], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("network", "settings", "expected"),
    [
        (PLKSR, {"mixer_kernels": [3]}, r"mixer_kernels=\[3\]: give odd sides, two to"),
        (PLKSR, {"mixer_kernels": [3, 2]}, r"mixer_kernels=\[3, 2\]: give odd"),
        (PLKSR, {"kernel_size": 16}, "kernel_size=16, .*give odd"),
        (RealPLKSR, {"kernel_size": 16}, "kernel_size=16 is even"),
        (RealPLKSR, {"num_features": 6}, "num_features=6 is not a multiple of 4"),
    ],
)
def test_settings_that_do_not_fit_are_named(network, settings, expected):
    with pytest.raises(InputError, match=expected):
        network(scale=2, num_blocks=1, **settings)


def test_layer_norm_has_no_groups():
    assert RealPLKSR(scale=2, num_features=6, num_blocks=1, layer_norm=True)(torch.rand(1, 3, 4, 4)).shape[-1] == 8
