"""Bicubic enlargement: the baseline of every table, SRCNN's first step, and the global skip of other networks."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_lightning.errors import InputError
from sr_lightning.networks.layers import pixel_shuffle, without_autocast


class Bicubic(nn.Module):
    """Keys' cubic interpolation with a = -0.5, as in MATLAB and Pillow (torch has -0.75); borders are replicated.

    The scale*scale outputs that lie in one pixel are as many fixed weightings of the 5x5 pixels around it: one
    convolution and a pixel shuffle. It runs in float32 whatever autocast, the input or `.half()` say, since bfloat16
    would be off by half a grey level. Only TF32, which torch allows convolutions on CUDA by default, is left to
    `torch.backends.cudnn.allow_tf32`.

    Args:
        scale: The factor.

    Attributes:
        receptive_radius: LR pixels to each side of its own that an output pixel depends on, at every scale.

    Shapes: lr (N, C, h, w), any C and range, at least 1x1 -> sr (N, C, h*scale, w*scale), float32, unclamped.
    """

    receptive_radius = 2
    num_channels = 1  # as the baseline it is scored on luma, like the classics; it takes any number

    def __init__(self, *, scale: int) -> None:
        super().__init__()
        if scale < 2:
            raise InputError(f"Bicubic enlarges by an integer of at least 2, got scale={scale}")
        self.scale = scale
        self.register_buffer("kernel", _kernel(scale), persistent=False)

    def forward(self, lr: Tensor) -> Tensor:
        n, c, h, w = lr.shape
        sr = pixel_shuffle(self.phases(lr.reshape(n * c, 1, h, w)), self.scale)
        return sr.view(n, c, h * self.scale, w * self.scale)

    def phases(self, lr: Tensor) -> Tensor:
        """The outputs in each pixel as its channels, (N, 1, h, w) -> (N, scale*scale, h, w), not yet shuffled."""
        with without_autocast(lr):
            x = F.pad(lr.float(), (2, 2, 2, 2), mode="replicate")
            # channels_last is up to five times faster (CPU, x4); a buffer kept so, DDP's plain broadcast refuses.
            return F.conv2d(x, self.kernel.to(memory_format=torch.channels_last))

    def _apply(self, fn, recurse=True):
        """Move like any module, but build the weights anew: `.half()` or `.bfloat16()` would round them for good."""
        super()._apply(fn, recurse)
        self.kernel = _kernel(self.scale).to(self.kernel.device)
        return self


def radius_behind_bicubic(reach: int, scale: int) -> int:
    """Receptive radius in LR pixels of what looks `reach` pixels to each side of the enlarged image.

    The enlarged pixel `reach` beyond the last of an LR pixel's is centred (2*reach - 1 + scale) / (2*scale) LR pixels
    from it; bicubic looks at the LR pixels that are less than two from there.
    """
    return (2 * reach - 2 + scale) // (2 * scale) + 2


def _kernel(scale: int) -> Tensor:
    """(scale*scale, 1, 5, 5): each output's weights of the 5x5 nearest pixels, in the order of a pixel shuffle."""
    output = (torch.arange(scale, dtype=torch.float64, device="cpu") + 0.5) / scale - 0.5  # centres, in pixels
    x = (torch.arange(-2, 3, device="cpu") - output[:, None]).abs()  # (s, 5)
    taps = torch.where(x < 1, (1.5 * x - 2.5) * x**2 + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2) * (x < 2)
    return torch.einsum("ai,bj->abij", taps, taps).reshape(scale * scale, 1, 5, 5).float().contiguous()
