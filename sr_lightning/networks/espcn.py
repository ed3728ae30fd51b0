"""ESPCN: convolutions at low resolution, then one pixel shuffle."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_lightning.networks.bicubic import Bicubic
from sr_lightning.networks.layers import pixel_shuffle, zero_bias, zero_init

# In-place function and gain of orthogonal initial weights
_ACTIVATIONS = {
    "ReLU": (F.relu_, nn.init.calculate_gain("relu")),
    "Tanh": (torch.tanh_, nn.init.calculate_gain("tanh")),
}


class ESPCN(nn.Module):
    """Real-Time Super-Resolution Using an Efficient Sub-Pixel CNN, Shi et al. 2016, section 3 (arXiv 1609.05158).

    The paper's network is `num_features=(64, 32), kernel_sizes=(5, 3, 3), activation="Tanh"`. The defaults are a wider
    variant with ReLU, common in re-implementations. Nothing follows the pixel shuffle.

    Args:
        scale: Super-resolution factor.
        num_features: Output channels of all convolutions but the last, which has scale*scale.
        kernel_sizes: Odd sizes, one more than `num_features`.
        activation: "ReLU" or "Tanh", after all convolutions but the last.
        global_skip: Add the bicubically upscaled input. Not in the paper. The last convolution is then initialised with
            zeros, so that training starts from bicubic; with random initial output all ReLUs can die at a high learning
            rate.
        orthogonal: Orthogonal initial weights with the gain of the activation (torch.nn.init.calculate_gain; 1 for the
            last convolution) and zero biases. False: PyTorch's default. The paper does not specify it.
        detail_gain: Gain of the first convolution's orthogonal weights, whose filters then also get zero mean. Detail
            has a small amplitude (about 0.05), brightness a large one, so without this gain a tanh network stays in its
            linear range and does not learn. None: initialise the first convolution like the others.

    Attributes:
        receptive_radius: Number of LR pixels in each direction that an output pixel depends on.

    Shapes: lr (N, 1, h, w) luma in [0, 1], at least 1x1 -> sr (N, 1, h*scale, w*scale), not clamped.

    Raises:
        ValueError: Kernel sizes, activation or detail_gain do not fit together.

    Example:
        >>> import torch
        >>> ESPCN(scale=2)(torch.rand(1, 1, 8, 6)).shape
        torch.Size([1, 1, 16, 12])
    """

    num_channels = 1

    def __init__(
        self,
        *,
        scale: int,
        num_features: Sequence[int] = (64, 64, 32),
        kernel_sizes: Sequence[int] = (5, 3, 3, 3),
        activation: str = "ReLU",
        global_skip: bool = False,
        orthogonal: bool = True,
        detail_gain: float | None = None,
    ) -> None:
        super().__init__()
        if len(kernel_sizes) != len(num_features) + 1 or any(k % 2 == 0 for k in kernel_sizes):
            raise ValueError(
                f"ESPCN needs odd kernel sizes, one more than num_features, got num_features={list(num_features)}, "
                f"kernel_sizes={list(kernel_sizes)}"
            )
        if detail_gain is not None and not orthogonal:
            raise ValueError(f"detail_gain={detail_gain} needs orthogonal weights: set orthogonal=true as well")
        self.scale = scale
        self.receptive_radius = max(sum(k // 2 for k in kernel_sizes), Bicubic.receptive_radius * global_skip)
        self.skip = Bicubic(scale=scale) if global_skip else None
        widths = [1, *num_features, scale * scale]
        convs = [
            nn.Conv2d(i, o, k, padding=k // 2) for i, o, k in zip(widths[:-1], widths[1:], kernel_sizes, strict=True)
        ]
        self.convs = nn.ModuleList(convs)
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation={activation!r}: ESPCN takes 'ReLU' or 'Tanh'")
        self.activation, gain = _ACTIVATIONS[activation]
        if orthogonal:
            _init_orthogonal(convs, gain, detail_gain)
        if global_skip:
            zero_init(convs[-1])

    def forward(self, lr: Tensor) -> Tensor:
        x = lr
        for conv in self.convs[:-1]:
            x = self.activation(conv(x))
        x = self.convs[-1](x)  # (N, s*s, h, w)
        if self.skip is not None:
            x = self.skip.phases(lr).add_(x)
        return pixel_shuffle(x, self.scale)  # (N, s*s, h, w) -> (N, 1, h*s, w*s)


@torch.no_grad()
def _init_orthogonal(convs: Sequence[nn.Conv2d], gain: float, detail_gain: float | None) -> None:
    for conv in convs:
        nn.init.orthogonal_(conv.weight, 1.0 if conv is convs[-1] else gain)
        zero_bias(conv)
    if detail_gain is not None:
        first = convs[0].weight
        nn.init.orthogonal_(first, detail_gain)
        first -= first.mean(dim=(1, 2, 3), keepdim=True)
