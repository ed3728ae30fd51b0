"""What several networks are built from."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sr_lightning.errors import InputError

# Mean of DIV2K's training images, in [0, 1]: RGB as EDSR's authors publish it, and the BT.601 luma of that colour
# (which is the mean luma: luma is an affine function of RGB).
DIV2K_MEAN = {3: (0.4488, 0.4371, 0.4040), 1: (0.4379,)}


def div2k_mean(num_channels: int) -> Tensor:
    """The mean of DIV2K's training images, (1, num_channels, 1, 1), in [0, 1].

    Raises:
        InputError: `num_channels` is neither 3 (RGB) nor 1 (luma).
    """
    check_channels(num_channels)
    return torch.tensor(DIV2K_MEAN[num_channels]).view(1, -1, 1, 1)


def check_channels(num_channels: int) -> None:
    if num_channels not in (1, 3):
        raise InputError(f"num_channels={num_channels}: an image has 3 (RGB) or 1 (luma)")


def without_autocast(x: Tensor) -> AbstractContextManager:
    """A context in which the layers of x's device compute in the dtype of their input."""
    if x.device.type == "meta":  # has no autocast
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def conv3(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


def pixel_shuffle(x: Tensor, scale: int) -> Tensor:
    """F.pixel_shuffle to an image's one or three channels, in about a third of the time on a CPU.

    With many channels, channels last, F.pixel_shuffle is faster (tests/benchmarks/bench_inference.py shuffle). Exported
    graphs have it as well, since ONNX has an operator for it.

    Shapes: x (N, C*scale*scale, h, w) -> (N, C, h*scale, w*scale).
    """
    if torch.compiler.is_exporting():
        return F.pixel_shuffle(x, scale)
    n, c, h, w = x.shape
    c //= scale * scale
    return x.reshape(n, c, scale, scale, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c, h * scale, w * scale)


class PixelShuffle(nn.Module):
    """`pixel_shuffle` as a layer."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return pixel_shuffle(x, self.scale)


def fold_batch_norm(network: nn.Module, conv: str, norm: str) -> None:
    """Put a convolution that computes the same in the place of a convolution and the batch normalisation behind it.

    Args:
        network: In evaluation mode; holds both.
        conv: Its name in the network.
        norm: Its name in the network; nothing is done where no batch normalisation is there any more.
    """
    if isinstance(norm_layer := getattr(network, norm), nn.BatchNorm2d):
        setattr(network, conv, fuse_conv_bn_eval(getattr(network, conv), norm_layer))
        setattr(network, norm, nn.Identity())


def upsampler(num_features: int, scale: int, activation: Callable[[], nn.Module] | None = None) -> nn.Sequential:
    """Convolutions and pixel shuffles that enlarge feature maps: x3 in one step, powers of two in steps of two.

    Args:
        num_features: Channels that come in and go out.
        scale: 3 or a power of two.
        activation: Makes what follows each shuffle, if anything.

    Raises:
        InputError: `scale` is something else.
    """
    if scale != 3 and (scale < 2 or scale & (scale - 1)):
        raise InputError(f"scale={scale}: this network enlarges by 3, or in steps of 2 (2, 4, 8)")
    layers: list[nn.Module] = []
    for step in [3] if scale == 3 else [2] * (scale.bit_length() - 1):
        layers += [conv3(num_features, step * step * num_features), nn.PixelShuffle(step)]
        layers += [activation()] if activation else []
    return nn.Sequential(*layers)


class FoldedUpsampler(nn.Module):
    """An `upsampler` without activations and the 3x3 convolution behind it: linear together, so one convolution.

    Each output pixel is a weighted sum of 5x5 LR pixels' features; the weights are the layers' gradient. At x4 that is
    a seventh of their multiply-adds (for EDSR's baseline a third fewer in all), and no feature map is larger than the
    input's. The result is theirs at the border, too, where each of them pads its own input with zeros: that bears on
    the outermost LR pixels alone, whose outputs the layers themselves make.

    Args:
        layers: `upsampler` and a convolution, (N, num_features, h, w) -> (N, C, h*scale, w*scale).
        num_features: Channels that come in.
        scale: The factor.

    Shapes: as those of the layers.
    """

    def __init__(self, layers: nn.Sequential, num_features: int, scale: int) -> None:
        super().__init__()
        self.layers, self.scale = layers, scale
        middle = slice(2 * scale, 3 * scale)  # outputs of the middle of 5x5 pixels, which is not at the border
        with torch.inference_mode(False), torch.enable_grad():
            exact = copy.deepcopy(layers).double()
            outputs = layers[-1].out_channels * scale * scale  # C*s*s
            x = exact[-1].weight.new_zeros(outputs, num_features, 5, 5, requires_grad=True)  # one for each's gradient
            y = exact(x)[:, :, middle, middle].flatten(1)  # (C*s*s, C*s*s)
            (gradient,) = torch.autograd.grad(y.diagonal().sum(), x)
        self.conv = nn.Conv2d(num_features, outputs, 5, padding=2).to(next(layers.parameters()))
        with torch.no_grad():
            self.conv.weight.copy_(gradient)
            self.conv.bias.copy_(y[0])

    def forward(self, x: Tensor) -> Tensor:
        sr = pixel_shuffle(self.conv(x), self.scale)
        first, last = slice(self.scale), slice(-self.scale, None)
        sr[..., first, :] = self.layers(x[..., :3, :])[..., first, :]  # an outermost pixel looks two pixels inwards
        sr[..., last, :] = self.layers(x[..., -3:, :])[..., last, :]
        sr[..., first] = self.layers(x[..., :3])[..., first]
        sr[..., last] = self.layers(x[..., -3:])[..., last]
        return sr


def fold_upsampler(network: nn.Module) -> None:
    """Make one convolution of a network's `upsampler` and `tail`, if they are not that already."""
    if not isinstance(network.tail, FoldedUpsampler):
        layers = nn.Sequential(network.upsampler, network.tail)
        network.tail = FoldedUpsampler(layers, network.tail.in_channels, network.scale)
        network.upsampler = nn.Identity()


def leaky(layer: nn.Conv2d | nn.Linear, *, batch_norm: bool, spectral_norm: bool) -> list[nn.Module]:
    """A layer of a discriminator and what follows it, a LeakyReLU of slope 0.2 last.

    Args:
        layer: The weights.
        batch_norm: Normalise what it gives.
        spectral_norm: Divide its weights by their spectral norm (Miyato et al. 2018, arXiv 1802.05957), in place of
            batch normalisation, which would undo it: it takes out the scale of the weights before it.
    """
    if spectral_norm:
        return [parametrizations.spectral_norm(layer), nn.LeakyReLU(0.2, inplace=True)]
    return [layer, *([nn.BatchNorm2d(layer.out_channels)] if batch_norm else []), nn.LeakyReLU(0.2, inplace=True)]
