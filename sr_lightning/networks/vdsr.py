"""VDSR: twenty convolutions that learn the residual of bicubic upscaling."""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from sr_lightning.errors import InputError
from sr_lightning.networks.bicubic import Bicubic, radius_behind_bicubic
from sr_lightning.networks.layers import zero_bias


class VDSR(nn.Module):
    """Accurate Image Super-Resolution Using Very Deep Convolutional Networks, Kim et al. 2016 (arXiv 1511.04587).

    Section 3. The weights do not depend on the scale: the paper trains one network for x2, x3 and x4. Initial
    weights are He's (normal, variance 2 / fan-in), biases zero.

    Args:
        scale: Super-resolution factor; only used by the bicubic upscaling before the first convolution.
        num_features: Channels of all layers between the first and the last.
        num_layers: Number of convolutions, at least 2.
        bias: Give the convolutions biases. twtygqyy's published weights have none.

    Attributes:
        receptive_radius: Number of LR pixels in each direction that an output pixel depends on.

    Shapes: lr (N, 1, h, w) luma in [0, 1], at least 1x1 -> sr (N, 1, h*scale, w*scale), float32, not clamped.

    Raises:
        InputError: Fewer than two layers.

    Example:
        >>> import torch
        >>> VDSR(scale=2, num_layers=2)(torch.rand(1, 1, 8, 6)).shape
        torch.Size([1, 1, 16, 12])
    """

    num_channels = 1

    def __init__(self, *, scale: int, num_features: int = 64, num_layers: int = 20, bias: bool = True) -> None:
        super().__init__()
        if num_layers < 2:
            raise InputError(f"num_layers={num_layers}: VDSR needs at least 2 convolutions")
        self.scale = scale
        self.receptive_radius = radius_behind_bicubic(num_layers, scale)
        self.upsample = Bicubic(scale=scale)
        widths = [1, *[num_features] * (num_layers - 1), 1]
        convs = [nn.Conv2d(i, o, 3, padding=1, bias=bias) for i, o in pairwise(widths)]
        self.convs = nn.ModuleList(convs)
        for conv in convs:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            zero_bias(conv)

    def forward(self, lr: Tensor) -> Tensor:
        enlarged = self.upsample(lr)  # (N, 1, h, w) -> (N, 1, h*s, w*s), float32
        x = enlarged.to(lr.dtype)
        for conv in self.convs[:-1]:
            x = F.relu(conv(x), inplace=True)
        return self.convs[-1](x).float() + enlarged
