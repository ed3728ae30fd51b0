"""RealPLKSR: PLKSR with group normalisation, for adversarial training on degraded images."""

from torch import Tensor, nn
from torch.nn import functional as F

from sr_lightning.errors import InputError
from sr_lightning.networks.layers import check_channels, conv3x3, narrow_init, pixel_shuffle
from sr_lightning.networks.plksr import ElementwiseAttention, PartialLargeKernel

NUM_GROUPS = 4  # of the normalisation


class RealPLKSR(nn.Module):
    """The network that the authors of PLKSR added for real images (arXiv 2404.11848; github.com/dslisleedh/PLKSR).

    Two 3x3 convolutions with Mish where PLKSR has one, and group normalisation at the end of each block. The names of
    the weights are the published ones. Initial weights as of PLKSR.

    Args:
        scale: The factor.
        num_features: Channels of all layers between the first and the last, a multiple of 4.
        num_blocks: Number of blocks.
        kernel_size: Side of the large kernel, odd.
        split_ratio: Share of the channels that the large kernel sees.
        num_channels: 3 (RGB, as published) or 1 (luma).

    Attributes:
        receptive_radius: None, because group normalisation averages over the whole image.

    Shapes: lr (N, num_channels, h, w) in [0, 1], at least 1x1 -> sr (N, num_channels, h*scale, w*scale), float32,
    not clamped.

    Raises:
        InputError: The number of channels or of features is not supported.

    Example:
        >>> import torch
        >>> RealPLKSR(scale=2, num_features=16, num_blocks=1)(torch.rand(1, 3, 8, 6)).shape
        torch.Size([1, 3, 16, 12])
    """

    receptive_radius = None

    def __init__(
        self,
        *,
        scale: int,
        num_features: int = 64,
        num_blocks: int = 28,
        kernel_size: int = 17,
        split_ratio: float = 0.25,
        num_channels: int = 3,
    ) -> None:
        super().__init__()
        check_channels(num_channels)
        if num_features % NUM_GROUPS:
            raise InputError(f"num_features={num_features} is not a multiple of {NUM_GROUPS}, the normalised groups")
        self.scale, self.num_channels = scale, num_channels
        self.feats = nn.Sequential(
            narrow_init(conv3x3(num_channels, num_features)),
            *(_Block(num_features, kernel_size, split_ratio) for _ in range(num_blocks)),
            nn.Identity(),  # a dropout layer, unused, in the authors' code
            narrow_init(conv3x3(num_features, num_channels * scale**2)),
        )

    def forward(self, lr: Tensor) -> Tensor:
        sr = pixel_shuffle(self.feats(lr), self.scale).float()  # (N, C*s*s, h, w) -> (N, C, h*s, w*s)
        return sr + F.interpolate(lr, scale_factor=self.scale, mode="nearest")


class _Block(nn.Module):
    def __init__(self, num_features: int, kernel_size: int, split_ratio: float) -> None:
        super().__init__()
        self.channel_mixer = nn.Sequential(
            conv3x3(num_features, 2 * num_features), nn.Mish(), narrow_init(conv3x3(2 * num_features, num_features))
        )
        self.lk = PartialLargeKernel(int(num_features * split_ratio), kernel_size)
        self.attn = ElementwiseAttention(num_features)
        self.refine = narrow_init(nn.Conv2d(num_features, num_features, 1))
        self.norm = nn.GroupNorm(NUM_GROUPS, num_features)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.refine(self.attn(self.lk(self.channel_mixer(x)))))
