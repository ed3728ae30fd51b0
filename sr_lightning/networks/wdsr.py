"""WDSR: residual blocks with wide activations and weight normalisation, all at low resolution."""

import copy
from math import sqrt

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from sr_lightning.errors import InputError
from sr_lightning.networks.bicubic import Bicubic
from sr_lightning.networks.layers import div2k_mean, pixel_shuffle, zero_bias


class WDSR(nn.Module):
    """Wide Activation for Efficient and Accurate Image Super-Resolution, Yu et al. 2018, section 3 (arXiv 1808.08718).

    Type A blocks (3x3 convolution, ReLU, 3x3 convolution; `low_rank=None`) have wide features before the ReLU. Type B
    blocks (1x1 convolution, ReLU, 1x1 convolution, 3x3 convolution) have wider ones, reduced to fewer channels than the
    block's input before the 3x3 convolution. A second branch with one 5x5 convolution connects input and output.
    Nothing follows the pixel shuffle. Published networks: type A with `num_features=32, num_blocks=16, expansion=4` and
    `128, 32, 4`, type B with `32, 32, 6, low_rank=0.8`.

    Initial weights follow the authors' second code (github.com/ychfan/wdsr), with and without weight normalisation:
    filters with random directions and norm 2 for the first convolution of a block, 1/sqrt(num_blocks) for its last, 1
    elsewhere; zero biases. That code has no type B; norm 1 for its middle convolution is this project's choice.

    Args:
        scale: Super-resolution factor.
        num_features: Channels between the blocks.
        num_blocks: Number of residual blocks.
        expansion: Channels before a block's ReLU, relative to `num_features`.
        low_rank: Channels after the second convolution of a type B block, relative to `num_features`. None: type A.
        residual_scale: Factor of each residual.
        weight_norm: Use weight normalisation, which allows ten times higher learning rates.
        num_channels: 3 (RGB, as in the paper) or 1 (luma).
        global_skip: Add the bicubically upscaled input instead of the mean. Not in the paper. The last convolution of
            each branch is then initialised with zeros, so that training starts from bicubic.

    Attributes:
        receptive_radius: Number of LR pixels in each direction that an output pixel depends on, at every scale.

    Shapes: lr (N, num_channels, h, w) in [0, 1], at least 1x1 -> sr (N, num_channels, h*scale, w*scale), float32,
    not clamped. Internally, images are (image - mean) * 2 with the mean of DIV2K, as in the authors' first code
    (github.com/JiahuiYu/wdsr_ntire2018).

    Raises:
        InputError: The scale or the number of channels is not supported, or a block would have no channels.

    Example:
        >>> import torch
        >>> WDSR(scale=2, num_blocks=1)(torch.rand(1, 3, 8, 6)).shape
        torch.Size([1, 3, 16, 12])
    """

    mean: Tensor

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
            raise InputError(
                f"num_features={num_features}, {expansion=}, {low_rank=} leave a block without channels: increase them"
            )
        if scale < 2:
            raise InputError(f"scale={scale}: WDSR needs an integer of at least 2")
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
        """Return a copy with the weight normalisation folded into plain weights: same output, less time."""
        network = copy.deepcopy(self)
        _fold_weight_norm(network)
        return network


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
    """Return a weight-normalised convolution whose filters have random directions and the given norm."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    zero_bias(conv)
    parametrizations.weight_norm(conv)
    # weight = g * v / |v|; pyright cannot see g, which weight_norm adds
    gain: Tensor = conv.parametrizations.weight.original0  # pyright: ignore[reportAttributeAccessIssue, reportAssignmentType]
    nn.init.constant_(gain, norm)
    return conv


def _fold_weight_norm(network: nn.Module) -> None:
    """Replace weight-normalised convolutions by plain ones, in place.

    `remove_parametrizations` does not work here: it changes the class of the convolution, which after `deepcopy` is
    still shared with the original.
    """
    for name, conv in list(network.named_modules()):
        if isinstance(conv, nn.Conv2d) and parametrize.is_parametrized(conv):
            kernel_size = conv.kernel_size[0]
            plain = nn.Conv2d(conv.in_channels, conv.out_channels, kernel_size, padding=kernel_size // 2)
            plain.weight, plain.bias = nn.Parameter(conv.weight.detach()), conv.bias
            network.set_submodule(name, plain)
