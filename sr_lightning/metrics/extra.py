"""What PSNR and SSIM do not tell, as columns beside them: fine detail, agreement with LR, perceived likeness."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, nn

from sr_lightning.color import quantize, rgb_to_y
from sr_lightning.degradations.bicubic import downscale
from sr_lightning.errors import InputError
from sr_lightning.inference import to_channels, with_chroma
from sr_lightning.metrics.protocol import Protocol, as_scored
from sr_lightning.metrics.psnr_ssim import psnr

log = logging.getLogger(__name__)

_LEAST = 31  # pixels that AlexNet's strides need

Measure = Callable[[Tensor, Tensor, Tensor, int, Protocol], Tensor]


def spectrum(sr: Tensor, lr: Tensor, hr: Tensor, scale: int, protocol: Protocol) -> Tensor:
    """The fine detail of SR as a share of HR's, see `fine_power`: of luma, border left out as for PSNR.

    1: as much as in HR, right or invented. Far below: blurred. Above: noise, ringing or texture that is not there. NaN
    where HR has no fine detail at all.

    Args:
        sr: prediction, nominally in [0, 1], (N, C, h*scale, w*scale), C 1 (BT.601 luma) or 3.
        lr: not used.
        hr: ground truth in [0, 1], (N, C', h*scale, w*scale).
        scale: the factor.
        protocol: says what is compared.

    Returns:
        (N,), float64.
    """
    sr, hr = (
        rgb_to_y(image) if image.shape[1] == 3 else image
        for image in as_scored(sr, hr, protocol.border_for(scale), protocol)
    )
    return fine_power(sr) / fine_power(hr)


def consistency(sr: Tensor, lr: Tensor, hr: Tensor, scale: int, protocol: Protocol) -> Tensor:
    """SR reduced by MATLAB's bicubic, against LR: their PSNR, on the channel of the protocol.

    Says whether what was invented contradicts what was given; only for LR that is made by bicubic.

    Args:
        sr: prediction, nominally in [0, 1], (N, C, h*scale, w*scale), C 1 (BT.601 luma) or 3; as an image of 8 bits,
            reduced to one of 8 bits, if the protocol rounds.
        lr: what it was made from, (N, C', h, w).
        hr: not used.
        scale: the factor.
        protocol: says what is compared. Left out are the two outermost LR pixels, which MATLAB's versions make
            differently, or as many as fit in the protocol's border.

    Returns:
        (N,) dB, float64; inf for HR itself.
    """
    if protocol.quantize:
        reduced = downscale(quantize(sr).mul_(255).round_().to(torch.uint8), scale) / 255
    else:
        reduced = downscale(sr, scale)
    border = max(2, protocol.border_for(scale) // scale)
    return psnr(*as_scored(reduced, lr, border, replace(protocol, quantize=False)))


def lpips(sr: Tensor, lr: Tensor, hr: Tensor, scale: int, protocol: Protocol) -> Tensor:
    """Learned perceptual distance (Zhang et al. 2018), AlexNet's: 0 for equal images, below 0.1 hard to tell apart.

    Of RGB, whatever the channel of the protocol, rounded to 8 bits, border left out as for PSNR. Luma predictions get
    bicubic chroma, gray images three equal channels.

    Args:
        sr: prediction, nominally in [0, 1], (N, C, h*scale, w*scale), C 1 (BT.601 luma) or 3.
        lr: what it was made from, (N, C', h, w).
        hr: ground truth in [0, 1], (N, C', h*scale, w*scale).
        scale: the factor.
        protocol: gives the border.

    Returns:
        (N,), float64.

    Raises:
        InputError: An image is too small for AlexNet.
    """
    border = protocol.border_for(scale)
    height, width = (side - 2 * border for side in hr.shape[2:])
    if min(height, width) < _LEAST:
        raise InputError(
            f"lpips needs {_LEAST} x {_LEAST} pixels, there are {height} x {width} after shaving {border} per side: "
            "leave lpips out of measures"
        )
    sr = with_chroma(sr, lr, scale) if sr.shape[1] < lr.shape[1] else sr
    sr, hr = (
        quantize(to_channels(image, 3).float()[..., border : border + height, border : border + width])
        for image in (sr, hr)
    )
    network = lpips_network().to(sr.device)
    return torch.stack([network(a[None], b[None]) for a, b in zip(sr, hr, strict=True)]).double()


MEASURES: dict[str, Measure] = {"spectrum": spectrum, "consistency": consistency, "lpips": lpips}


def chosen(names: Sequence[str] | None) -> dict[str, Measure]:
    """The measures of `measures=[…]` that can be made here; the log says which cannot, and why.

    Raises:
        InputError: Names that there are not.
    """
    check_names(names)
    return {name: MEASURES[name] for name in names or () if name != "lpips" or lpips_network() is not None}


def check_names(names: Sequence[str] | None) -> None:
    """Refuse what is no list of measures.

    Raises:
        InputError: Says which there are.
    """
    if isinstance(names, str) or (wrong := [name for name in names or () if name not in MEASURES]):
        wrong = names if isinstance(names, str) else ", ".join(map(str, wrong))
        raise InputError(f"measures: {wrong}; give a list of {', '.join(MEASURES)}, such as 'measures=[spectrum]'")


@cache
def lpips_network() -> nn.Module | None:
    """The LPIPS of torchmetrics: (1, 3, H, W), (1, 3, H, W) in [0, 1] -> (); None without torchvision's AlexNet."""
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    try:
        return LearnedPerceptualImagePatchSimilarity("alex", normalize=True).eval()
    except (ImportError, RuntimeError, OSError) as error:  # not there, not for this torch, or cannot fetch the weights
        log.warning(
            "lpips is left out: it needs the torchvision of torch %s (pip install torchvision) and AlexNet's weights, "
            "which that fetches once. It said: %s",
            torch.__version__,
            str(error).splitlines()[0],
        )
        return None


def fine_power(image: Tensor) -> Tensor:
    """The power of an image between half the Nyquist frequency and the whole, in rings of the 2-D spectrum.

    Each image is freed of its mean under a Hann window (periodic, height times width) and multiplied by it, so that
    neither brightness nor the jump from one edge to the opposite leaks into high frequencies; |FFT|² is summed where
    0.5 < sqrt(fx² + fy²) <= 1, frequencies in units of half a cycle per pixel.

    Args:
        image: (N, 1, H, W).

    Returns:
        (N,), float64, in units that depend on H and W: for ratios of images of one size.
    """
    height, width = image.shape[2:]
    like = {"dtype": torch.float64, "device": image.device}
    window = torch.outer(*(torch.hann_window(size, **like) for size in (height, width)))
    image = image[:, 0].double()
    mean = (image * window).sum(dim=(1, 2), keepdim=True) / window.sum()
    power = torch.fft.rfft2((image - mean) * window).abs().square()  # (N, H, W//2 + 1)
    radius = 2 * torch.hypot(torch.fft.fftfreq(height, **like)[:, None], torch.fft.rfftfreq(width, **like))
    times = torch.full((width // 2 + 1,), 2.0, **like)  # a real image's spectrum is symmetric: the half left out
    times[0] = 1
    if width % 2 == 0:
        times[-1] = 1
    return (power * times * ((radius > 0.5) & (radius <= 1))).sum(dim=(1, 2))
