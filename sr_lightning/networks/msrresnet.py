"""MSRResNet: SRResNet without batch normalisation, as BasicSR trains it."""

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from sr_lightning.networks.layers import conv3, upsampler, without_autocast

_LeakyReLU = partial(nn.LeakyReLU, 0.1, inplace=True)


class MSRResNet(nn.Module):
    """BasicSR's modified SRResNet (github.com/XPixelGroup/BasicSR); its ESRGAN paper (arXiv 1809.00219) starts there.

    It is neither SRResNet (no batch normalisation, LeakyReLU for PReLU, kernels of 3 for 9) nor EDSR (no skip around
    all blocks, a second convolution at high resolution, the bilinear enlargement added to the output). BasicSR has x2,
    x3 and x4; x8 takes one enlarging step more. Initial weights are a tenth of He's, biases zero, as there.

    Args:
        scale: 2, 3, 4 or 8.
        num_features: Channels of every convolution in between.
        num_blocks: Residual blocks.

    Attributes:
        receptive_radius: LR pixels to each side of its own that an output pixel depends on, at every scale.

    Shapes: lr (N, 3, h, w) RGB in [0, 1], at least 1x1 -> sr (N, 3, h*scale, w*scale), float32, unclamped.

    Raises:
        InputError: Another scale.
    """

    num_channels = 3

    def __init__(self, *, scale: int, num_features: int = 64, num_blocks: int = 16) -> None:
        super().__init__()
        self.scale = scale
        self.receptive_radius = 2 * num_blocks + 3  # 1 each of head and upsampler; high resolution reaches one more
        self.head = conv3(3, num_features)
        self.activation = _LeakyReLU()
        self.blocks = nn.Sequential(*(_ResidualBlock(num_features) for _ in range(num_blocks)))
        self.upsampler = upsampler(num_features, scale, activation=_LeakyReLU)
        self.refine = conv3(num_features, num_features)
        self.tail = conv3(num_features, 3)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                module.weight.data.mul_(0.1)
                nn.init.zeros_(module.bias)

    def forward(self, lr: Tensor) -> Tensor:
        x = self.blocks(self.activation(self.head(lr)))  # (N, F, h, w)
        x = self.upsampler(x)  # (N, F, h*s, w*s)
        x = self.tail(self.activation(self.refine(x))).float()  # (N, 3, h*s, w*s)
        with without_autocast(lr):
            return x + F.interpolate(lr.float(), scale_factor=self.scale, mode="bilinear", align_corners=False)


class _ResidualBlock(nn.Module):
    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.conv1 = conv3(num_features, num_features)
        self.conv2 = conv3(num_features, num_features)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x), inplace=True))
