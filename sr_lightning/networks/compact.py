"""Compact: the plain network of Real-ESRGAN's small models."""

from torch import Tensor, nn
from torch.nn import functional as F

from sr_lightning.networks.bicubic import Bicubic
from sr_lightning.networks.layers import check_channels, conv3x3, pixel_shuffle, zero_init


class Compact(nn.Module):
    """SRVGGNetCompact of Real-ESRGAN (Wang et al. 2021, arXiv 2107.10833; github.com/xinntao/Real-ESRGAN).

    3x3 convolutions with PReLU at low resolution, a pixel shuffle, and the input enlarged by repeating its pixels. The
    names of the weights are the published ones. Initial weights are PyTorch's default, as in the authors' code.

    Args:
        scale: The factor.
        num_features: Channels of all layers but the last.
        num_blocks: Number of convolutions with PReLU after the first one: 16 for the general models, 32 for the large
            ones.
        num_channels: 3 (RGB, as published) or 1 (luma).
        global_skip: Add the bicubically upscaled input instead of the repeated pixels. Not published. The last
            convolution is then initialised with zeros, so that training starts from bicubic.

    Attributes:
        receptive_radius: Number of LR pixels in each direction that an output pixel depends on, at every scale.

    Shapes: lr (N, num_channels, h, w) in [0, 1], at least 1x1 -> sr (N, num_channels, h*scale, w*scale), float32,
    not clamped.

    Raises:
        InputError: The number of channels is not supported.

    Example:
        >>> import torch
        >>> Compact(scale=2, num_blocks=1)(torch.rand(1, 3, 8, 6)).shape
        torch.Size([1, 3, 16, 12])
    """

    def __init__(
        self,
        *,
        scale: int,
        num_features: int = 64,
        num_blocks: int = 16,
        num_channels: int = 3,
        global_skip: bool = False,
    ) -> None:
        super().__init__()
        check_channels(num_channels)
        self.scale, self.num_channels = scale, num_channels
        self.receptive_radius = num_blocks + 2
        self.skip = Bicubic(scale=scale) if global_skip else None
        layers: list[nn.Module] = []
        for in_channels in (num_channels, *[num_features] * num_blocks):
            layers += [conv3x3(in_channels, num_features), nn.PReLU(num_features)]
        self.body = nn.Sequential(*layers, conv3x3(num_features, num_channels * scale**2))
        if global_skip:
            zero_init(self.body[-1])

    def forward(self, lr: Tensor) -> Tensor:
        x = pixel_shuffle(self.body(lr), self.scale).float()  # (N, C*s*s, h, w) -> (N, C, h*s, w*s)
        return x + (F.interpolate(lr, scale_factor=self.scale, mode="nearest") if self.skip is None else self.skip(lr))
