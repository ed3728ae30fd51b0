"""Layers shared by several networks."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sr_lightning.errors import InputError

# Mean of DIV2K's training images in [0, 1], by number of channels: RGB as published by EDSR's authors, and its BT.601
# luma, which is the mean luma, because luma is an affine function of RGB.
DIV2K_MEAN = {3: (0.4488, 0.4371, 0.4040), 1: (0.4379,)}


def div2k_mean(num_channels: int) -> Tensor:
    """Return the mean of DIV2K's training images in [0, 1], (1, num_channels, 1, 1).

    Raises:
        InputError: `num_channels` is neither 3 (RGB) nor 1 (luma).
    """
    check_channels(num_channels)
    return torch.tensor(DIV2K_MEAN[num_channels]).view(1, -1, 1, 1)


def check_channels(num_channels: int) -> None:
    if num_channels not in (1, 3):
        raise InputError(f"num_channels={num_channels}: give 3 (RGB) or 1 (luma)")


def conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


def zero_bias(conv: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """Set the bias of a convolution to zero, if it has one."""
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def narrow_init(conv: nn.Conv2d) -> nn.Conv2d:
    """Draw the weights of a convolution from a normal distribution with standard deviation 0.02; return it."""
    nn.init.trunc_normal_(conv.weight, std=0.02)
    return conv


def zero_init(conv: nn.Module) -> None:
    """Set the weights and the bias of a convolution to zero."""
    assert isinstance(conv, nn.Conv2d)
    nn.init.zeros_(conv.weight)
    zero_bias(conv)


def is_traced() -> bool:
    """Return True while a network is traced for another program, which lacks operators that are faster here."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def pixel_shuffle(x: Tensor, scale: int) -> Tensor:
    """F.pixel_shuffle for a result with one or three channels, in about a third of its time on a CPU.

    For many channels in channels-last format F.pixel_shuffle is faster (tests/benchmarks/bench_inference.py shuffle).
    Exported graphs use F.pixel_shuffle, because ONNX and ncnn have an operator for it.

    Shapes: x (N, C*scale*scale, h, w) -> (N, C, h*scale, w*scale).
    """
    if is_traced():
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


def reflect_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pad an image below and to the right by reflection, as often as it takes, so that its sides are multiples.

    While an image is traced, multiples of 2 are reached without a decision: a line is added, and cut off again.

    Shapes: x (N, C, h, w) -> (N, C, H, W); h and w may be as small as 1.
    """
    for dim in (-2, -1):
        side = x.shape[dim]
        if multiple == 2 and is_traced():
            end = (side + 1) // 2 * 2
            if dim == -2:
                x = torch.cat([x, x[..., -2:, :][..., :1, :]], dim=dim)[..., :end, :]
            else:
                x = torch.cat([x, x[..., -2:][..., :1]], dim=dim)[..., :end]
        elif missing := -side % multiple:
            period = max(2 * (side - 1), 1)
            place = torch.arange(side, side + missing, device=x.device) % period
            x = torch.cat([x, x.index_select(dim, torch.minimum(place, period - place) % side)], dim=dim)
    return x


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each pixel.

    Shapes: (N, num_features, h, w) -> (N, num_features, h, w).
    """

    def __init__(self, num_features: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


def fold_batch_norm(network: nn.Module, conv: str, norm: str) -> None:
    """Replace a convolution and the batch normalisation after it by one equivalent convolution, in place.

    Args:
        network: Module with both layers, in evaluation mode.
        conv: Attribute name of the convolution.
        norm: Attribute name of the batch normalisation; if it is another layer, nothing is done.
    """
    if isinstance(norm_layer := getattr(network, norm), nn.BatchNorm2d):
        setattr(network, conv, fuse_conv_bn_eval(getattr(network, conv), norm_layer))
        setattr(network, norm, nn.Identity())


def upsampler(num_features: int, scale: int, activation: Callable[[], nn.Module] | None = None) -> nn.Sequential:
    """Build convolutions and pixel shuffles that upscale feature maps: x3 in one step, powers of two in steps of x2.

    Args:
        num_features: Channels of input and output.
        scale: 3 or a power of two.
        activation: Factory of an activation after each shuffle, or None.

    Raises:
        InputError: The scale is not supported.
    """
    if scale != 3 and (scale < 2 or scale & (scale - 1)):
        raise InputError(f"scale={scale}: this network upscales by 3, or in steps of 2 (2, 4, 8)")
    layers: list[nn.Module] = []
    for step in [3] if scale == 3 else [2] * (scale.bit_length() - 1):
        layers += [conv3x3(num_features, step * step * num_features), nn.PixelShuffle(step)]
        layers += [activation()] if activation else []
    return nn.Sequential(*layers)


class FoldedUpsampler(nn.Module):
    """One convolution equivalent to an `upsampler` without activations and the 3x3 convolution after it.

    Together these layers are linear: each output pixel is a weighted sum of the features of 5x5 LR pixels, with the
    gradient of the layers as weights. At x4 this needs a seventh of the layers' multiply-adds (a third less for all of
    EDSR's baseline), and no feature map is larger than the input. The outputs of the outermost LR pixels depend on the
    zero padding of each layer and are therefore computed by the original layers.

    Args:
        layers: `upsampler` and a convolution, (N, num_features, h, w) -> (N, C, h*scale, w*scale).
        num_features: Channels of the input.
        scale: Super-resolution factor.

    Shapes: as of the layers.
    """

    def __init__(self, layers: nn.Sequential, num_features: int, scale: int) -> None:
        super().__init__()
        self.layers, self.scale = layers, scale
        middle = slice(2 * scale, 3 * scale)  # outputs inside the middle of 5x5 LR pixels, unaffected by the border
        with torch.inference_mode(False), torch.enable_grad():
            exact = copy.deepcopy(layers).double()
            exact_tail = exact[-1]
            assert isinstance(exact_tail, nn.Conv2d)
            outputs = exact_tail.out_channels * scale * scale  # C*s*s
            # One input for the gradient of each output
            x = exact_tail.weight.new_zeros(outputs, num_features, 5, 5, requires_grad=True)
            y = exact(x)[:, :, middle, middle].flatten(1)  # (C*s*s, C*s*s)
            (gradient,) = torch.autograd.grad(y.diagonal().sum(), x)
        self.conv = nn.Conv2d(num_features, outputs, 5, padding=2).to(next(layers.parameters()))
        with torch.no_grad():
            self.conv.weight.copy_(gradient)
            assert self.conv.bias is not None
            self.conv.bias.copy_(y[0])

    def forward(self, x: Tensor) -> Tensor:
        sr = pixel_shuffle(self.conv(x), self.scale)
        first, last = slice(self.scale), slice(-self.scale, None)  # outputs of the outermost LR pixels
        sr[..., first, :] = self.layers(x[..., :3, :])[..., first, :]  # they depend on 3 LR pixels
        sr[..., last, :] = self.layers(x[..., -3:, :])[..., last, :]
        sr[..., first] = self.layers(x[..., :3])[..., first]
        sr[..., last] = self.layers(x[..., -3:])[..., last]
        return sr


def fold_upsampler(network: nn.Module) -> None:
    """Replace a network's `upsampler` and `tail` by one convolution, in place; a second call does nothing."""
    layers, tail, scale = network.upsampler, network.tail, network.scale
    if not isinstance(tail, FoldedUpsampler):
        assert isinstance(layers, nn.Module) and isinstance(tail, nn.Conv2d) and isinstance(scale, int)
        network.tail = FoldedUpsampler(nn.Sequential(layers, tail), tail.in_channels, scale)
        network.upsampler = nn.Identity()


def discriminator_layer(layer: nn.Conv2d | nn.Linear, *, batch_norm: bool, spectral_norm: bool) -> list[nn.Module]:
    """Return a discriminator's layer followed by its normalisation and a LeakyReLU with slope 0.2.

    Args:
        layer: Convolution or linear layer.
        batch_norm: Add batch normalisation.
        spectral_norm: Divide the weights by their spectral norm (Miyato et al. 2018, arXiv 1802.05957). Replaces batch
            normalisation, which would undo it by removing the scale of the weights.
    """
    if spectral_norm:
        return [parametrizations.spectral_norm(layer), nn.LeakyReLU(0.2, inplace=True)]
    layers: list[nn.Module] = [layer]
    if batch_norm:
        layers.append(nn.BatchNorm2d(layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features))
    return [*layers, nn.LeakyReLU(0.2, inplace=True)]
