"""ESPCN: convolutions at low resolution, enlarged by one pixel shuffle at the end."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_lightning.networks.bicubic import Bicubic
from sr_lightning.networks.layers import pixel_shuffle

_IN_PLACE = {"ReLU": F.relu_, "Tanh": torch.tanh_}


class ESPCN(nn.Module):
    """Real-Time Super-Resolution Using an Efficient Sub-Pixel CNN, Shi et al. 2016, section 3 (arXiv 1609.05158).

    The paper's network is `num_features=(64, 32), kernel_sizes=(5, 3, 3), activation="Tanh"`. The defaults are the
    wider form with ReLU that many re-implementations use. Nothing follows the pixel shuffle.

    Args:
        scale: The factor.
        num_features: Outputs of every convolution but the last, which makes scale*scale.
        kernel_sizes: One more than `num_features`. Odd.
        activation: "ReLU" or "Tanh", between the convolutions.
        global_skip: Add the bicubic enlargement of the input. Not in the paper. The last convolution then starts at
            zero, and the network as bicubic: from random output and the full learning rate its ReLUs can all die.
        orthogonal: Orthogonal initial weights with zero biases, the activation's gain
            (torch.nn.init.calculate_gain) and 1 for the last. False: PyTorch's default. The paper says nothing.
        detail_gain: Gain of the first convolution's orthogonal weights, whose filters are then made zero-mean: detail
            is small (about 0.05 of the range) and brightness is not, so a tanh network stays linear, and stuck,
            without it. None leaves the first convolution like the others.

    Attributes:
        receptive_radius: LR pixels to each side of its own that an output pixel depends on.

    Shapes: lr (N, 1, h, w) luma in [0, 1], at least 1x1 -> sr (N, 1, h*scale, w*scale), unclamped.
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
                f"ESPCN needs one odd kernel more than hidden widths, got num_features={list(num_features)}, "
                f"kernel_sizes={list(kernel_sizes)}"
            )
        if detail_gain is not None and not orthogonal:
            raise ValueError(f"detail_gain={detail_gain} scales orthogonal weights: set orthogonal=true as well")
        self.scale = scale
        self.receptive_radius = max(sum(k // 2 for k in kernel_sizes), Bicubic.receptive_radius * global_skip)
        self.skip = Bicubic(scale=scale) if global_skip else None
        widths = [1, *num_features, scale * scale]
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, k, padding=k // 2) for i, o, k in zip(widths[:-1], widths[1:], kernel_sizes, strict=True)
        )
        if activation not in _IN_PLACE:
            raise ValueError(f"activation={activation!r}: ESPCN takes 'ReLU' or 'Tanh'")
        self.activation = _IN_PLACE[activation]
        if orthogonal:
            self._init_orthogonal(nn.init.calculate_gain(activation.lower()), detail_gain)
        if global_skip:
            nn.init.zeros_(self.convs[-1].weight)
            nn.init.zeros_(self.convs[-1].bias)

    @torch.no_grad()
    def _init_orthogonal(self, gain: float, detail_gain: float | None) -> None:
        for conv in self.convs:
            nn.init.orthogonal_(conv.weight, 1.0 if conv is self.convs[-1] else gain)
            nn.init.zeros_(conv.bias)
        if detail_gain is not None:
            first = self.convs[0].weight
            nn.init.orthogonal_(first, detail_gain)
            first -= first.mean(dim=(1, 2, 3), keepdim=True)

    def forward(self, lr: Tensor) -> Tensor:
        x = lr
        for conv in self.convs[:-1]:
            x = self.activation(conv(x))
        x = self.convs[-1](x)  # (N, s*s, h, w)
        if self.skip is not None:
            x = self.skip.phases(lr).add_(x)
        return pixel_shuffle(x, self.scale)  # (N, s*s, h, w) -> (N, 1, h*s, w*s)
