"""Inference: colour images with luma networks and vice versa, self-ensembles, the fastest form of a network."""

import copy
import functools
import time
from collections.abc import Callable, Container, Mapping

import torch
from torch import Tensor, nn

from sr_lightning.color import rgb_to_y, rgb_to_ycbcr, ycbcr_to_rgb
from sr_lightning.errors import InputError
from sr_lightning.inference.forms import Form, possible_forms, records_graphs
from sr_lightning.networks.bicubic import Bicubic
from sr_lightning.utils.cuda_graphs import Replays
from sr_lightning.utils.devices import PRECISIONS
from sr_lightning.utils.timings import Timings, facts_of, fastest

BUDGET = 0.5  # seconds of measurement, after the first rounds
GPU_SIDE = 256  # of the tile that a GPU measures, in LR pixels


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


def with_chroma(sr_luma: Tensor, lr: Tensor, scale: int, bicubic: Bicubic | None = None) -> Tensor:
    """Combine a luma prediction with the chroma of its LR image, upscaled bicubically.

    Args:
        sr_luma: (N, 1, h*scale, w*scale) luma in [0, 1].
        lr: (N, 3, h, w) RGB in [0, 1], the input of the prediction.
        scale: The factor.
        bicubic: The upscaling by this factor, for a network that is traced; None: one that all calls share.

    Returns:
        (N, 3, h*scale, w*scale) RGB, unclamped.
    """
    bicubic = _bicubic(scale, lr.device) if bicubic is None else bicubic
    chroma = bicubic(rgb_to_ycbcr(lr)[:, 1:])
    return ycbcr_to_rgb(torch.cat([sr_luma, chroma], dim=1))


@functools.cache
def _bicubic(scale: int, device: torch.device) -> Bicubic:
    """Return the network of a scale on a device; building it takes half a millisecond."""
    with torch.inference_mode(False):  # usable in training as well
        return Bicubic(scale=scale).to(device)


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
        self.receptive_radius, self.alignment = network.receptive_radius, getattr(network, "alignment", 1)

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
    """A network in its fastest form for a device: fused, and in the precision and memory format that are fastest there.

    Of several possible forms the fastest is chosen by measuring a tile, once per network and machine (`Timings`): in
    float32 channels last, or by NNPACK where torch has it, and in lower precisions where they are allowed; on a GPU
    each also as a CUDA graph. NNPACK computes convolutions of many features by Winograd's algorithm (Lavin and Gray
    2015, arXiv 1509.09308) or by Fourier transforms. These need fewer multiplications, but the rounding error is 2e-5
    of the output's standard deviation instead of 7e-6. `tests/benchmarks/bench_inference.py` measures the gain. Scoring
    does not use this class.

    Args:
        network: Has `scale`, `num_channels` and `receptive_radius`. It is copied.
        device: Where to compute.
        precision: Of the convolutions: "float32", "bfloat16", or "float16" on a GPU. "auto": the fastest of those that
            the device has instructions for and whose error stays below `mse_budget`, if necessary with the last
            convolution in float32, then also the first, so that a residual network adds in float32.

    Attributes:
        precision: "float32", "bfloat16" or "float16".
        as_graph: True if it is fastest as a CUDA graph, which the caller records together with what surrounds it.

    Shapes: as the network's; lr float32 on the device -> sr float32, without gradient.

    Raises:
        InputError: An unknown precision, or float16 on a CPU.
    """

    def __init__(self, network: nn.Module, device: torch.device | str = "cpu", precision: str = "auto") -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise InputError(f"precision={precision!r}: choose {', '.join(PRECISIONS)}")
        self.device = torch.device(device)
        if precision == "float16" and self.device.type == "cpu":
            raise InputError("precision='float16' needs a GPU: choose auto, float32 or bfloat16")
        self.scale, self.num_channels = network.scale, network.num_channels
        self.receptive_radius, self.alignment = network.receptive_radius, getattr(network, "alignment", 1)
        fused = fuse_for_inference(copy.deepcopy(network).eval()).requires_grad_(False).to(self.device)
        possible = possible_forms(fused, self.device, precision, self.num_channels, self.scale)
        forms = {form.name: form for form in possible}
        graphs = {f"{name} as a graph": form for name, form in forms.items() if records_graphs(self.device)}
        forms |= graphs
        name = next(iter(forms)) if len(forms) == 1 else fastest(self._seconds(network, forms, graphs))
        self.form, self.as_graph = forms[name], name in graphs
        self.precision = self.form.precision
        self.eval()

    @torch.inference_mode()
    def forward(self, lr: Tensor) -> Tensor:
        return self.form(lr)

    def _seconds(self, network: nn.Module, forms: Mapping[str, Form], graphs: Container[str]) -> dict[str, float]:
        """Return the seconds of each form for a tile; those in `graphs` are recorded."""
        key = {"purpose": "enlarging", "network": type(network).__name__, **facts_of(network, self.device)}
        side = functools.cache(lambda: self._side_of_tile(next(iter(forms.values()))))

        def build(name: str) -> Callable[[], None]:
            replays = Replays(self.device) if name in graphs else None
            return lambda: self._upscale(forms[name], side(), replays)

        return Timings().seconds(key, list(forms), build, BUDGET)

    def _side_of_tile(self, form: Form) -> int:
        """Return a side of a tile, in LR pixels, that is large enough for typical times but not too slow to measure.

        On 32 x 32 pixels NNPACK gains 1.2 times for EDSR-baseline, from 48 x 48 on as on whole images, 1.8 times. A GPU
        computes small tiles in the time that it takes to launch.
        """
        if self.device.type == "cuda":
            return GPU_SIDE
        self._upscale(form, 32)
        start = time.perf_counter()
        self._upscale(form, 32)
        per_pixel = (time.perf_counter() - start) / 32**2
        limits = {48: BUDGET, **dict.fromkeys((64, 96, 128), BUDGET / 4)}  # seconds per step
        return max([32, *(side for side, limit in limits.items() if per_pixel * side**2 < limit)])

    @torch.inference_mode()
    def _upscale(self, form: Form, side: int, replays: Replays | None = None) -> None:
        lr = torch.full((1, self.num_channels, side, side), 0.5, device=self.device)
        form(lr) if replays is None else replays(lambda lr: (form(lr),), lr)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
