"""MSRResNet: SRResNet without batch normalisation, from BasicSR."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_lightning.networks.layers import conv3x3, upsampler, zero_bias

_LeakyReLU = partial(nn.LeakyReLU, 0.1, inplace=True)


class MSRResNet(nn.Module):
    """BasicSR's modified SRResNet (github.com/XPixelGroup/BasicSR), from which ESRGAN (arXiv 1809.00219) starts.

    Differences from SRResNet: no batch normalisation, LeakyReLU instead of PReLU, 3x3 instead of 9x9 kernels. From
    EDSR: no skip around all blocks, a second convolution at high resolution, and the bilinearly upscaled input is added
    to the output. BasicSR has x2, x3 and x4; x8 needs one more upscaling step. Initial weights are He's times 0.1 and
    biases zero, as in BasicSR.

    Args:
        scale: 2, 3, 4 or 8.
        num_features: Channels of all layers between the first and the last.
        num_blocks: Number of residual blocks.

    Attributes:
        receptive_radius: Number of LR pixels in each direction that an output pixel depends on, at every scale.

    Shapes: lr (N, 3, h, w) RGB in [0, 1], at least 1x1 -> sr (N, 3, h*scale, w*scale), float32, not clamped.

    Raises:
        InputError: The scale is not supported.

    Example:
        >>> import torch
        >>> MSRResNet(scale=2, num_blocks=1)(torch.rand(1, 3, 8, 6)).shape
        torch.Size([1, 3, 16, 12])
    """

    num_channels = 3

    def __init__(self, *, scale: int, num_features: int = 64, num_blocks: int = 16) -> None:
        super().__init__()
        self.scale = scale
        self.receptive_radius = 2 * num_blocks + 3  # 1 each of head and upsampler; high resolution adds 1
        self.head = conv3x3(3, num_features)
        self.activation = _LeakyReLU()
        self.blocks = nn.Sequential(*(_ResidualBlock(num_features) for _ in range(num_blocks)))
        self.upsampler = upsampler(num_features, scale, activation=_LeakyReLU)
        self.refine = conv3x3(num_features, num_features)
        self.tail = conv3x3(num_features, 3)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                module.weight.data.mul_(0.1)
                zero_bias(module)

    def forward(self, lr: Tensor) -> Tensor:
        x = self.blocks(self.activation(self.head(lr)))  # (N, F, h, w)
        x = self.upsampler(x)  # (N, F, h*s, w*s)
        x = self.tail(self.activation(self.refine(x))).float()  # (N, 3, h*s, w*s)
        with torch.autocast(lr.device.type, enabled=False):
            return x + F.interpolate(lr.float(), scale_factor=self.scale, mode="bilinear", align_corners=False)


class _ResidualBlock(nn.Module):
    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(num_features, num_features)
        self.conv2 = conv3x3(num_features, num_features)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x), inplace=True))
