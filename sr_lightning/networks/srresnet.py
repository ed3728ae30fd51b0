"""SRResNet: residual blocks with batch normalisation, the generator of SRGAN."""

import copy

import torch
from torch import Tensor, nn

from sr_lightning.errors import InputError
from sr_lightning.networks.layers import conv3, fold_batch_norm, upsampler

# Mean and standard deviation of RGB, subtracted from and divided into lr
NORMALISATIONS = {
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


class SRResNet(nn.Module):
    """Photo-Realistic Single Image Super-Resolution Using a GAN, Ledig et al. 2017, section 2.1 (arXiv 1609.04802).

    The paper has x4; x2 and x8 take one and three of its enlarging steps, x3 a single one to 9*num_features channels.
    All convolutions have biases and all PReLUs one slope each. The paper does not say how weights are initialised:
    PyTorch's default here. Inside, HR images are in [-1, 1], as in the paper; the last line maps them to [0, 1], so a
    squared error is a quarter of the paper's.

    Args:
        scale: 2, 3, 4 or 8.
        num_features: Channels of every convolution in between.
        num_blocks: Residual blocks.
        lr_normalisation: "unit" leaves lr in [0, 1], as the paper does; "imagenet" subtracts ImageNet's mean colour and
            divides by its deviation, as sgrvinod's tutorial and articles after it do.
        tanh: End in a tanh, as several re-implementations do; the paper mentions none.

    Attributes:
        receptive_radius: LR pixels to each side of its own that an output pixel depends on, at every scale, in
            evaluation mode.

    Shapes: lr (N, 3, h, w) RGB in [0, 1], at least 1x1 -> sr (N, 3, h*scale, w*scale), float32, unclamped without tanh.

    Raises:
        InputError: A scale or a normalisation that is none of the above.
    """

    num_channels = 3

    def __init__(
        self,
        *,
        scale: int,
        num_features: int = 64,
        num_blocks: int = 16,
        lr_normalisation: str = "unit",
        tanh: bool = False,
    ) -> None:
        super().__init__()
        if lr_normalisation not in NORMALISATIONS:
            raise InputError(f"lr_normalisation={lr_normalisation!r}: SRResNet takes {' or '.join(NORMALISATIONS)}")
        self.scale, self.tanh = scale, tanh
        self.receptive_radius = 2 * num_blocks + 8  # 4 of the head, 1 each of merge and upsampler, 2 of the tail
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in NORMALISATIONS[lr_normalisation])
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        self.head = nn.Conv2d(3, num_features, 9, padding=4)
        self.activation = nn.PReLU()
        self.blocks = nn.Sequential(*(_ResidualBlock(num_features) for _ in range(num_blocks)))
        self.merge, self.norm = conv3(num_features, num_features), nn.BatchNorm2d(num_features)
        self.upsampler = upsampler(num_features, scale, activation=nn.PReLU)
        self.tail = nn.Conv2d(num_features, 3, 9, padding=4)

    def forward(self, lr: Tensor) -> Tensor:
        x = self.activation(self.head((lr - self.mean) / self.std))
        x = x + self.norm(self.merge(self.blocks(x)))  # (N, F, h, w)
        x = self.tail(self.upsampler(x)).float()  # (N, F, h, w) -> (N, F, h*s, w*s) -> (N, 3, h*s, w*s)
        return ((x.tanh() if self.tanh else x) + 1) / 2  # [-1, 1] -> [0, 1]

    def for_inference(self) -> "SRResNet":
        """A copy with the batch normalisation folded into the convolutions: the same output in less time."""
        network = copy.deepcopy(self).eval()
        fold_batch_norm(network, "merge", "norm")
        for block in network.blocks:
            fold_batch_norm(block, "conv1", "norm1")
            fold_batch_norm(block, "conv2", "norm2")
        return network


class _ResidualBlock(nn.Module):
    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv3(num_features, num_features), nn.BatchNorm2d(num_features)
        self.activation = nn.PReLU()
        self.conv2, self.norm2 = conv3(num_features, num_features), nn.BatchNorm2d(num_features)

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.norm1(self.conv1(x)))
        return x + self.norm2(self.conv2(y))
