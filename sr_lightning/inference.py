"""Inference: colour images with luma networks and vice versa, self-ensembles, fused and low-precision forms."""

import copy
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from sr_lightning.color import rgb_to_y, rgb_to_ycbcr, ycbcr_to_rgb
from sr_lightning.errors import InputError
from sr_lightning.networks.bicubic import Bicubic
from sr_lightning.utils.devices import PRECISIONS


def to_channels(image: Tensor, num_channels: int) -> Tensor:
    """Convert an image to the channels of a network: RGB to BT.601 luma, gray repeated to RGB.

    Args:
        image: (N, 1 or 3, H, W) in [0, 1].
        num_channels: 1 or 3.

    Returns:
        (N, num_channels, H, W); one-channel images are taken as luma.
    """
    if image.shape[1] == num_channels:
        return image
    return rgb_to_y(image) if num_channels == 1 else image.expand(-1, num_channels, -1, -1)


def with_chroma(sr_luma: Tensor, lr: Tensor, scale: int) -> Tensor:
    """Combine a luma prediction with the chroma of its LR image, upscaled bicubically.

    Args:
        sr_luma: (N, 1, h*scale, w*scale) luma in [0, 1].
        lr: (N, 3, h, w) RGB in [0, 1], the input of the prediction.
        scale: The factor.

    Returns:
        (N, 3, h*scale, w*scale) RGB, unclamped.
    """
    ycbcr = Bicubic(scale=scale).to(lr.device)(rgb_to_ycbcr(lr))
    ycbcr[:, :1] = sr_luma
    return ycbcr_to_rgb(ycbcr)


def in_colour(sr: Tensor, lr: Tensor, scale: int) -> Tensor:
    """Add bicubic chroma of a colour LR image to a luma prediction; return other predictions unchanged.

    Args:
        sr: (N, 1 or 3, h*scale, w*scale) in [0, 1].
        lr: (N, 1 or 3, h, w) in [0, 1], the input of the prediction.
        scale: The factor.

    Returns:
        (N, C, h*scale, w*scale), unclamped; C is the larger number of channels of the two.
    """
    return with_chroma(sr, lr, scale) if sr.shape[1] < lr.shape[1] else sr


def super_resolve(network: nn.Module, lr: Tensor) -> Tensor:
    """Upscale images of one or three channels with any network.

    Args:
        network: Has `scale` and `num_channels` (1: luma, 3: RGB).
        lr: (N, 1 or 3, h, w) in [0, 1].

    Returns:
        (N, 1 or 3, h*scale, w*scale), channels as in `lr`, unclamped.
    """
    sr = network(to_channels(lr, network.num_channels))
    if sr.shape[1] > lr.shape[1]:
        return sr.mean(dim=1, keepdim=True)
    return in_colour(sr, lr, network.scale)


class SelfEnsemble(nn.Module):
    """A network averaged over the eight flips and rotations of an image: the "+" of the papers.

    Section 3.3 of EDSR (arXiv 1707.02921), after Timofte et al. 2016. The eight passes run one after the other: eight
    times the time, and memory for one more image. Valid for degradations that commute with flips and rotations, as
    bicubic does.

    Args:
        network: Has `scale` and `num_channels`.

    Shapes: as the network's; sr is float32.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.scale, self.num_channels = network.scale, network.num_channels
        self.receptive_radius = network.receptive_radius

    def forward(self, lr: Tensor) -> Tensor:
        total: Tensor | float = 0.0
        for flipped in (False, True):
            for turns in range(4):
                x = torch.rot90(lr.flip(-1) if flipped else lr, turns, (-2, -1))  # (N, C, h, w) or (N, C, w, h)
                sr = torch.rot90(self.network(x.contiguous()).float(), -turns, (-2, -1))
                total += sr.flip(-1) if flipped else sr
        return total / 8

    def for_inference(self) -> "SelfEnsemble":
        """Return a self-ensemble of the fused network."""
        return SelfEnsemble(fuse_for_inference(self.network))


def fuse_for_inference(network: nn.Module) -> nn.Module:
    """Return the equivalent, faster form of a network (batch norm folded, …), or the network itself if it has none."""
    return network.for_inference() if hasattr(network, "for_inference") else network


class FastInference(nn.Module):
    """A network in its fastest form for a device: fused, channels last, and in bfloat16 if requested.

    On x86 processors without AVX512, NNPACK computes convolutions of many features, by Winograd's algorithm (Lavin and
    Gray 2015, arXiv 1509.09308) or by Fourier transforms. These need fewer multiplications, but the rounding error is
    2e-5 of the output's standard deviation instead of 7e-6. `tests/benchmarks/bench_inference.py` measures the gain.
    Scoring does not use this class.

    Args:
        network: Has `scale`, `num_channels` and `receptive_radius`. It is copied.
        device: Where to compute.
        precision: "float32" or "bfloat16", of the convolutions. "auto": bfloat16 if the device has instructions for it
            and the error stays below `bfloat16_mse_budget`, if necessary with the last convolution in float32, then
            also the first, so that a residual network adds in float32; else float32.

    Attributes:
        precision: "float32" or "bfloat16".

    Shapes: as the network's; lr float32 on the device -> sr float32, without gradient.

    Raises:
        InputError: An unknown precision.
    """

    def __init__(self, network: nn.Module, device: torch.device | str = "cpu", precision: str = "auto") -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise InputError(f"precision={precision!r}: choose {', '.join(PRECISIONS)}")
        self.device = torch.device(device)
        self.scale, self.num_channels = network.scale, network.num_channels
        self.receptive_radius = network.receptive_radius
        network = fuse_for_inference(copy.deepcopy(network).eval()).requires_grad_(False)
        self.network = network.to(self.device, memory_format=torch.channels_last)
        self.memory_format = torch.channels_last
        self.precision = "float32" if precision == "auto" else precision
        if precision == "auto" and computes_in_bfloat16(self.device.type):
            self._choose_precision()
        if self.precision == "float32" and nnpack_is_faster(self.device.type) and _use_nnpack(self.network):
            self.memory_format = torch.contiguous_format
        self.eval()

    @torch.inference_mode()
    def forward(self, lr: Tensor) -> Tensor:
        with self._computing():
            return self.network(lr.contiguous(memory_format=self.memory_format)).float()

    def _computing(self) -> AbstractContextManager:
        if self.precision == "bfloat16":
            return torch.autocast(self.device.type, torch.bfloat16)
        if self.device.type == "cuda":  # convolutions would use TF32 otherwise
            return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        return nullcontext()

    def _choose_precision(self) -> None:
        """Use bfloat16 for as many layers as the error budget allows, measured on a smooth image."""
        lr = torch.linspace(0, 1, 32 * 32, device=self.device).view(1, 1, 32, 32).repeat(1, self.num_channels, 1, 1)
        exact = self(lr)
        self.precision = "bfloat16"
        for layer in (None, "tail", "head"):
            if layer is not None and hasattr(self.network, layer):
                setattr(self.network, layer, _InFloat32(getattr(self.network, layer)))
            if (self(lr) - exact).square().mean() < bfloat16_mse_budget(self.scale):
                return
        self.precision = "float32"


class _InFloat32(nn.Module):
    """A layer computed in float32 inside a network in bfloat16."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self.layer(x.float())


class _Nnpack(nn.Module):
    """A 3x3 or 5x5 convolution by NNPACK, which torch itself uses only for batches of at least 16.

    Shapes: (N, C, h, w) -> (N, D, h, w), both contiguous.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(conv.weight.contiguous(), requires_grad=False), conv.bias
        self.padding = conv.padding

    def forward(self, x: Tensor) -> Tensor:
        return torch._nnpack_spatial_convolution(x, self.weight, self.bias, padding=self.padding)


def _use_nnpack(network: nn.Module) -> bool:
    """Replace convolutions by NNPACK's if these are faster: 3x3 or 5x5, input times output features at least 64 x 32.

    Others stay channels last, except those on the image, whose output is added to that of NNPACK's. NNPACK and torch
    have separate threads that wait for each other: with several threads, a network of few layers gets slower.

    Returns:
        True if any was replaced.
    """
    convs = {name: m for name, m in network.named_modules() if isinstance(m, nn.Conv2d)}
    chosen = [name for name, conv in convs.items() if _suits_nnpack(conv)]
    if not chosen or (torch.get_num_threads() > 1 and len(chosen) < 8):
        return False
    for name in chosen:
        network.set_submodule(name, _Nnpack(convs[name]))
    for conv in convs.values():
        if conv.in_channels <= 3:
            conv.to(memory_format=torch.contiguous_format)
    return True


def _suits_nnpack(conv: nn.Conv2d) -> bool:
    known = (conv.kernel_size, conv.padding) in (((3, 3), (1, 1)), ((5, 5), (2, 2)))
    plain = (conv.stride, conv.dilation, conv.groups, conv.padding_mode) == ((1, 1), (1, 1), 1, "zeros")
    return known and plain and conv.in_channels * conv.out_channels >= 64 * 32


def bfloat16_mse_budget(scale: int) -> float:
    """Return the mean squared error, of values in [0, 1], that costs the best networks of a scale 0.01 dB on Set5.

    They reach 38.3, 34.8, 32.7 and 27.4 dB at x2, x3, x4 and x8; 0.01 dB is 1/430 of their own error.
    """
    best = {3: 34.8, 4: 32.7, 8: 27.4}.get(scale, 38.3)
    return 10 ** (-best / 10) / 430


def computes_in_bfloat16(device_type: str) -> bool:
    """Return True if a device, "cpu" or "cuda", has instructions for bfloat16; without them float32 is faster."""
    if device_type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def nnpack_is_faster(device_type: str) -> bool:
    """Return True if NNPACK, written for AVX2, is faster than oneDNN: on processors without wider vectors."""
    return (
        device_type == "cpu"
        and torch.backends.cpu.get_cpu_capability() == "AVX2"
        and torch.backends.nnpack.is_available()  # this call initialises it
    )
