"""EDSR with batch normalisation, after the code of a blog article, with two bugs of that code fixed."""

import copy

from torch import Tensor, nn
from torch.nn import functional as F

from sr_lightning.networks.layers import check_channels, conv3x3, fold_batch_norm, fold_upsampler, upsampler, zero_bias


class EDSRBN(nn.Module):
    """EDSR with batch normalisation, which EDSR's paper advises against.

    After a blog article on ESPCN and EDSR (BSD300). As there: batch normalisation after both convolutions of a block, a
    convolution and a skip around all blocks, normally distributed initial weights, no subtracted mean, no scaled
    residuals. Two bugs of the article's code are fixed: both convolutions of a block share one BatchNorm, whose running
    statistics mix both and fit neither in evaluation mode; and the network upscales int(log2(scale)) times by 2, so
    that x3 gives x2.

    Args:
        scale: 2, 3, 4 or 8.
        num_features: Channels of all layers between the first and the last.
        num_blocks: Number of residual blocks.
        num_channels: 3 (RGB) or 1 (luma).
        init_std: Standard deviation of the normally distributed initial weights of convolutions; biases are zero.

    Attributes:
        receptive_radius: Number of LR pixels in each direction that an output pixel depends on, in evaluation mode.

    Shapes: lr (N, num_channels, h, w) in [0, 1], at least 1x1 -> sr (N, num_channels, h*scale, w*scale), float32,
    not clamped.

    Raises:
        InputError: The scale or the number of channels is not supported.

    Example:
        >>> import torch
        >>> EDSRBN(scale=2, num_blocks=1)(torch.rand(1, 3, 8, 6)).shape
        torch.Size([1, 3, 16, 12])
    """

    def __init__(
        self,
        *,
        scale: int,
        num_features: int = 64,
        num_blocks: int = 16,
        num_channels: int = 3,
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        check_channels(num_channels)
        self.scale, self.num_channels = scale, num_channels
        self.receptive_radius = 2 * num_blocks + 4  # as in EDSR
        self.head = conv3x3(num_channels, num_features)
        self.blocks = nn.Sequential(*(_ResidualBlock(num_features) for _ in range(num_blocks)))
        self.merge = conv3x3(num_features, num_features)
        self.upsampler = upsampler(num_features, scale)
        self.tail = conv3x3(num_features, num_channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=init_std)
                zero_bias(module)

    def forward(self, lr: Tensor) -> Tensor:
        x = self.head(lr)
        x = x + self.merge(self.blocks(x))  # (N, F, h, w)
        return self.tail(self.upsampler(x)).float()  # (N, F, h, w) -> (N, F, h*s, w*s) -> (N, C, h*s, w*s)

    def for_inference(self) -> "EDSRBN":
        """Return a copy with normalisation, upsampler and tail folded into convolutions: same output, less time."""
        network = copy.deepcopy(self).eval()
        for block in network.blocks:
            fold_batch_norm(block, "conv1", "norm1")
            fold_batch_norm(block, "conv2", "norm2")
        fold_upsampler(network)
        return network


class _ResidualBlock(nn.Module):
    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv3x3(num_features, num_features), nn.BatchNorm2d(num_features)
        self.conv2, self.norm2 = conv3x3(num_features, num_features), nn.BatchNorm2d(num_features)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return x + self.norm2(self.conv2(y))
