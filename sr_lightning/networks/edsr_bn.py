"""EDSR as an article has it, with batch normalisation, and with its mistakes mended."""

import copy

from torch import Tensor, nn
from torch.nn import functional as F

from sr_lightning.networks.layers import check_channels, conv3, fold_batch_norm, fold_upsampler, upsampler


class EDSRBN(nn.Module):
    """The "EDSR" with batch normalisation of an article on ESPCN and EDSR (BSD300), which EDSR's paper argues against.

    Kept from the article: batch normalisation after both convolutions of a block, a convolution and a skip around all
    blocks, normal initial weights, no mean subtracted, no scaled residuals. Its code does two things wrong, which
    are right here: one BatchNorm object serves both convolutions of a block, so that its running statistics are a
    mixture of both and fit neither in evaluation mode; and it enlarges int(log2(scale)) times by two, so that x3 gives
    x2.

    Args:
        scale: 2, 3, 4 or 8.
        num_features: Channels of every convolution in between.
        num_blocks: Residual blocks.
        num_channels: 3 (RGB) or 1 (luma).
        init_std: Standard deviation of the normal the weights of convolutions are drawn from; biases are zero.

    Attributes:
        receptive_radius: LR pixels to each side of its own that an output pixel depends on, in evaluation mode.

    Shapes: lr (N, num_channels, h, w) in [0, 1], at least 1x1 -> sr (N, num_channels, h*scale, w*scale), float32,
    unclamped.

    Raises:
        InputError: A scale or a number of channels that is none of the above.
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
        self.receptive_radius = 2 * num_blocks + 4  # as EDSR's
        self.head = conv3(num_channels, num_features)
        self.blocks = nn.Sequential(*(_ResidualBlock(num_features) for _ in range(num_blocks)))
        self.merge = conv3(num_features, num_features)
        self.upsampler = upsampler(num_features, scale)
        self.tail = conv3(num_features, num_channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=init_std)
                nn.init.zeros_(module.bias)

    def forward(self, lr: Tensor) -> Tensor:
        x = self.head(lr)
        x = x + self.merge(self.blocks(x))  # (N, F, h, w)
        return self.tail(self.upsampler(x)).float()  # (N, F, h, w) -> (N, F, h*s, w*s) -> (N, C, h*s, w*s)

    def for_inference(self) -> "EDSRBN":
        """A copy with normalisation, upsampler and tail folded into convolutions: the same output in less time."""
        network = copy.deepcopy(self).eval()
        for block in network.blocks:
            fold_batch_norm(block, "conv1", "norm1")
            fold_batch_norm(block, "conv2", "norm2")
        fold_upsampler(network)
        return network


class _ResidualBlock(nn.Module):
    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv3(num_features, num_features), nn.BatchNorm2d(num_features)
        self.conv2, self.norm2 = conv3(num_features, num_features), nn.BatchNorm2d(num_features)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return x + self.norm2(self.conv2(y))
