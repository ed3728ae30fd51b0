"""FSRCNN: convolutions at low resolution, then one transposed convolution that upscales."""

import copy
from math import ceil

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_lightning.errors import InputError
from sr_lightning.networks.bicubic import Bicubic
from sr_lightning.networks.layers import PixelShuffle, zero_bias

_KERNEL = 9  # of the transposed convolution


class FSRCNN(nn.Module):
    """Accelerating the Super-Resolution Convolutional Neural Network, Dong et al. 2016, section 3 (arXiv 1608.00367).

    The default is the paper's FSRCNN(56, 12, 4); its fast version is `num_features=32, num_shrunk=5, num_mappings=1`.
    Each convolution is followed by a PReLU with one slope per channel, as in Caffe, which the authors used. The paper's
    12,464 parameters count only the weights; there are also 173 biases and 172 slopes.

    Initial weights: He's for a PReLU, a normal with standard deviation 0.001 for the transposed convolution, zero
    biases.

    Args:
        scale: 2 to 9. Above 9 the transposed convolution would leave gaps.
        num_features: Channels after the first and before the last convolution (the paper's d).
        num_shrunk: Channels of the mapping layers (s).
        num_mappings: Number of 3x3 mapping convolutions (m).
        global_skip: Add the bicubically upscaled input. Not in the paper. The transposed convolution is then
            initialised with zeros, so that training starts from bicubic.

    Attributes:
        receptive_radius: Number of LR pixels in each direction that an output pixel depends on.

    Shapes: lr (N, 1, h, w) luma in [0, 1], at least 1x1 -> sr (N, 1, h*scale, w*scale), float32, not clamped.

    Raises:
        InputError: The scale is not from 2 to 9.

    Example:
        >>> import torch
        >>> FSRCNN(scale=2)(torch.rand(1, 1, 8, 6)).shape
        torch.Size([1, 1, 16, 12])
    """

    num_channels = 1

    def __init__(
        self,
        *,
        scale: int,
        num_features: int = 56,
        num_shrunk: int = 12,
        num_mappings: int = 4,
        global_skip: bool = False,
    ) -> None:
        super().__init__()
        if not 2 <= scale <= _KERNEL:
            raise InputError(
                f"scale={scale}: FSRCNN's {_KERNEL}x{_KERNEL} transposed convolution supports scales 2 to {_KERNEL}"
            )
        self.scale = scale
        self.receptive_radius = 2 + num_mappings + ceil(_KERNEL // 2 / scale)
        self.skip = Bicubic(scale=scale) if global_skip else None
        widths = [1, num_features, *[num_shrunk] * (num_mappings + 1), num_features]
        kernels = [5, 1, *[3] * num_mappings, 1]
        convs = [nn.Conv2d(i, o, k, padding=k // 2) for i, o, k in zip(widths[:-1], widths[1:], kernels, strict=True)]
        self.convs = nn.ModuleList(convs)
        self.activations = nn.ModuleList(nn.PReLU(width) for width in widths[1:])
        # Output pixel scale*i is centred on input pixel i; output_padding completes the last pixel's scale outputs.
        enlarge = nn.ConvTranspose2d(
            num_features, 1, _KERNEL, stride=scale, padding=_KERNEL // 2, output_padding=scale - 1
        )
        self.enlarge: nn.Module = enlarge
        for conv in convs:
            nn.init.kaiming_normal_(conv.weight, a=0.25)  # initial slope of PReLU
            zero_bias(conv)
        nn.init.normal_(enlarge.weight, std=0.0 if global_skip else 0.001)
        zero_bias(enlarge)

    def forward(self, lr: Tensor) -> Tensor:
        x = lr
        for conv, activation in zip(self.convs, self.activations, strict=True):
            x = _prelu(conv(x), activation.weight)  # pyright: ignore[reportArgumentType] - a ModuleList of PReLUs
        if self.skip is not None and isinstance(self.enlarge, nn.Sequential):  # for inference: one shuffle for both
            conv, shuffle = self.enlarge
            return shuffle(self.skip.phases(lr).add_(conv(x)))
        sr = self.enlarge(x).float()  # (N, d, h, w) -> (N, 1, h*s, w*s)
        return sr if self.skip is None else sr + self.skip(lr)

    def for_inference(self) -> "FSRCNN":
        """Return a copy that upscales by a convolution and a pixel shuffle: same output, less time."""
        network = copy.deepcopy(self)
        if isinstance(self.enlarge, nn.ConvTranspose2d):
            network.enlarge = subpixel(self.enlarge)
        return network


def _prelu(x: Tensor, slopes: Tensor) -> Tensor:
    """F.prelu with one slope per channel, (N, C, h, w) -> the same shape.

    On a CPU, F.prelu of channels-last bfloat16 is ten times slower, because its inner loop runs over the few channels
    of one pixel. Here each row of pixels is passed as one long channel dimension.
    """
    if x.dtype != torch.bfloat16 or x.is_cuda or not x.is_contiguous(memory_format=torch.channels_last):
        return F.prelu(x, slopes)
    n, c, h, w = x.shape
    rows = F.prelu(x.permute(0, 2, 3, 1).reshape(n * h, w * c), slopes.repeat(w))
    return rows.view(n, h, w, c).permute(0, 3, 1, 2)


@torch.no_grad()
def subpixel(deconv: nn.ConvTranspose2d) -> nn.Sequential:
    """Convert FSRCNN's transposed convolution to an equivalent convolution and pixel shuffle.

    Along each axis, output pixel s*i + a is the sum over t of x[i + t] * w[a + k//2 - s*t], with kernel size k, stride
    s and w zero outside the kernel. For each of the s phases a this is an ordinary convolution over t.

    Args:
        deconv: One output channel, odd kernel size k, padding k//2, output padding stride - 1.
    """
    (kernel, _), (scale, _) = deconv.kernel_size, deconv.stride
    reach = ceil(kernel // 2 / scale)
    phase, offset = torch.arange(scale)[:, None, None], torch.arange(-reach, reach + 1)[:, None]
    tap = torch.arange(kernel) == phase + kernel // 2 - scale * offset  # (s, 2*reach + 1, k)
    tap = tap.to(deconv.weight)
    conv = nn.Conv2d(deconv.in_channels, scale * scale, 2 * reach + 1, padding=reach).to(deconv.weight)
    weight = torch.einsum("cpq,atp,buq->abctu", deconv.weight[:, 0], tap, tap)
    conv.weight.copy_(weight.flatten(0, 1))
    assert conv.bias is not None and deconv.bias is not None
    conv.bias.copy_(deconv.bias.expand(scale * scale))
    return nn.Sequential(conv, PixelShuffle(scale))
