"""WDSR: wide activations in narrow blocks, weight normalisation, everything at low resolution."""

import copy
from math import sqrt

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from sr_lightning.errors import InputError
from sr_lightning.networks.bicubic import Bicubic
from sr_lightning.networks.layers import div2k_mean, pixel_shuffle


class WDSR(nn.Module):
    """Wide Activation for Efficient and Accurate Image Super-Resolution, Yu et al. 2018, section 3 (arXiv 1808.08718).

    Type A blocks (conv3, ReLU, conv3; `low_rank=None`) widen the features before the ReLU, type B blocks (conv1, ReLU,
    conv1, conv3) widen them further and narrow them again below their first width. A second branch of one 5x5
    convolution goes from the input to the output. Nothing follows the pixel shuffle. Published are A with
    `num_features=32, num_blocks=16, expansion=4` and `128, 32, 4`, B with `32, 32, 6, low_rank=0.8`.

    Initial weights follow the authors' second code (github.com/ychfan/wdsr): weights with random directions, of norm
    2 for the first convolution of a block, 1/sqrt(num_blocks) for its last, 1 elsewhere (that code has no type B: 1
    for its middle convolution is this project's choice), biases zero. So they are with and without weight
    normalisation.

    Args:
        scale: The factor.
        num_features: Channels between the blocks.
        num_blocks: Residual blocks.
        expansion: Channels before a block's ReLU, as a multiple of `num_features`.
        low_rank: Channels after a type B block's second convolution, as a share of `num_features`. None: type A.
        residual_scale: What a block adds is multiplied by it.
        weight_norm: Normalise the weights of every convolution, which allows learning rates ten times as high.
        num_channels: 3 (RGB, as in the paper) or 1 (luma).
        global_skip: Add the bicubic enlargement of the input instead of the mean. Not in the paper. Both branches'
            last convolutions then start at zero, and the network as bicubic.

    Attributes:
        receptive_radius: LR pixels to each side of its own that an output pixel depends on, at every scale.

    Shapes: lr (N, num_channels, h, w) in [0, 1], at least 1x1 -> sr (N, num_channels, h*scale, w*scale), float32,
    unclamped. Inside, images are (image - mean) * 2 with the mean of DIV2K, as in the authors' first code
    (github.com/JiahuiYu/wdsr_ntire2018).

    Raises:
        InputError: A scale below 2, a number of channels that is none of the above, or a block left without channels.
    """

    def __init__(
        self,
        *,
        scale: int,
        num_features: int = 32,
        num_blocks: int = 16,
        expansion: float = 4,
        low_rank: float | None = None,
        residual_scale: float = 1.0,
        weight_norm: bool = True,
        num_channels: int = 3,
        global_skip: bool = False,
    ) -> None:
        super().__init__()
        wide = int(expansion * num_features)
        low = None if low_rank is None else int(low_rank * num_features)
        if wide < 1 or (low is not None and low < 1):
            raise InputError(f"num_features={num_features}, {expansion=}, {low_rank=} leave a block without channels")
        if scale < 2:
            raise InputError(f"scale={scale}: WDSR enlarges by an integer of at least 2")
        self.scale, self.num_channels = scale, num_channels
        self.receptive_radius = (2 if low is None else 1) * num_blocks + 2
        self.register_buffer("mean", div2k_mean(num_channels), persistent=False)
        self.skip = Bicubic(scale=scale) if global_skip else None
        out = num_channels * scale * scale
        self.head = _conv(num_channels, num_features, 3)
        self.blocks = nn.Sequential(
            *(_Block(num_features, wide, low, residual_scale, 1 / sqrt(num_blocks)) for _ in range(num_blocks))
        )
        self.tail = _conv(num_features, out, 3, norm=0 if global_skip else 1)
        self.shortcut = _conv(num_channels, out, 5, norm=0 if global_skip else 1)
        if not weight_norm:
            _fold_weight_norm(self)

    def forward(self, lr: Tensor) -> Tensor:
        x = (lr - self.mean) * 2
        y = self.tail(self.blocks(self.head(x))) + self.shortcut(x)
        sr = pixel_shuffle(y, self.scale).float() / 2  # (N, C*s*s, h, w) -> (N, C, h*s, w*s)
        return sr + (self.mean if self.skip is None else self.skip(lr))

    def for_inference(self) -> "WDSR":
        """A copy with the weight normalisation folded into plain weights: the same output in less time."""
        return _fold_weight_norm(copy.deepcopy(self))


class _Block(nn.Module):
    def __init__(self, num_features: int, wide: int, low: int | None, residual_scale: float, last_norm: float) -> None:
        super().__init__()
        self.residual_scale = residual_scale
        if low is None:
            self.expand = _conv(num_features, wide, 3, norm=2)
            self.reduce = nn.Identity()
            self.conv = _conv(wide, num_features, 3, norm=last_norm)
        else:
            self.expand = _conv(num_features, wide, 1, norm=2)
            self.reduce = _conv(wide, low, 1)
            self.conv = _conv(low, num_features, 3, norm=last_norm)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.reduce(F.relu(self.expand(x), inplace=True)))
        return x.add(y, alpha=self.residual_scale)


def _conv(in_channels: int, out_channels: int, kernel_size: int, *, norm: float = 1.0) -> nn.Conv2d:
    """A weight-normalised convolution whose filters have random directions and this norm."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    nn.init.zeros_(conv.bias)
    parametrizations.weight_norm(conv)
    nn.init.constant_(conv.parametrizations.weight.original0, norm)  # g of weight = g * v / |v|
    return conv


def _fold_weight_norm(network: nn.Module) -> nn.Module:
    """Put plain convolutions in the place of weight-normalised ones.

    Not `remove_parametrizations`: it changes the convolution's class, which after `deepcopy` is still the original's.
    """
    for name, conv in list(network.named_modules()):
        if parametrize.is_parametrized(conv):
            plain = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, padding=conv.padding)
            plain.weight, plain.bias = nn.Parameter(conv.weight.detach()), conv.bias
            network.set_submodule(name, plain)
    return network
