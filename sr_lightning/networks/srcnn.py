"""SRCNN: three convolutions on bicubically upscaled luma."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_lightning.networks.bicubic import Bicubic, radius_behind_bicubic
from sr_lightning.networks.layers import zero_bias, zero_init


class SRCNN(nn.Module):
    """Image Super-Resolution Using Deep Convolutional Networks, Dong et al. 2015, section 3 (arXiv 1501.00092).

    As in the paper, training uses no padding and inference replicates the border: in training mode `sr` lacks `margin`
    pixels on each side, in evaluation mode it has the full size.

    Args:
        scale: Super-resolution factor; only used by the bicubic upscaling before the first convolution.
        num_features: Output channels of the first and the second convolution.
        kernel_sizes: Three odd sizes; 9-1-5 is the paper's first network, 9-5-5 its largest.
        global_skip: Add the upscaled input to the output, so that the network learns the residual. Not in the paper.
            The last convolution is then initialised with zeros, so that training starts from bicubic.
        init_std: Standard deviation of normally distributed initial weights with zero biases (the paper: 0.001).
            None: PyTorch's default.

    Attributes:
        margin: HR pixels that `sr` lacks on each side in training mode.
        receptive_radius: Number of LR pixels in each direction that an output pixel depends on.

    Shapes: lr (N, 1, h, w) luma in [0, 1], at least 1x1 -> sr (N, 1, h*scale, w*scale), not clamped; in training mode
    2*margin less in height and width.

    Raises:
        ValueError: Not two features and three odd kernel sizes.

    Example:
        >>> import torch
        >>> network = SRCNN(scale=2)
        >>> network.train()(torch.rand(1, 1, 8, 10)).shape  # 2 * margin = 12 less
        torch.Size([1, 1, 4, 8])
        >>> network.eval()(torch.rand(1, 1, 8, 10)).shape
        torch.Size([1, 1, 16, 20])
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
                f"SRCNN needs two num_features and three odd kernel_sizes, got num_features={list(num_features)}, "
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
                zero_bias(conv)
        if global_skip:
            zero_init(self.conv3)

    def forward(self, lr: Tensor) -> Tensor:
        enlarged = self.upsample(lr)  # (N, 1, h, w) -> (N, 1, h*s, w*s), float32
        x = F.relu(self._convolve(self.conv1, enlarged.to(lr.dtype)), inplace=True)
        x = F.relu(self._convolve(self.conv2, x), inplace=True)
        sr = self._convolve(self.conv3, x)
        if not self.global_skip:
            return sr
        if self.training:
            enlarged = enlarged[..., self.margin : -self.margin, self.margin : -self.margin]
        return sr.to(torch.float32) + enlarged

    def _convolve(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        """Convolve without padding in training; otherwise replicate the border first, as in the authors' code."""
        border = conv.kernel_size[0] // 2
        if border and not self.training:
            x = F.pad(x, (border,) * 4, mode="replicate")
        return conv(x)
