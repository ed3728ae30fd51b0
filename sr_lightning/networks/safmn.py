"""SAFMN: features at several resolutions modulate those of the image."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_lightning.errors import InputError
from sr_lightning.networks.bicubic import Bicubic
from sr_lightning.networks.layers import ChannelNorm, check_channels, conv3x3, pixel_shuffle, zero_init

NUM_LEVELS = 4  # resolutions: 1, 1/2, 1/4, 1/8


class SAFMN(nn.Module):
    """Spatially-Adaptive Feature Modulation for Efficient Image Super-Resolution, Sun et al. 2023 (arXiv 2302.13800).

    The names of the weights are the published ones. Initial weights are PyTorch's default, as in the authors' code.

    Args:
        scale: The factor.
        num_features: Channels of all layers between the first and the last, a multiple of 4: 36 in the paper.
        num_blocks: Number of blocks: 8 in the paper.
        expansion: Channels inside the channel mixer of a block, relative to `num_features`.
        num_channels: 3 (RGB, as in the paper) or 1 (luma).
        global_skip: Add the bicubically upscaled input. Not in the paper. The last convolution is then initialised with
            zeros, so that training starts from bicubic.

    Attributes:
        receptive_radius: None, because the sizes of the pooled features depend on those of the image.
        exports_any_size: False: torch.export cannot keep such sizes free.

    Shapes: lr (N, num_channels, h, w) in [0, 1], at least 1x1 -> sr (N, num_channels, h*scale, w*scale), float32,
    not clamped.

    Raises:
        InputError: The number of channels or of features is not supported.

    Example:
        >>> import torch
        >>> SAFMN(scale=2, num_features=8, num_blocks=1)(torch.rand(1, 3, 8, 6)).shape
        torch.Size([1, 3, 16, 12])
    """

    receptive_radius = None
    exports_any_size = False

    def __init__(
        self,
        *,
        scale: int,
        num_features: int = 36,
        num_blocks: int = 8,
        expansion: float = 2.0,
        num_channels: int = 3,
        global_skip: bool = False,
    ) -> None:
        super().__init__()
        check_channels(num_channels)
        if num_features % NUM_LEVELS:
            raise InputError(f"num_features={num_features} is not a multiple of {NUM_LEVELS}, a block's resolutions")
        self.scale, self.num_channels = scale, num_channels
        self.skip = Bicubic(scale=scale) if global_skip else None
        self.to_feat = conv3x3(num_channels, num_features)
        self.feats = nn.Sequential(*(_Block(num_features, int(expansion * num_features)) for _ in range(num_blocks)))
        self.to_img = nn.Sequential(conv3x3(num_features, num_channels * scale**2))
        if global_skip:
            zero_init(self.to_img[0])

    def forward(self, lr: Tensor) -> Tensor:
        x = self.to_feat(lr)
        x = self.to_img(x + self.feats(x))  # (N, F, h, w) -> (N, C*s*s, h, w)
        sr = pixel_shuffle(x, self.scale).float()  # (N, C, h*s, w*s)
        return sr if self.skip is None else sr + self.skip(lr)


class _Block(nn.Module):
    def __init__(self, num_features: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(num_features)
        self.safm = _Modulation(num_features)
        self.norm2 = ChannelNorm(num_features)
        self.ccm = _ChannelMixer(num_features, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.safm(self.norm1(x))
        return x + self.ccm(self.norm2(x))


class _ChannelMixer(nn.Module):
    def __init__(self, num_features: int, hidden: int) -> None:
        super().__init__()
        self.ccm = nn.Sequential(conv3x3(num_features, hidden), nn.GELU(), nn.Conv2d(hidden, num_features, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.ccm(x)


class _Modulation(nn.Module):
    """Convolve a quarter of the channels at each resolution; their mixture multiplies the input."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        quarter = num_features // NUM_LEVELS
        self.mfr = nn.ModuleList(nn.Conv2d(quarter, quarter, 3, padding=1, groups=quarter) for _ in range(NUM_LEVELS))
        self.aggr = nn.Conv2d(num_features, num_features, 1)

    def forward(self, x: Tensor) -> Tensor:
        size = height, width = x.shape[-2:]
        levels = []
        for i, (part, conv) in enumerate(zip(x.chunk(NUM_LEVELS, dim=1), self.mfr, strict=True)):
            if i == 0:
                levels.append(conv(part))
            else:
                small = F.adaptive_max_pool2d(part, (max(height >> i, 1), max(width >> i, 1)))
                levels.append(F.interpolate(conv(small), size=size, mode="nearest"))
        return F.gelu(self.aggr(torch.cat(levels, dim=1))) * x
