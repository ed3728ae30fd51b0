"""PLKSR: blocks with one large kernel on a part of the channels."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_lightning.errors import InputError
from sr_lightning.networks.layers import check_channels, conv3x3, narrow_init, pixel_shuffle


class PLKSR(nn.Module):
    """Partial Large Kernel CNNs for Efficient Super-Resolution, Lee et al. 2024, section 3 (arXiv 2404.11848).

    The names of the weights are the published ones, with the authors' spelling `channe_mixer`. Initial weights follow
    their code: normal with standard deviation 0.02 for the first and the last convolution and the last ones of each
    part of a block, PyTorch's default elsewhere.

    Args:
        scale: The factor.
        num_features: Channels of all layers between the first and the last.
        num_blocks: Number of blocks: 28, or 12 for the paper's tiny network.
        kernel_size: Side of the large kernel, odd: 17, or 13 for the tiny network.
        split_ratio: Share of the channels that the large kernel sees.
        attention: Multiply each block's features by a sigmoid of a convolution; the tiny network does not.
        mixer_kernels: Sides of the two convolutions that a block begins with, odd: 3 and 1, the default of the
            authors' code, or 3 and 3, with which they train all networks (the paper's DCCM).
        num_channels: 3 (RGB, as in the paper) or 1 (luma).

    Attributes:
        receptive_radius: Number of LR pixels in each direction that an output pixel depends on, at every scale.

    Shapes: lr (N, num_channels, h, w) in [0, 1], at least 1x1 -> sr (N, num_channels, h*scale, w*scale), float32,
    not clamped.

    Raises:
        InputError: The number of channels is not supported, a kernel is even, or there are not two mixer kernels.

    Example:
        >>> import torch
        >>> PLKSR(scale=2, num_features=16, num_blocks=1)(torch.rand(1, 3, 8, 6)).shape
        torch.Size([1, 3, 16, 12])
    """

    def __init__(
        self,
        *,
        scale: int,
        num_features: int = 64,
        num_blocks: int = 28,
        kernel_size: int = 17,
        split_ratio: float = 0.25,
        attention: bool = True,
        mixer_kernels: Sequence[int] = (3, 1),
        num_channels: int = 3,
    ) -> None:
        super().__init__()
        check_channels(num_channels)
        self.scale, self.num_channels = scale, num_channels
        kernels = (*mixer_kernels, kernel_size)
        if len(kernels) != 3 or any(side % 2 == 0 for side in kernels):
            raise InputError(f"{kernel_size=}, mixer_kernels={[*mixer_kernels]}: give odd sides, two to the mixer")
        self.receptive_radius = 2 + num_blocks * (sum(side // 2 for side in kernels) + attention)
        self.feats = nn.Sequential(
            narrow_init(conv3x3(num_channels, num_features)),
            *(_Block(num_features, kernel_size, split_ratio, attention, mixer_kernels) for _ in range(num_blocks)),
            narrow_init(conv3x3(num_features, num_channels * scale**2)),
        )

    def forward(self, lr: Tensor) -> Tensor:
        sr = pixel_shuffle(self.feats(lr), self.scale).float()  # (N, C*s*s, h, w) -> (N, C, h*s, w*s)
        return sr + F.interpolate(lr, scale_factor=self.scale, mode="nearest")


class _Block(nn.Module):
    def __init__(
        self, num_features: int, kernel_size: int, split_ratio: float, attention: bool, mixer_kernels: Sequence[int]
    ) -> None:
        super().__init__()
        first, last = mixer_kernels
        self.channe_mixer = nn.Sequential(
            nn.Conv2d(num_features, 2 * num_features, first, padding=first // 2),
            nn.GELU(),
            narrow_init(nn.Conv2d(2 * num_features, num_features, last, padding=last // 2)),
        )
        self.lk = PartialLargeKernel(int(num_features * split_ratio), kernel_size)
        self.attn = ElementwiseAttention(num_features) if attention else nn.Identity()
        self.refine = narrow_init(nn.Conv2d(num_features, num_features, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.refine(self.attn(self.lk(self.channe_mixer(x))))


class PartialLargeKernel(nn.Module):
    """A convolution with a large kernel on the first channels; the others stay.

    Args:
        num_convolved: Number of the first channels.
        kernel_size: Side of the kernel, odd.

    Shapes: (N, C, h, w) -> (N, C, h, w).
    """

    def __init__(self, num_convolved: int, kernel_size: int) -> None:
        super().__init__()
        self.num_convolved = num_convolved
        self.conv = narrow_init(nn.Conv2d(num_convolved, num_convolved, kernel_size, padding=kernel_size // 2))

    def forward(self, x: Tensor) -> Tensor:
        first, others = x.tensor_split([self.num_convolved], dim=1)
        return torch.cat([self.conv(first), others], dim=1)


class ElementwiseAttention(nn.Module):
    """Multiply features by a sigmoid of their 3x3 convolution.

    Shapes: (N, num_features, h, w) -> (N, num_features, h, w).
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.f = nn.Sequential(narrow_init(conv3x3(num_features, num_features)), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.f(x)
