"""The protocol that defines a PSNR and an SSIM, and the scores of images under it."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from sr_lightning.color import quantize, rgb_to_y, rgb_to_y709, to_uint8
from sr_lightning.degradations.bicubic import downscale
from sr_lightning.errors import InputError
from sr_lightning.metrics.psnr_ssim import WINDOW, at_least_float32, capped_psnr, ssim, ssim_daala
from sr_lightning.networks.bicubic import Bicubic
from sr_lightning.utils.messages import listing

log = logging.getLogger(__name__)

SSIM = {"wang": ssim, "daala": ssim_daala}  # the definitions that a protocol can name


@dataclass(frozen=True)
class Protocol:
    """All settings that a PSNR and an SSIM depend on. Its `name` is printed beside every number.

    Attributes:
        channel: "y" scores BT.601 luma (not rounded), "rgb" the three channels together, "y709" the luma used by the
            tools of the Daala codec: BT.709, rounded to 8 bits.
        border: HR pixels shaved on each side: "scale", "scale+6" (or any "scale+k"), or a number.
        quantize: Clamp the prediction and round it to 8 bits, in the colour space it is given in.
        ssim: Definition of SSIM: "wang", Wang et al. 2004, or "daala", the one behind the SRGAN paper's numbers.
        lr_source: Origin of the LR image. "files": the data set's LR files, or made from HR if it has none. "made":
            made from HR by bicubic, 8 bits. "made-second_order-f9bbd8": made by another degradation; the suffix
            identifies its settings. "luma": the SRCNN paper's, made in double precision from 8-bit luma of HR and not
            rounded.

    Raises:
        InputError: One or more settings are invalid; the message lists all of them.

    Example:
        >>> Protocol(border="scale+6").name
        'y_shave-scale+6_8bit_ssim-wang_lr-files'
        >>> Protocol(border="scale+6").border_for(4)
        10
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
        """Return the number of HR pixels shaved on each side at this scale."""
        if isinstance(self.border, int):
            return self.border
        return scale + int(self.border.partition("+")[2] or 0)

    @property
    def name(self) -> str:
        """All settings in one word, usable as a file name: `y_shave-scale_8bit_ssim-wang_lr-files`."""
        bits = "8bit" if self.quantize else "float"
        return f"{self.channel}_shave-{self.border}_{bits}_ssim-{self.ssim}_lr-{self.lr_source}"

    @property
    def description(self) -> str:
        """All settings as a sentence for readers."""
        ssim = {"wang": "Wang 2004", "daala": "as in Daala's dump_ssim"}[self.ssim]
        channel = {
            "y": "BT.601 luma",
            "rgb": "RGB, the three channels together",
            "y709": "BT.709 luma, rounded to 8 bits",
        }[self.channel]
        border = f"{self.border} pixels".replace("+", " + ")
        bits = "rounded to 8 bits" if self.quantize else "not rounded"
        lr = {
            "files": "from the data set's files, or made from HR if there are none",
            "made": "made from HR, 8 bits",
            "luma": "made from HR's 8-bit luma, not rounded",
        }.get(self.lr_source, f"made from HR by {self.lr_source.removeprefix('made-')}, 8 bits")
        return (
            f"PSNR and SSIM ({ssim}) of {channel}; the prediction {bits}; {border} shaved on each side; LR {lr}; "
            "averages over images"
        )


@torch.no_grad()
def score(sr: Tensor, hr: Tensor, scale: int, protocol: Protocol) -> dict[str, Tensor]:
    """Compute PSNR and SSIM of each image under a protocol, see `prepare_for_scoring`.

    Args:
        sr: Prediction, nominally in [0, 1], (N, C, H, W), C 1 or 3.
        hr: Ground truth in [0, 1], (N, C', H, W), C' 1 or 3.
        scale: Super-resolution factor; the border may depend on it.
        protocol: Settings of the scores.

    Returns:
        {"psnr": (N,) dB, "ssim": (N,)}, float64. PSNR is at most that of one grey level in one pixel.

    Raises:
        InputError: (a ValueError) As in `prepare_for_scoring`, or the images without their border are smaller than
            SSIM's window.

    Example:
        >>> hr = torch.full((1, 3, 24, 24), 100 / 255)
        >>> scores = score(hr + 1 / 255, hr, scale=2, protocol=Protocol(channel="rgb"))
        >>> [f"{name} {value.item():.2f}" for name, value in scores.items()]
        ['psnr 48.13', 'ssim 1.00']
    """
    sr, hr = prepare_for_scoring(sr, hr, _scored_border(hr, scale, protocol), protocol)
    return {"psnr": capped_psnr(sr, hr), "ssim": SSIM[protocol.ssim](sr, hr)}


@torch.no_grad()
def differs_from_bicubic(hr: Tensor, scale: int, protocol: Protocol) -> Tensor:
    """Return True for each image that bicubic does not reproduce; only these are scored.

    Bicubic gets LR of 8 bits. An error of at most one grey level everywhere is explained by the rounding of LR and SR
    alone. Such an image, and one that is flat in the scored area, tells nothing about a network, but its PSNR, which
    has no bound, would outweigh all others in a mean.

    Args:
        hr: Ground truth in [0, 1], (N, C, h*scale, w*scale), C 1 or 3.
        scale: Super-resolution factor.
        protocol: Settings of the comparison.

    Returns:
        (N,), bool; a property of HR alone, the same for every network and LR.

    Raises:
        InputError: As of `score`.

    Example:
        >>> hr = torch.zeros(2, 3, 24, 24)
        >>> hr[1, :, 12, 12] = 1
        >>> differs_from_bicubic(hr, scale=2, protocol=Protocol()).tolist()
        [False, True]
    """
    lr = downscale(to_uint8(hr), scale) / 255
    sr = Bicubic(scale=scale).to(hr.device)(lr)
    protocol = replace(protocol, quantize=True)
    sr, hr = prepare_for_scoring(sr, hr, _scored_border(hr, scale, protocol), protocol)
    level = 1.01 / 255  # float32 is not exact
    is_flat = (hr.amax(dim=(2, 3)) - hr.amin(dim=(2, 3)) < level).all(dim=1)  # also beside a shaved border that is not
    return ((sr - hr).abs() > level).flatten(1).any(dim=1) & ~is_flat


@cache
def report_left_out(dataset: str, names: Sequence[str], number: int) -> None:
    """Log once which of a data set's images are not scored, because bicubic reproduces them.

    Raises:
        InputError: None of them is scored.
    """
    if len(names) == number:
        raise InputError(f"{dataset}: {all_left_out(number)}")
    if names:
        log.warning(
            "%s: %d of %d images are not scored, since bicubic reproduces them (flat, or smooth to within a grey "
            "level):%s",
            *(dataset, len(names), number, listing(names)),
        )


def all_left_out(number: int) -> str:
    """Return the message that nothing is left to score."""
    return f"bicubic reproduces all {number} images, so nothing can be scored; give images with detail"


def _scored_border(hr: Tensor, scale: int, protocol: Protocol) -> int:
    """Return the pixels to shave on each side, if SSIM's window fits into what is left.

    Raises:
        InputError: It does not fit.
    """
    border = protocol.border_for(scale)
    height, width = (max(0, side - 2 * border) for side in hr.shape[-2:])
    if min(height, width) < WINDOW:
        raise InputError(
            f"{hr.shape[-2]} x {hr.shape[-1]} pixels are {height} x {width} after shaving {border} per side "
            f"(border={protocol.border}): SSIM needs at least {WINDOW} x {WINDOW}"
        )
    return border


def prepare_for_scoring(sr: Tensor, hr: Tensor, border: int, protocol: Protocol) -> tuple[Tensor, Tensor]:
    """Convert a prediction and its ground truth to the two images that the protocol compares.

    The prediction is clamped and rounded to 8 bits (if the protocol says so) in the colour space it is given in; then
    both images are converted to luma (if the protocol says so) and the border is shaved. HR is neither clamped nor
    rounded, except where the channel is an 8-bit luma. If the two have different numbers of channels:
        - An HR image with one channel is taken as luma without conversion to 16..235; three channels of `sr` are
          averaged.
        - An `sr` with one channel is taken as BT.601 luma, and HR is converted to luma (rounded only with
          lr_source="luma", where the 8-bit luma is the ground truth).

    Args:
        sr: Prediction, nominally in [0, 1], (N, C, H, W), C 1 or 3.
        hr: Ground truth in [0, 1], (N, C', H, W), C' 1 or 3.
        border: Pixels to shave on each side.
        protocol: Settings of the scores.

    Returns:
        sr and hr, both (N, 1 or 3, H - 2*border, W - 2*border), at least float32.

    Raises:
        InputError: (a ValueError) Shapes do not match, or the prediction has one channel but the protocol's
            channel needs colour.
    """
    _check_pair(sr, hr, protocol)
    # Shave first: everything that follows is elementwise.
    sr, hr = (
        at_least_float32(image[..., border : image.shape[-2] - border, border : image.shape[-1] - border])
        for image in (sr, hr)
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
            "(protocol.channel=y), or convert sr to RGB first: add bicubic chroma, then ycbcr_to_rgb"
        )
