"""EDSR: a deep residual network without batch normalisation."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_lightning.networks.bicubic import Bicubic
from sr_lightning.networks.layers import conv3x3, div2k_mean, fold_upsampler, upsampler, zero_init


class EDSR(nn.Module):
    """Enhanced Deep Residual Networks for Single Image Super-Resolution, Lim et al. 2017, section 3 (arXiv 1707.02921).

    The paper's baseline is `num_features=64, num_blocks=16`, its large network `num_features=256, num_blocks=32,
    residual_scale=0.1`. Initial weights are PyTorch's default, as in the authors' code. Internally,
    images are (image - mean) * 255 with the mean of DIV2K, so that published weights (the authors', BasicSR's) can be
    loaded without conversion.

    Args:
        scale: 2, 3, 4 or 8.
        num_features: Channels of all layers between the first and the last.
        num_blocks: Number of residual blocks.
        residual_scale: Factor of each residual; wide networks do not train with 1.
        num_channels: 3 (RGB, as in the paper) or 1 (luma).
        global_skip: Add the bicubically upscaled input instead of the mean. Not in the paper. The last convolution is
            then initialised with zeros, so that training starts from bicubic.

    Attributes:
        receptive_radius: Number of LR pixels in each direction that an output pixel depends on, at every scale.

    Shapes: lr (N, num_channels, h, w) in [0, 1], at least 1x1 -> sr (N, num_channels, h*scale, w*scale), float32,
    not clamped.

    Raises:
        InputError: The scale or the number of channels is not supported.

    Example:
        >>> import torch
        >>> EDSR(scale=2, num_blocks=1)(torch.rand(1, 3, 8, 6)).shape
        torch.Size([1, 3, 16, 12])
    """

    mean: Tensor

    def __init__(
        self,
        *,
        scale: int,
        num_features: int = 64,
        num_blocks: int = 16,
        residual_scale: float = 1.0,
        num_channels: int = 3,
        global_skip: bool = False,
    ) -> None:
        super().__init__()
        self.scale, self.num_channels = scale, num_channels
        self.receptive_radius = 2 * num_blocks + 4  # all 3x3; the tail, at high resolution, adds one LR pixel
        self.register_buffer("mean", div2k_mean(num_channels), persistent=False)
        self.skip = Bicubic(scale=scale) if global_skip else None
        self.head = conv3x3(num_channels, num_features)
        self.blocks = nn.Sequential(*(_ResidualBlock(num_features, residual_scale) for _ in range(num_blocks)))
        self.merge = conv3x3(num_features, num_features)
        self.upsampler = upsampler(num_features, scale)
        self.tail = conv3x3(num_features, num_channels)
        if global_skip:
            zero_init(self.tail)

    def forward(self, lr: Tensor) -> Tensor:
        x = self.head((lr - self.mean) * 255)
        x = x + self.merge(self.blocks(x))  # (N, F, h, w)
        x = self.tail(self.upsampler(x))  # (N, F, h, w) -> (N, F, h*s, w*s) -> (N, C, h*s, w*s)
        return x.float() / 255 + (self.mean if self.skip is None else self.skip(lr))

    def for_inference(self) -> "EDSR":
        """Return a copy with the upsampler and the tail folded into one convolution: same output, less time."""
        network = copy.deepcopy(self).eval()
        fold_upsampler(network)
        return network


class _ResidualBlock(nn.Module):
    def __init__(self, num_features: int, residual_scale: float) -> None:
        super().__init__()
        self.residual_scale = residual_scale
        self.conv1 = conv3x3(num_features, num_features)
        self.conv2 = conv3x3(num_features, num_features)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.conv2(F.relu(self.conv1(x), inplace=True)), alpha=self.residual_scale)
