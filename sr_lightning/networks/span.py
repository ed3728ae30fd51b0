"""SPAN: blocks whose attention is a symmetric function of their own output, without parameters."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_lightning.networks.bicubic import Bicubic
from sr_lightning.networks.layers import conv3x3, div2k_mean, pixel_shuffle, zero_init


class SPAN(nn.Module):
    """Swift Parameter-free Attention Network for Efficient Super-Resolution, Wan et al. 2023 (arXiv 2311.12770).

    Section 3. Each 3x3 convolution is trained as a sum of branches (`Conv3XC`), and folded for use. The names of the
    weights are the published ones; the folded convolutions that published files hold as well follow from them
    (`published_state`). Initial weights are PyTorch's default, as in the authors' code.

    Args:
        scale: The factor.
        num_features: Channels of all layers: 48, or 28 for the paper's smaller network.
        num_blocks: Number of attention blocks, at least 2: 6 in the paper.
        norm: Subtract the mean of DIV2K and multiply by 255 first, as the paper's weights want; community weights are
            mostly without.
        num_channels: 3 (RGB, as in the paper) or 1 (luma).
        global_skip: Add the bicubically upscaled input. Not in the paper. The last convolution is then initialised with
            zeros, so that training starts from bicubic.
        branches: Sums of branches; false: plain convolutions, as in the folded network, with a quarter of the weights.

    Attributes:
        receptive_radius: Number of LR pixels in each direction that an output pixel depends on, at every scale.
        derived: Pattern of the names in published files that follow from other weights or from the settings.

    Shapes: lr (N, num_channels, h, w) in [0, 1], at least 1x1 -> sr (N, num_channels, h*scale, w*scale), float32,
    not clamped.

    Raises:
        InputError: The number of channels is not supported.

    Example:
        >>> import torch
        >>> SPAN(scale=2, num_features=8)(torch.rand(1, 3, 8, 6)).shape
        torch.Size([1, 3, 16, 12])
    """

    derived = r"no_norm|.*\.eval_conv\.(weight|bias)"
    mean: Tensor

    def __init__(
        self,
        *,
        scale: int,
        num_features: int = 48,
        num_blocks: int = 6,
        norm: bool = False,
        num_channels: int = 3,
        global_skip: bool = False,
        branches: bool = True,
    ) -> None:
        super().__init__()
        self.scale, self.num_channels, self.norm = scale, num_channels, norm
        self.receptive_radius = 3 * num_blocks + 3
        self.register_buffer("mean", div2k_mean(num_channels), persistent=False)
        self.skip = Bicubic(scale=scale) if global_skip else None
        conv = Conv3XC if branches else conv3x3
        self.conv_1 = conv(num_channels, num_features)
        for i in range(1, num_blocks + 1):
            self.add_module(f"block_{i}", _Block(num_features, conv))
        self.blocks = [f"block_{i}" for i in range(1, num_blocks + 1)]
        self.conv_2 = conv(num_features, num_features)
        self.conv_cat = nn.Conv2d(4 * num_features, num_features, 1)
        self.upsampler = nn.Sequential(conv3x3(num_features, num_channels * scale**2))
        if global_skip:
            zero_init(self.upsampler[0])

    def forward(self, lr: Tensor) -> Tensor:
        hidden = self.conv_1((lr - self.mean) * 255 if self.norm else lr)
        features = [hidden]
        for name in self.blocks:
            x, hidden = self.get_submodule(name)(features[-1])
            features.append(x)
        used = [features[0], self.conv_2(features[-1]), features[1], hidden]
        x = self.upsampler(self.conv_cat(torch.cat(used, dim=1)))  # (N, 4F, h, w) -> (N, C*s*s, h, w)
        sr = pixel_shuffle(x, self.scale).float()  # (N, C, h*s, w*s)
        return sr if self.skip is None else sr + self.skip(lr)

    def for_inference(self) -> "SPAN":
        """Return a copy with plain convolutions: same output, less time."""
        network = copy.deepcopy(self).eval()
        for name, module in list(network.named_modules()):
            if isinstance(module, Conv3XC):
                network.set_submodule(name, module.folded())
        return network

    def published_state(self) -> dict[str, Tensor]:
        """Return the weights with all that published files hold: folded convolutions, and `no_norm` without `norm`."""
        state = dict(self.state_dict())
        for name, module in self.named_modules():
            if isinstance(module, Conv3XC):
                state |= {f"{name}.eval_conv.{key}": value for key, value in module.folded().state_dict().items()}
        return state if self.norm else state | {"no_norm": torch.zeros(1)}


class Conv3XC(nn.Module):
    """A 3x3 convolution, trained as the sum of a 1x1 convolution and of 1x1, 3x3 and 1x1 convolutions in a row.

    All are linear, so the weights of the equivalent convolution are computed in each step, and only that is applied to
    images: a quarter of the multiply-adds of the branches.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        gain: Channels between the three convolutions, relative to their input and output.

    Shapes: (N, in_channels, h, w) -> (N, out_channels, h, w).
    """

    def __init__(self, in_channels: int, out_channels: int, gain: int = 2) -> None:
        super().__init__()
        wide_in, wide_out = gain * in_channels, gain * out_channels
        self.sk = nn.Conv2d(in_channels, out_channels, 1)
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, wide_in, 1), nn.Conv2d(wide_in, wide_out, 3), nn.Conv2d(wide_out, out_channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.fold()
        return F.conv2d(x, weight, bias, padding=1)

    def fold(self) -> tuple[Tensor, Tensor]:
        """Return weight (D, C, 3, 3) and bias (D,) of the equivalent convolution with zero padding."""
        (first, first_bias), (middle, middle_bias), (last, last_bias) = map(_weights, self.conv)
        skip, skip_bias = _weights(self.sk)
        with torch.autocast(skip.device.type, enabled=False):
            left, right = last.flatten(1), first.flatten(1)  # (D, gD), (gC, C)
            weight = torch.einsum("om,mnij,nc->ocij", left, middle, right) + F.pad(skip, (1, 1, 1, 1))
            bias = left @ (middle.sum((2, 3)) @ first_bias + middle_bias) + last_bias + skip_bias
        return weight, bias

    def folded(self) -> nn.Conv2d:
        """Return the equivalent convolution, folded in float64."""
        weight, bias = copy.deepcopy(self).double().fold()
        conv = conv3x3(weight.shape[1], weight.shape[0]).to(self.sk.weight)
        conv.load_state_dict({"weight": weight, "bias": bias})
        return conv


def _weights(conv: nn.Module) -> tuple[Tensor, Tensor]:
    assert isinstance(conv, nn.Conv2d) and conv.bias is not None
    return conv.weight, conv.bias


class _Block(nn.Module):
    """Three convolutions and the attention: an odd function of the last one's output."""

    def __init__(self, num_features: int, conv: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.c1_r = conv(num_features, num_features)
        self.c2_r = conv(num_features, num_features)
        self.c3_r = conv(num_features, num_features)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.silu(self.c1_r(x))
        y = self.c3_r(F.silu(self.c2_r(hidden)))
        return (x + y) * (torch.sigmoid(y) - 0.5), hidden
