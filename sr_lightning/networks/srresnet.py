"""SRResNet, the generator of SRGAN: residual blocks with batch normalisation."""

import copy

import torch
from torch import Tensor, nn

from sr_lightning.errors import InputError
from sr_lightning.networks.layers import conv3x3, fold_batch_norm, upsampler

# Mean and standard deviation of RGB: lr is normalised as (lr - mean) / std
NORMALISATIONS = {
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


class SRResNet(nn.Module):
    """Photo-Realistic Single Image Super-Resolution Using a GAN, Ledig et al. 2017, section 2.1 (arXiv 1609.04802).

    The paper has x4; x2 and x8 use one and three of its upscaling steps, x3 a single one with 9*num_features channels.
    All convolutions have biases, and each PReLU has one slope. The paper does not specify the initial weights; they are
    PyTorch's default here. Internally, HR images are in [-1, 1], as in the paper. The output is mapped to [0, 1], so
    squared errors are a quarter of the paper's.

    Args:
        scale: 2, 3, 4 or 8.
        num_features: Channels of all layers between the first and the last.
        num_blocks: Number of residual blocks.
        lr_normalisation: "unit" keeps lr in [0, 1], as in the paper; "imagenet" subtracts ImageNet's mean and
            divides by its standard deviation, as in sgrvinod's tutorial and articles based on it.
        tanh: End with a tanh, as in several re-implementations; the paper mentions none.

    Attributes:
        receptive_radius: Number of LR pixels in each direction that an output pixel depends on, at every scale, in
            evaluation mode.

    Shapes: lr (N, 3, h, w) RGB in [0, 1], at least 1x1 -> sr (N, 3, h*scale, w*scale), float32, not
    clamped without tanh.

    Raises:
        InputError: The scale or the normalisation is not supported.

    Example:
        >>> import torch
        >>> SRResNet(scale=2, num_blocks=1)(torch.rand(1, 3, 8, 6)).shape
        torch.Size([1, 3, 16, 12])
    """

    num_channels = 3
    mean: Tensor
    std: Tensor

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
            raise InputError(f"lr_normalisation={lr_normalisation!r}: choose {' or '.join(NORMALISATIONS)}")
        self.scale, self.tanh = scale, tanh
        self.receptive_radius = 2 * num_blocks + 8  # 4 of the head, 1 each of merge and upsampler, 2 of the tail
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in NORMALISATIONS[lr_normalisation])
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        self.head = nn.Conv2d(3, num_features, 9, padding=4)
        self.activation = nn.PReLU()
        self.blocks = nn.Sequential(*(_ResidualBlock(num_features) for _ in range(num_blocks)))
        self.merge, self.norm = conv3x3(num_features, num_features), nn.BatchNorm2d(num_features)
        self.upsampler = upsampler(num_features, scale, activation=nn.PReLU)
        self.tail = nn.Conv2d(num_features, 3, 9, padding=4)

    def forward(self, lr: Tensor) -> Tensor:
        x = self.activation(self.head((lr - self.mean) / self.std))
        x = x + self.norm(self.merge(self.blocks(x)))  # (N, F, h, w)
        x = self.tail(self.upsampler(x)).float()  # (N, F, h, w) -> (N, F, h*s, w*s) -> (N, 3, h*s, w*s)
        return ((x.tanh() if self.tanh else x) + 1) / 2  # [-1, 1] -> [0, 1]

    def for_inference(self) -> "SRResNet":
        """Return a copy with the batch normalisation folded into the convolutions: same output, less time."""
        network = copy.deepcopy(self).eval()
        fold_batch_norm(network, "merge", "norm")
        for block in network.blocks:
            fold_batch_norm(block, "conv1", "norm1")
            fold_batch_norm(block, "conv2", "norm2")
        return network


class _ResidualBlock(nn.Module):
    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv3x3(num_features, num_features), nn.BatchNorm2d(num_features)
        self.activation = nn.PReLU()
        self.conv2, self.norm2 = conv3x3(num_features, num_features), nn.BatchNorm2d(num_features)

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.norm1(self.conv1(x)))
        return x + self.norm2(self.conv2(y))
