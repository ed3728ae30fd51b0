"""Bicubic upscaling: the baseline of every table, SRCNN's first step, and the global skip of other networks."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_lightning.errors import InputError
from sr_lightning.networks.layers import is_traced, pixel_shuffle


class Bicubic(nn.Module):
    """Keys' cubic interpolation with a = -0.5, as in MATLAB and Pillow (torch has -0.75); borders are replicated.

    The scale*scale outputs inside one LR pixel are weighted sums of the 5x5 LR pixels around it, so the network is one
    fixed convolution and a pixel shuffle. It always runs in float32, also under autocast or after `.half()`, because
    bfloat16 would be off by half a grey level. TF32, which torch allows for convolutions on CUDA by default, is
    controlled by `torch.backends.cudnn.conv.fp32_precision`.

    Args:
        scale: Super-resolution factor.

    Attributes:
        receptive_radius: Number of LR pixels in each direction that an output pixel depends on, at every scale.

    Shapes: lr (N, C, h, w), any C and range, at least 1x1 -> sr (N, C, h*scale, w*scale), float32, not clamped.

    Example:
        >>> import torch
        >>> Bicubic(scale=2)(torch.rand(1, 3, 8, 6)).shape
        torch.Size([1, 3, 16, 12])
    """

    receptive_radius = 2
    kernel: Tensor
    num_channels = 1  # the baseline is scored on luma, like early papers; `forward` takes any number

    def __init__(self, *, scale: int) -> None:
        super().__init__()
        if scale < 2:
            raise InputError(f"scale={scale}: Bicubic needs an integer of at least 2")
        self.scale = scale
        self.register_buffer("kernel", _kernel(scale), persistent=False)

    def forward(self, lr: Tensor) -> Tensor:
        n, c, h, w = lr.shape
        if is_traced():
            return pixel_shuffle(self.phases(lr, groups=c), self.scale)
        sr = pixel_shuffle(self.phases(lr.reshape(n * c, 1, h, w)), self.scale)
        return sr.view(n, c, h * self.scale, w * self.scale)

    def phases(self, lr: Tensor, groups: int = 1) -> Tensor:
        """Outputs before the pixel shuffle: (N, groups, h, w) -> (N, groups*scale*scale, h, w)."""
        with torch.autocast(lr.device.type, enabled=False):
            x = F.pad(lr.float(), (2, 2, 2, 2), mode="replicate")
            # channels_last is up to five times faster (CPU, x4). Not stored: DDP cannot broadcast such a buffer.
            kernel = self.kernel.to(memory_format=torch.channels_last)
            return F.conv2d(x, kernel if groups == 1 else kernel.repeat(groups, 1, 1, 1), groups=groups)

    def _apply(self, fn, recurse=True):
        """Move to another device, but rebuild the weights: `.half()` would round them permanently."""
        super()._apply(fn, recurse)
        self.kernel = _kernel(self.scale).to(self.kernel.device)
        return self


def radius_behind_bicubic(reach: int, scale: int) -> int:
    """Receptive radius in LR pixels of layers that follow bicubic upscaling and have a radius of `reach` HR pixels.

    The HR pixel `reach` beyond the last one inside an LR pixel is centred (2*reach - 1 + scale) / (2*scale) LR pixels
    from that LR pixel's centre; bicubic uses the LR pixels at a distance below 2 from there.
    """
    return (2 * reach - 2 + scale) // (2 * scale) + 2


def _kernel(scale: int) -> Tensor:
    """Weights of the nearest 5x5 LR pixels for each output, in pixel-shuffle order: (scale*scale, 1, 5, 5)."""
    output = (torch.arange(scale, dtype=torch.float64, device="cpu") + 0.5) / scale - 0.5  # centres, in LR pixels
    x = (torch.arange(-2, 3, device="cpu") - output[:, None]).abs()  # (s, 5)
    taps = torch.where(x < 1, (1.5 * x - 2.5) * x**2 + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2) * (x < 2)
    return torch.einsum("ai,bj->abij", taps, taps).reshape(scale * scale, 1, 5, 5).float().contiguous()
