"""RRDBNet, the generator of ESRGAN and Real-ESRGAN: densely connected blocks in three levels of residuals."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_lightning.errors import InputError
from sr_lightning.networks.layers import check_channels, conv3x3, reflect_to_multiple, zero_bias

STEPS = {2: (2,), 3: (3,), 4: (2, 2), 8: (2, 2, 2)}  # factors of the upsampling stages, by their product


class RRDBNet(nn.Module):
    """ESRGAN: Enhanced Super-Resolution Generative Adversarial Networks, Wang et al. 2018.

    Section 3.1 (arXiv 1809.00219). The names of the weights are those of BasicSR and Real-ESRGAN. x3 has one stage, as
    in the authors' first code. Initial weights as in their code: He's times 0.1 in the dense blocks, PyTorch's default
    elsewhere.

    Args:
        scale: 2, 3, 4 or 8.
        num_features: Channels between the dense blocks.
        num_blocks: Number of residual-in-residual dense blocks.
        growth: Channels that each layer of a dense block adds.
        unshuffle: Factor by which the image becomes smaller before the first convolution, its pixels becoming channels
            (Real-ESRGAN, arXiv 2107.10833, section 4.1): 1, or 2 as in Real-ESRGAN's x2. An image whose sides are no
            multiple is padded by reflection.
        num_channels: 3 (RGB, as in the paper) or 1 (luma).

    Attributes:
        receptive_radius: Number of LR pixels in each direction that an output pixel depends on.
        alignment: Parts of an image are computed exactly if they begin at a multiple of this.

    Shapes: lr (N, num_channels, h, w) in [0, 1], at least 1x1 -> sr (N, num_channels, h*scale, w*scale), float32,
    not clamped.

    Raises:
        InputError: The scale, `unshuffle` or the number of channels is not supported.

    Example:
        >>> import torch
        >>> RRDBNet(scale=4, num_features=8, num_blocks=1)(torch.rand(1, 3, 8, 6)).shape
        torch.Size([1, 3, 32, 24])
    """

    def __init__(
        self,
        *,
        scale: int,
        num_features: int = 64,
        num_blocks: int = 23,
        growth: int = 32,
        unshuffle: int = 1,
        num_channels: int = 3,
    ) -> None:
        super().__init__()
        check_channels(num_channels)
        if unshuffle not in (1, 2) or scale * unshuffle not in STEPS:
            raise InputError(f"{scale=}, {unshuffle=}: RRDBNet has scales 2, 3, 4, 8, and unshuffle=2 at 2 and 4")
        self.scale, self.num_channels, self.alignment = scale, num_channels, unshuffle
        steps = STEPS[scale * unshuffle]
        tail = 1 if steps == (3,) else 2  # of the convolutions at higher resolutions
        self.receptive_radius = unshuffle * (15 * num_blocks + 2 + tail) + unshuffle - 1
        self.steps = steps
        self.conv_first = conv3x3(num_channels * unshuffle**2, num_features)
        self.body = nn.Sequential(*(_ResidualInResidual(num_features, growth) for _ in range(num_blocks)))
        self.conv_body = conv3x3(num_features, num_features)
        for i in range(1, len(steps) + 1):
            self.add_module(f"conv_up{i}", conv3x3(num_features, num_features))
        self.conv_hr = conv3x3(num_features, num_features)
        self.conv_last = conv3x3(num_features, num_channels)

    def forward(self, lr: Tensor) -> Tensor:
        height, width = (self.scale * side for side in lr.shape[-2:])
        x = lr
        if self.alignment > 1:
            x = F.pixel_unshuffle(reflect_to_multiple(lr, self.alignment), self.alignment)
        x = self.conv_first(x)
        x = x + self.conv_body(self.body(x))  # (N, F, h/u, w/u)
        for i, step in enumerate(self.steps, start=1):
            x = F.interpolate(x, scale_factor=step, mode="nearest")
            x = F.leaky_relu(self.get_submodule(f"conv_up{i}")(x), 0.2, inplace=True)
        x = self.conv_last(F.leaky_relu(self.conv_hr(x), 0.2, inplace=True))  # (N, C, h*s, w*s) or padded
        if self.alignment > 1:
            x = x[..., :height, :width]
        return x.float()


class _ResidualInResidual(nn.Module):
    """Three dense blocks with a residual around them."""

    def __init__(self, num_features: int, growth: int) -> None:
        super().__init__()
        self.rdb1 = _DenseBlock(num_features, growth)
        self.rdb2 = _DenseBlock(num_features, growth)
        self.rdb3 = _DenseBlock(num_features, growth)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.rdb3(self.rdb2(self.rdb1(x))), alpha=0.2)


class _DenseBlock(nn.Module):
    """Five convolutions, each of which sees the block's input and the outputs of all before it."""

    def __init__(self, num_features: int, growth: int) -> None:
        super().__init__()
        for i in range(5):
            conv = conv3x3(num_features + i * growth, growth if i < 4 else num_features)
            nn.init.kaiming_normal_(conv.weight)
            with torch.no_grad():
                conv.weight.mul_(0.1)
            zero_bias(conv)
            self.add_module(f"conv{i + 1}", conv)

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for i in range(1, 5):
            y = self.get_submodule(f"conv{i}")(torch.cat(features, dim=1))
            features.append(F.leaky_relu(y, 0.2, inplace=True))
        return torch.add(x, self.get_submodule("conv5")(torch.cat(features, dim=1)), alpha=0.2)
