"""How a number is made: PSNR and SSIM, the protocol beside them, and means that are exact on any number of processes.

Pure functions first (`psnr`, `ssim`, `score`), then the torchmetrics on top (`PerImage`, `Score`).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from sr_lightning.color import check_float, quantize, rgb_to_y
from sr_lightning.errors import InputError

_WINDOW = 11  # Wang 2004: an 11x11 Gaussian, sigma 1.5
_GAUSSIAN = torch.exp(-((torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2) ** 2) / (2 * 1.5**2))
_TAPS = (_GAUSSIAN / _GAUSSIAN.sum()).tolist()
_C1, _C2 = 0.01**2, 0.03**2  # (K1·L)², (K2·L)² for images in [0, 1]: L = 1
_STRIP = 1 << 16  # pixels worked on at once on a CPU: four maps and their blur (2 MB in float32) stay in L2 and L3


@torch.no_grad()
def psnr(sr: Tensor, hr: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image; the squared error is accumulated in float64.

    A measure, not a loss: no gradient.

    Args:
        sr: images in [0, 1], (N, C, H, W).
        hr: the ground truth, same shape.

    Returns:
        (N,) dB, float64; inf where the images are identical. The score of a data set is the mean of these: the PSNR of
        the pooled error is another, lower number.
    """
    sr, hr = _pair(sr, hr)
    return -10 * (sr - hr).square_().mean(dim=(1, 2, 3), dtype=torch.float64).log10()


@torch.no_grad()
def ssim(sr: Tensor, hr: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004): 11x11 Gaussian of sigma 1.5, K1 0.01, K2 0.03, valid area only.

    A measure, not a loss: no gradient. Arithmetic in the dtype given, at least float32, which is within 2e-7 of
    float64 on bicubic Set5 and BSD100.

    Args:
        sr: images in [0, 1], (N, C, H, W), at least 11 pixels high and wide.
        hr: the ground truth, same shape.

    Returns:
        (N,), float64: the mean over the map and the channels.

    Raises:
        InputError: (a ValueError) for an image smaller than the window.
    """
    sr, hr = _pair(sr, hr)
    (n, c, height, width), halo = sr.shape, _WINDOW - 1
    if min(height, width) < _WINDOW:
        raise InputError(f"SSIM needs at least {_WINDOW} x {_WINDOW} pixels, got {height} x {width}")
    sr, hr = sr.flatten(0, 1), hr.flatten(0, 1)  # (N*C, H, W)
    # A CPU is fast on what is in its cache, a GPU on everything at once.
    planes, rows = (1, max(16, _STRIP // width)) if sr.device.type == "cpu" else (n * c, height)
    total = torch.zeros(n * c, dtype=torch.float64, device=sr.device)
    for first in range(0, n * c, planes):
        x, y = sr[first : first + planes], hr[first : first + planes]
        grey = 2 * y.mean(dim=(1, 2))
        for top in range(0, height - halo, rows):
            strip = slice(top, top + rows + halo)
            total[first : first + planes] += _ssim_sum(x[:, strip], y[:, strip], grey)
    return (total / ((height - halo) * (width - halo))).view(n, c).mean(dim=1)


def _ssim_sum(x: Tensor, y: Tensor, grey: Tensor) -> Tensor:
    """The sum over the SSIM map of each plane: (P, H, W), (P, H, W), (P,) -> (P,) float64.

    With u = x + y, v = x - y, their local means m and local variances s, the two factors of SSIM become
        (m_u² - m_v² + 2 C1) / (m_u² + m_v² + 2 C1)   and   (s_u - s_v + 2 C2) / (s_u + s_v + 2 C2).
    Images to be compared are alike, so v is small and s_v is precise even as a difference E[v²] - m_v² in float32; the
    error of s_u falls on both sides of the fraction and leaves with it. What is left of it shrinks as u is taken
    relative to `grey`, any constant near its mean.
    """
    p, h, w = x.shape
    grey = grey.unsqueeze(1)
    # Planes lie flat, so that a shift in any direction is one contiguous stretch; the blur then runs on across the end
    # of a row, into columns that are dropped at the end.
    x, y = x.reshape(p, h * w), y.reshape(p, h * w)
    maps = x.new_zeros(4, p, h * w + _WINDOW - 1)
    u, v = maps[0, :, : h * w], maps[1, :, : h * w]
    torch.add(x, y, out=u).sub_(grey)
    torch.sub(x, y, out=v)
    torch.mul(maps[:2], maps[:2], out=maps[2:])
    maps = _blur(_blur(maps, w), 1)  # m_u - grey, m_v, E[(u - grey)²], E[v²]: (4, P, (h - 10)*w)
    means, variances = maps[:2], maps[2:]
    variances.sub_(means.square())
    means[0].add_(grey)
    means.square_()
    means[0].add_(2 * _C1)
    variances[0].add_(2 * _C2)
    u, v = maps[::2], maps[1::2]  # (2, P, ...): of the means, of the variances
    luminance, structure = (u - v).div_(u.add_(v))
    values = luminance.mul_(structure).view(p, -1, w)[..., : w - _WINDOW + 1]
    return values.sum(dim=(1, 2), dtype=torch.float64)


def _blur(maps: Tensor, step: int) -> Tensor:
    """The Gaussian along elements `step` apart: (..., L) -> (..., L - 10*step).

    One multiply-add per tap. Adding the pairs of equal weight first takes as many passes over the maps, and is no
    faster.
    """
    first, *others = maps.unfold(-1, maps.shape[-1] - (_WINDOW - 1) * step, step).unbind(-2)
    result = first * _TAPS[0]
    for shifted, tap in zip(others, _TAPS[1:], strict=True):
        result.add_(shifted, alpha=tap)
    return result


def _pair(sr: Tensor, hr: Tensor) -> tuple[Tensor, Tensor]:
    """Both checked, in one dtype."""
    if sr.shape != hr.shape or sr.ndim != 4:
        raise InputError(f"sr {tuple(sr.shape)} and hr {tuple(hr.shape)} must have one shape, (N, C, H, W)")
    sr, hr = _precise(sr), _precise(hr)
    dtype = torch.promote_types(sr.dtype, hr.dtype)
    return sr.to(dtype), hr.to(dtype)


def _precise(image: Tensor) -> Tensor:
    """In float32 or finer: half precision is for networks, not for measuring them."""
    check_float(image)
    return image.to(torch.promote_types(image.dtype, torch.float32))


@dataclass(frozen=True)
class Protocol:
    """How a PSNR and an SSIM are made; its `name` stands beside every number.

    Attributes:
        channel: "y" scores the BT.601 luma (not rounded), "rgb" the three channels together.
        border: HR pixels left out on each side: "scale", "scale+6" (or any "scale+k"), or a number.
        quantize: the prediction is clamped and rounded to 8 bits first, in the colour space it comes in.
        ssim: the definition of SSIM; "wang" is that of Wang et al. 2004, and the only one here.
        lr_source: where the LR image comes from. "files": the LR files of the data set, made from HR where there are
            none; "made": made from HR, 8 bit; "luma": as in the SRCNN paper, HR becomes 8-bit luma, and LR is made from
            that in double precision and not rounded.
    """

    channel: str = "y"
    border: str | int = "scale"
    quantize: bool = True
    ssim: str = "wang"
    lr_source: str = "files"

    def __post_init__(self):
        wrong = [
            f"{key}={getattr(self, key)!r}: choose from {', '.join(choices)}"
            for key, choices in {
                "channel": ("y", "rgb"),
                "ssim": ("wang",),
                "lr_source": ("files", "made", "luma"),
            }.items()
            if getattr(self, key) not in choices
        ]
        if not self._border_is_valid():
            wrong.append(f"border={self.border!r}: choose from scale, scale+6 (any scale+k), or a whole number >= 0")
        if not isinstance(self.quantize, bool):
            wrong.append(f"quantize={self.quantize!r}: choose from true, false")
        if self.lr_source == "luma" and self.channel == "rgb":
            wrong.append("channel='rgb' with lr_source='luma': a luma LR image has no colour, choose channel=y")
        if wrong:
            raise InputError("protocol: " + "; ".join(wrong))

    def _border_is_valid(self) -> bool:
        if isinstance(self.border, str):
            return re.fullmatch(r"scale(\+\d+)?", self.border) is not None
        return isinstance(self.border, int) and not isinstance(self.border, bool) and self.border >= 0

    def border_for(self, scale: int) -> int:
        """HR pixels left out on each side at this scale."""
        if isinstance(self.border, int):
            return self.border
        return scale + int(self.border.partition("+")[2] or 0)

    @property
    def name(self) -> str:
        """All settings at a glance, fit for a file name: `y_shave-scale_8bit_ssim-wang_lr-files`."""
        bits = "8bit" if self.quantize else "float"
        return f"{self.channel}_shave-{self.border}_{bits}_ssim-{self.ssim}_lr-{self.lr_source}"

    @property
    def words(self) -> str:
        """The name spelled out, for readers who meet it for the first time."""
        channel = {"y": "BT.601 luma", "rgb": "RGB, the three channels together"}[self.channel]
        border = f"{self.border} pixels".replace("+", " + ")
        bits = "rounded to 8 bits" if self.quantize else "not rounded"
        lr = {
            "files": "from the data set's files, made from HR where there are none",
            "made": "made from HR, 8 bits",
            "luma": "made from HR's 8-bit luma, not rounded",
        }[self.lr_source]
        return (
            f"PSNR and SSIM (Wang 2004) of {channel}; the prediction {bits}; {border} left out on each side; LR {lr}; "
            "averages over images"
        )


@torch.no_grad()
def score(sr: Tensor, hr: Tensor, scale: int, protocol: Protocol) -> dict[str, Tensor]:
    """PSNR and SSIM of each image by the protocol.

    The prediction is rounded to 8 bits in the colour space it comes in, then both become luma where the protocol says
    so, then the border is left out. HR is the ground truth as it is, neither clamped nor rounded. Where the two have
    different numbers of channels:
        - HR with one channel counts as luma as it is, never squeezed into 16..235; three channels of `sr` are averaged.
        - `sr` with one channel is luma; HR becomes luma too (rounded only with lr_source="luma", where the 8-bit luma
          is the ground truth).

    Args:
        sr: prediction, nominally in [0, 1], (N, C, H, W), C 1 or 3.
        hr: ground truth in [0, 1], (N, C', H, W), C' 1 or 3.
        scale: the factor of super-resolution; a border may depend on it.
        protocol: how the numbers are made.

    Returns:
        {"psnr": (N,) dB, "ssim": (N,)}, float64.

    Raises:
        InputError: (a ValueError) for shapes that do not match, images too small for the border and SSIM's window, and
            a one-channel prediction of a colour image where RGB is to be scored.
    """
    border = protocol.border_for(scale)
    _check_score(sr, hr, border, protocol)
    # The border goes first, all that follows is pixel by pixel.
    sr, hr = (
        _precise(image[..., border : image.shape[-2] - border, border : image.shape[-1] - border]) for image in (sr, hr)
    )
    if protocol.quantize:
        sr = quantize(sr)
    if protocol.lr_source == "luma" and hr.shape[1] == 3:
        hr = quantize(rgb_to_y(hr))
    if hr.shape[1] == 1:
        sr = sr.mean(dim=1, keepdim=True)
    elif protocol.channel == "y":
        hr = rgb_to_y(hr)
        sr = rgb_to_y(sr) if sr.shape[1] == 3 else sr
    return {"psnr": psnr(sr, hr), "ssim": ssim(sr, hr)}


def _check_score(sr: Tensor, hr: Tensor, border: int, protocol: Protocol) -> None:
    shapes = f"sr {tuple(sr.shape)} and hr {tuple(hr.shape)}"
    fits = sr.ndim == hr.ndim == 4 and sr.shape[0] == hr.shape[0] and sr.shape[2:] == hr.shape[2:]
    if not fits or not {sr.shape[1], hr.shape[1]} <= {1, 3}:
        raise InputError(
            f"{shapes} must be (N, 1 or 3, H, W) with equal N, H and W: crop HR to a multiple of the scale"
        )
    height, width = (max(0, side - 2 * border) for side in hr.shape[2:])
    if min(height, width) < _WINDOW:
        raise InputError(
            f"{hr.shape[2]} x {hr.shape[3]} pixels are {height} x {width} after shaving {border} per side "
            f"(border={protocol.border}): SSIM needs at least {_WINDOW} x {_WINDOW}"
        )
    if protocol.channel == "rgb" and sr.shape[1] < hr.shape[1]:
        raise InputError(
            f"{shapes}: a luma prediction of a colour image has no RGB score. Score luma (protocol.channel=y), or give "
            "sr its colours first: bicubic chroma, then ycbcr_to_rgb"
        )


class PerImage(Metric):
    """One value per image of a data set, and their mean, exact on any number of processes.

    Each process adds what it has seen; a sampler may repeat images (their values are averaged), and a process may have
    seen none. The states stay float64, whatever precision the module around them is cast to.

    Call `update`; a batch has no score of its own, so `forward` is not for this metric.

    Args:
        num_images: the number of images in the data set; the indices are 0..num_images-1.
    """

    is_differentiable = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, num_images: int):
        super().__init__()
        self.num_images = num_images
        for state in ("total", "count"):
            self.add_state(state, torch.zeros(num_images, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Tensor, index: Tensor) -> None:
        """Add the values (N,) of the images `index` (N,)."""
        index = index.to(self.total.device)
        if values.ndim != 1 or values.shape != index.shape:
            raise InputError(f"one value per image is needed: values {tuple(values.shape)}, index {tuple(index.shape)}")
        if (outside := index[(index < 0) | (index >= self.num_images)]).numel():
            raise InputError(
                f"index {outside.tolist()} in a data set of {self.num_images} images (0..{self.num_images - 1})"
            )
        self.total.index_add_(0, index, values.detach().to(self.total))
        self.count.index_add_(0, index, torch.ones_like(index, dtype=torch.float64))

    def compute(self) -> Tensor:
        """The mean over all images.

        Raises:
            InputError: where an image was not seen by any process.
        """
        return self._values().mean()

    def per_image(self) -> Tensor:
        """The value of each image, (num_images,) float64. Collective: in a distributed run every process calls it."""
        with self.sync_context(self.dist_sync_fn, should_sync=self._to_sync, should_unsync=self._should_unsync):
            return self._values()

    def _values(self) -> Tensor:
        if missing := int((self.count == 0).sum()):
            raise InputError(
                f"{missing} of {self.num_images} images were not scored, so there is no mean over the data set"
            )
        return self.total / self.count

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: str = "") -> Metric:
        """States follow the module to another device, never to another precision."""
        return super()._apply(lambda state: state.to(fn(state.new_empty(0)).device), exclude_state)


class Score(MetricCollection):
    """The mean PSNR and SSIM of a data set by a protocol, in Lightning: `update` per batch, `compute` or `log_dict`.

    Args:
        num_images: the number of images in the data set.
        scale: the factor of super-resolution.
        protocol: how the numbers are made.
        prefix: put before the names, such as "val/".
    """

    def __init__(self, num_images: int, scale: int, protocol: Protocol, prefix: str | None = None):
        # Compute groups compare states to share them between metrics; these two never share.
        super().__init__(
            {"psnr": PerImage(num_images), "ssim": PerImage(num_images)}, prefix=prefix, compute_groups=False
        )
        self.scale, self.protocol = scale, protocol

    def update(self, sr: Tensor, hr: Tensor, index: Tensor) -> None:
        """Score the images `index` (N,) of the data set: (N, C, H, W) each, see `score`."""
        for name, values in score(sr, hr, self.scale, self.protocol).items():
            self[name].update(values, index)

    def per_image(self) -> dict[str, Tensor]:
        """{"psnr": (num_images,), "ssim": (num_images,)}, named as `compute` names them. Collective."""
        return {name: metric.per_image() for name, metric in self.items()}
