"""SRCNN: three convolutions on the bicubically enlarged luma."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_lightning.networks.bicubic import Bicubic, radius_behind_bicubic


class SRCNN(nn.Module):
    """Image Super-Resolution Using Deep Convolutional Networks, Dong et al. 2015, section 3 (arXiv 1501.00092).

    The paper trains without padding, on the part of a patch that the convolutions see in full, and enlarges images
    with replicated borders. So does this network: in training mode `sr` lacks `margin` pixels on each side, in
    evaluation mode it has the full size.

    Args:
        scale: The factor; it only drives the bicubic enlargement before the first convolution.
        num_features: Outputs of the first and the second convolution.
        kernel_sizes: 9-1-5 is the paper's first network, 9-5-5 its largest. Odd.
        global_skip: Add the enlarged input to the output, so that the network learns what bicubic lacks. Not in the
            paper. The last convolution then starts at zero, and the network as bicubic.
        init_std: Standard deviation of the normal the weights are drawn from, biases zero (the paper: 0.001).
            None: PyTorch's default.

    Attributes:
        margin: HR pixels that `sr` lacks on each side in training mode.
        receptive_radius: LR pixels to each side of its own that an output pixel depends on.

    Shapes: lr (N, 1, h, w) luma in [0, 1], at least 1x1 -> sr (N, 1, h*scale, w*scale), unclamped; in training mode
    `2*margin` less in height and width.
    """

    num_channels = 1

    def __init__(
        self,
        *,
        scale: int,
        num_features: Sequence[int] = (64, 32),
        kernel_sizes: Sequence[int] = (9, 1, 5),
        global_skip: bool = False,
        init_std: float | None = None,
    ) -> None:
        super().__init__()
        if len(num_features) != 2 or len(kernel_sizes) != 3 or any(k % 2 == 0 for k in kernel_sizes):
            raise ValueError(
                f"SRCNN has two hidden widths and three odd kernels, got num_features={list(num_features)}, "
                f"kernel_sizes={list(kernel_sizes)}"
            )
        self.scale = scale
        self.global_skip = global_skip
        self.margin = sum(k // 2 for k in kernel_sizes)
        self.receptive_radius = radius_behind_bicubic(self.margin, scale)
        self.upsample = Bicubic(scale=scale)
        self.conv1 = nn.Conv2d(1, num_features[0], kernel_sizes[0])
        self.conv2 = nn.Conv2d(num_features[0], num_features[1], kernel_sizes[1])
        self.conv3 = nn.Conv2d(num_features[1], 1, kernel_sizes[2])
        if init_std is not None:
            for conv in (self.conv1, self.conv2, self.conv3):
                nn.init.normal_(conv.weight, std=init_std)
                nn.init.zeros_(conv.bias)
        if global_skip:
            nn.init.zeros_(self.conv3.weight)
            nn.init.zeros_(self.conv3.bias)

    def forward(self, lr: Tensor) -> Tensor:
        enlarged = self.upsample(lr)  # (N, 1, h, w) -> (N, 1, h*s, w*s)
        x = F.relu(self._convolve(self.conv1, enlarged), inplace=True)
        x = F.relu(self._convolve(self.conv2, x), inplace=True)
        sr = self._convolve(self.conv3, x)
        if not self.global_skip:
            return sr
        if self.training:
            enlarged = enlarged[..., self.margin : -self.margin, self.margin : -self.margin]
        return sr.to(torch.float32) + enlarged

    def _convolve(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        """Unpadded in training; with the border replicated before each convolution otherwise, as the authors' code."""
        border = conv.kernel_size[0] // 2
        if border and not self.training:
            x = F.pad(x, (border,) * 4, mode="replicate")
        return conv(x)
