"""How a number is made: the protocol beside each PSNR and SSIM, and means that are exact on any number of processes.

The pure function first (`score`), then the torchmetrics on top (`PerImage`, `Score`).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from sr_lightning.color import quantize, rgb_to_y, rgb_to_y709
from sr_lightning.errors import InputError
from sr_lightning.metrics.psnr_ssim import WINDOW, precise, psnr, ssim, ssim_daala

SSIM = {"wang": ssim, "daala": ssim_daala}  # the definitions a protocol can name


@dataclass(frozen=True)
class Protocol:
    """How a PSNR and an SSIM are made; its `name` stands beside every number.

    Attributes:
        channel: "y" scores the BT.601 luma (not rounded), "rgb" the three channels together, "y709" the luma that the
            tools of the Daala codec see: BT.709, rounded to 8 bits.
        border: HR pixels left out on each side: "scale", "scale+6" (or any "scale+k"), or a number.
        quantize: the prediction is clamped and rounded to 8 bits first, in the colour space it comes in.
        ssim: the definition of SSIM: "wang", Wang et al. 2004; "daala", that of the SRGAN paper's figures.
        lr_source: where the LR image comes from. "files": the LR files of the data set, made from HR where there are
            none; "made": made from HR, 8 bit, by bicubic; "made-second_order-f9bbd8": by another degradation, of these
            settings; "luma": as in the SRCNN paper, HR becomes 8-bit luma, and LR is made from that in double precision
            and not rounded.
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
                "channel": ("y", "rgb", "y709"),
                "ssim": tuple(SSIM),
                "lr_source": ("files", "made", "luma", *re.findall(r"^made-[\w-]+$", str(self.lr_source))),
            }.items()
            if getattr(self, key) not in choices
        ]
        if not self._border_is_valid():
            wrong.append(f"border={self.border!r}: choose from scale, scale+6 (any scale+k), or a whole number >= 0")
        if not isinstance(self.quantize, bool):
            wrong.append(f"quantize={self.quantize!r}: choose from true, false")
        if self.lr_source == "luma" and self.channel in ("rgb", "y709"):
            wrong.append(
                f"channel={self.channel!r} with lr_source='luma': a luma LR image has no colour, choose channel=y"
            )
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
        ssim = {"wang": "Wang 2004", "daala": "as Daala's dump_ssim has it"}[self.ssim]
        channel = {
            "y": "BT.601 luma",
            "rgb": "RGB, the three channels together",
            "y709": "BT.709 luma, rounded to 8 bits",
        }[self.channel]
        border = f"{self.border} pixels".replace("+", " + ")
        bits = "rounded to 8 bits" if self.quantize else "not rounded"
        lr = {
            "files": "from the data set's files, made from HR where there are none",
            "made": "made from HR, 8 bits",
            "luma": "made from HR's 8-bit luma, not rounded",
        }.get(self.lr_source, f"made from HR by {self.lr_source.removeprefix('made-')}, 8 bits")
        return (
            f"PSNR and SSIM ({ssim}) of {channel}; the prediction {bits}; {border} left out on each side; LR {lr}; "
            "averages over images"
        )


@torch.no_grad()
def score(sr: Tensor, hr: Tensor, scale: int, protocol: Protocol) -> dict[str, Tensor]:
    """PSNR and SSIM of each image by the protocol, see `as_scored`.

    Args:
        sr: prediction, nominally in [0, 1], (N, C, H, W), C 1 or 3.
        hr: ground truth in [0, 1], (N, C', H, W), C' 1 or 3.
        scale: the factor of super-resolution; a border may depend on it.
        protocol: how the numbers are made.

    Returns:
        {"psnr": (N,) dB, "ssim": (N,)}, float64.

    Raises:
        InputError: (a ValueError) as in `as_scored`, or images smaller than SSIM's window without the border.
    """
    border = protocol.border_for(scale)
    height, width = (max(0, side - 2 * border) for side in hr.shape[-2:])
    if min(height, width) < WINDOW:
        raise InputError(
            f"{hr.shape[-2]} x {hr.shape[-1]} pixels are {height} x {width} after shaving {border} per side "
            f"(border={protocol.border}): SSIM needs at least {WINDOW} x {WINDOW}"
        )
    sr, hr = as_scored(sr, hr, border, protocol)
    return {"psnr": psnr(sr, hr), "ssim": SSIM[protocol.ssim](sr, hr)}


def as_scored(sr: Tensor, hr: Tensor, border: int, protocol: Protocol) -> tuple[Tensor, Tensor]:
    """What the protocol compares of a prediction and the ground truth.

    The prediction is rounded to 8 bits in the colour space it comes in, then both become luma where the protocol says
    so, then the border is left out. HR is the ground truth as it is, neither clamped nor rounded (but as 8-bit luma,
    where that is the channel). Where the two have different numbers of channels:
        - HR with one channel counts as luma as it is, never squeezed into 16..235; three channels of `sr` are averaged.
        - `sr` with one channel is BT.601 luma; HR becomes luma too (rounded only with lr_source="luma", where the 8-bit
          luma is the ground truth).

    Args:
        sr: prediction, nominally in [0, 1], (N, C, H, W), C 1 or 3.
        hr: ground truth in [0, 1], (N, C', H, W), C' 1 or 3.
        border: pixels left out on each side.
        protocol: how.

    Returns:
        sr and hr, both (N, 1 or 3, H - 2*border, W - 2*border), at least float32.

    Raises:
        InputError: (a ValueError) for shapes that do not match, and a one-channel prediction of a colour image where
            its colours are needed.
    """
    _check_pair(sr, hr, protocol)
    # The border goes first, all that follows is pixel by pixel.
    sr, hr = (
        precise(image[..., border : image.shape[-2] - border, border : image.shape[-1] - border]) for image in (sr, hr)
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
    elif protocol.channel == "y709":
        sr, hr = rgb_to_y709(sr), rgb_to_y709(hr)
    return (quantize(sr), quantize(hr)) if protocol.channel == "y709" else (sr, hr)


def _check_pair(sr: Tensor, hr: Tensor, protocol: Protocol) -> None:
    shapes = f"sr {tuple(sr.shape)} and hr {tuple(hr.shape)}"
    fits = sr.ndim == hr.ndim == 4 and sr.shape[0] == hr.shape[0] and sr.shape[2:] == hr.shape[2:]
    if not fits or not {sr.shape[1], hr.shape[1]} <= {1, 3}:
        raise InputError(
            f"{shapes} must be (N, 1 or 3, H, W) with equal N, H and W: crop HR to a multiple of the scale"
        )
    if protocol.channel != "y" and sr.shape[1] < hr.shape[1]:
        raise InputError(
            f"{shapes}: a BT.601 luma prediction of a colour image has no {protocol.channel} score. Score luma "
            "(protocol.channel=y), or give sr its colours first: bicubic chroma, then ycbcr_to_rgb"
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
