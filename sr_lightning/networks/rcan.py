"""RCAN: a very deep network with residual groups and channel attention."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_lightning.errors import InputError
from sr_lightning.networks.layers import conv3x3, div2k_mean, fold_upsampler, is_traced, upsampler


class RCAN(nn.Module):
    """Image Super-Resolution Using Very Deep Residual Channel Attention Networks, Zhang et al. 2018 (arXiv 1807.02758).

    Section 3; the defaults are the paper's 10 groups of 20 blocks. Internally, images are (image - mean) * 255 with the
    mean of DIV2K, as for the published weights. Initial weights are PyTorch's default, as in the authors' code.

    Args:
        scale: 2, 3, 4 or 8.
        num_features: Channels of all layers between the first and the last.
        num_groups: Number of residual groups.
        num_blocks: Number of attention blocks per group.
        reduction: The hidden layer of the attention has num_features / reduction channels.

    Attributes:
        receptive_radius: None, because channel attention averages over the whole image.

    Shapes: lr (N, 3, h, w) RGB in [0, 1], at least 1x1 -> sr (N, 3, h*scale, w*scale), float32, not clamped.

    Raises:
        InputError: The scale is not supported, or `reduction` does not divide `num_features`.

    Example:
        >>> import torch
        >>> RCAN(scale=2, num_groups=1, num_blocks=1)(torch.rand(1, 3, 8, 6)).shape
        torch.Size([1, 3, 16, 12])
    """

    num_channels = 3
    receptive_radius = None
    mean: Tensor

    def __init__(
        self,
        *,
        scale: int,
        num_features: int = 64,
        num_groups: int = 10,
        num_blocks: int = 20,
        reduction: int = 16,
    ) -> None:
        super().__init__()
        if num_features % reduction:
            raise InputError(f"num_features={num_features} is not a multiple of reduction={reduction}")
        self.scale = scale
        self.register_buffer("mean", div2k_mean(3), persistent=False)
        self.head = conv3x3(3, num_features)
        self.groups = nn.Sequential(*(_Group(num_features, num_blocks, reduction) for _ in range(num_groups)))
        self.merge = conv3x3(num_features, num_features)
        self.upsampler = upsampler(num_features, scale)
        self.tail = conv3x3(num_features, 3)

    def forward(self, lr: Tensor) -> Tensor:
        x = self.head((lr - self.mean) * 255)
        x = x + self.merge(self.groups(x))  # (N, F, h, w)
        x = self.tail(self.upsampler(x))  # (N, F, h, w) -> (N, F, h*s, w*s) -> (N, 3, h*s, w*s)
        return x.float() / 255 + self.mean

    def for_inference(self) -> "RCAN":
        """Return a copy with the upsampler and the tail folded into one convolution: same output, less time."""
        network = copy.deepcopy(self).eval()
        fold_upsampler(network)
        return network


class _Group(nn.Module):
    def __init__(self, num_features: int, num_blocks: int, reduction: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(_AttentionBlock(num_features, reduction) for _ in range(num_blocks)))
        self.merge = conv3x3(num_features, num_features)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.merge(self.blocks(x))


class _AttentionBlock(nn.Module):
    def __init__(self, num_features: int, reduction: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(num_features, num_features)
        self.conv2 = conv3x3(num_features, num_features)
        self.squeeze = nn.Conv2d(num_features, num_features // reduction, 1)
        self.excite = nn.Conv2d(num_features // reduction, num_features, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.conv1(x), inplace=True))
        pooled = y.mean(dim=(2, 3), keepdim=True)  # (N, F, 1, 1)
        weight = torch.sigmoid(self.excite(F.relu(self.squeeze(pooled))))
        return x + y * weight if is_traced() else torch.addcmul(x, y, weight)
