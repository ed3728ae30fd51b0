"""FSRCNN: SRCNN turned around, with the enlargement last, as a transposed convolution."""

import copy
from math import ceil

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_lightning.errors import InputError
from sr_lightning.networks.bicubic import Bicubic
from sr_lightning.networks.layers import PixelShuffle

_KERNEL = 9  # of the transposed convolution


class FSRCNN(nn.Module):
    """Accelerating the Super-Resolution Convolutional Neural Network, Dong et al. 2016, section 3 (arXiv 1608.00367).

    The paper's FSRCNN(56, 12, 4) is the default, its fast one `num_features=32, num_shrunk=5, num_mappings=1`. Each
    convolution is followed by a PReLU with a slope per channel, Caffe's kind, in which the authors wrote theirs. Their
    12,464 parameters are the weights alone; there are 173 biases and 172 slopes besides.

    Initial weights are He's for a PReLU, and a narrow normal for the transposed convolution; biases are zero.

    Args:
        scale: 2 to 9. Beyond 9 the transposed convolution would leave gaps.
        num_features: Channels of the first and the last but one convolution (the paper's d).
        num_shrunk: Channels in between (s).
        num_mappings: 3x3 convolutions in between (m).
        global_skip: Add the bicubic enlargement of the input. Not in the paper. The transposed convolution then starts
            at zero, and the network as bicubic.

    Attributes:
        receptive_radius: LR pixels to each side of its own that an output pixel depends on.

    Shapes: lr (N, 1, h, w) luma in [0, 1], at least 1x1 -> sr (N, 1, h*scale, w*scale), float32, unclamped.

    Raises:
        InputError: A scale that is none of the above.
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
                f"scale={scale}: FSRCNN's {_KERNEL}x{_KERNEL} transposed convolution reaches 2 to {_KERNEL}"
            )
        self.scale = scale
        self.receptive_radius = 2 + num_mappings + ceil(_KERNEL // 2 / scale)
        self.skip = Bicubic(scale=scale) if global_skip else None
        widths = [1, num_features, *[num_shrunk] * (num_mappings + 1), num_features]
        kernels = [5, 1, *[3] * num_mappings, 1]
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, k, padding=k // 2) for i, o, k in zip(widths[:-1], widths[1:], kernels, strict=True)
        )
        self.activations = nn.ModuleList(nn.PReLU(width) for width in widths[1:])
        # Output pixel scale*i is centred on input pixel i; output_padding completes the last pixel's scale outputs.
        self.enlarge = nn.ConvTranspose2d(
            num_features, 1, _KERNEL, stride=scale, padding=_KERNEL // 2, output_padding=scale - 1
        )
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight, a=0.25)  # PReLU's first slope
            nn.init.zeros_(conv.bias)
        nn.init.normal_(self.enlarge.weight, std=0.0 if global_skip else 0.001)
        nn.init.zeros_(self.enlarge.bias)

    def forward(self, lr: Tensor) -> Tensor:
        x = lr
        for conv, activation in zip(self.convs, self.activations, strict=True):
            x = _prelu(conv(x), activation.weight)
        if self.skip is not None and isinstance(
            self.enlarge, nn.Sequential
        ):  # the inference form: one shuffle for both
            conv, shuffle = self.enlarge
            return shuffle(self.skip.phases(lr).add_(conv(x)))
        sr = self.enlarge(x).float()  # (N, d, h, w) -> (N, 1, h*s, w*s)
        return sr if self.skip is None else sr + self.skip(lr)

    def for_inference(self) -> "FSRCNN":
        """A copy that enlarges by a convolution and a pixel shuffle: the same output in less time."""
        network = copy.deepcopy(self)
        if isinstance(self.enlarge, nn.ConvTranspose2d):
            network.enlarge = subpixel(self.enlarge)
        return network


def _prelu(x: Tensor, slopes: Tensor) -> Tensor:
    """F.prelu with a slope per channel, (N, C, h, w) -> the same shape.

    A CPU takes ten times as long for it in bfloat16, channels last, where it starts anew at each pixel's few channels:
    so a whole row's pixels and channels are told to it as channels of a matrix.
    """
    if x.dtype != torch.bfloat16 or x.is_cuda or not x.is_contiguous(memory_format=torch.channels_last):
        return F.prelu(x, slopes)
    n, c, h, w = x.shape
    rows = F.prelu(x.permute(0, 2, 3, 1).reshape(n * h, w * c), slopes.repeat(w))
    return rows.view(n, h, w, c).permute(0, 3, 1, 2)


@torch.no_grad()
def subpixel(deconv: nn.ConvTranspose2d) -> nn.Sequential:
    """The convolution and pixel shuffle that equal FSRCNN's transposed convolution.

    Output pixel s*i + a is the sum over LR pixels i + t of x[i + t] * w[a + k//2 - s*t], on each axis, where k is the
    kernel's size, s its stride and w zero outside: for each of the s phases a an ordinary convolution over t.

    Args:
        deconv: One output channel, an odd kernel k, padding k//2 and output padding stride - 1.
    """
    (kernel, _), (scale, _) = deconv.kernel_size, deconv.stride
    reach = ceil(kernel // 2 / scale)
    phase, offset = torch.arange(scale)[:, None, None], torch.arange(-reach, reach + 1)[:, None]
    tap = torch.arange(kernel) == phase + kernel // 2 - scale * offset  # (s, 2*reach + 1, k): which tap is used where
    tap = tap.to(deconv.weight)
    conv = nn.Conv2d(deconv.in_channels, scale * scale, 2 * reach + 1, padding=reach).to(deconv.weight)
    weight = torch.einsum("cpq,atp,buq->abctu", deconv.weight[:, 0], tap, tap)
    conv.weight.copy_(weight.flatten(0, 1))
    conv.bias.copy_(deconv.bias.expand(scale * scale))
    return nn.Sequential(conv, PixelShuffle(scale))
