"""Additional metrics: fine detail, agreement with LR, perceptual distance."""

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
from sr_lightning.metrics.measure_names import check_measures
from sr_lightning.metrics.protocol import Protocol, prepare_for_scoring
from sr_lightning.metrics.psnr_ssim import capped_psnr

log = logging.getLogger(__name__)

LPIPS_MIN_SIDE = 31  # pixels, required by the strides of AlexNet

Measure = Callable[[Tensor, Tensor, Tensor, int, Protocol], Tensor]


def spectrum(sr: Tensor, lr: Tensor, hr: Tensor, scale: int, protocol: Protocol) -> Tensor:
    """Fine detail of SR relative to HR: the ratio of their `fine_power`, on luma with the border shaved.

    1: as much fine detail as HR, correct or invented. Far below 1: blurred. Above 1: noise, ringing or texture that HR
    does not have. NaN: HR has no fine detail.

    Args:
        sr: Prediction, nominally in [0, 1], (N, C, h*scale, w*scale), C 1 (BT.601 luma) or 3.
        lr: Not used.
        hr: Ground truth in [0, 1], (N, C', h*scale, w*scale).
        scale: Super-resolution factor.
        protocol: Settings of the comparison.

    Returns:
        (N,), float64.
    """
    sr, hr = (
        rgb_to_y(image) if image.shape[1] == 3 else image
        for image in prepare_for_scoring(sr, hr, protocol.border_for(scale), protocol)
    )
    return fine_power(sr) / fine_power(hr)


def consistency(sr: Tensor, lr: Tensor, hr: Tensor, scale: int, protocol: Protocol) -> Tensor:
    """PSNR between LR and SR downscaled by MATLAB's bicubic, on the protocol's channel.

    A low value means that the invented detail contradicts LR. Meaningful only for LR made by bicubic.

    Args:
        sr: Prediction, nominally in [0, 1], (N, C, h*scale, w*scale), C 1 (BT.601 luma) or 3. If the protocol
            quantizes, it is rounded to 8 bits before and after downscaling.
        lr: Input of the network in [0, 1], (N, C', h, w).
        hr: Not used.
        scale: Super-resolution factor.
        protocol: Settings of the comparison. At least the two outermost LR pixels are shaved, where MATLAB's versions
            differ, or as many as fit into the protocol's border.

    Returns:
        (N,) dB, float64, at most that of one grey level in one LR pixel: HR itself has about that.
    """
    if protocol.quantize:
        reduced = downscale(quantize(sr).mul_(255).round_().to(torch.uint8), scale) / 255
    else:
        reduced = downscale(sr, scale)
    border = max(2, protocol.border_for(scale) // scale)
    return capped_psnr(*prepare_for_scoring(reduced, lr, border, replace(protocol, quantize=False)))


def lpips(sr: Tensor, lr: Tensor, hr: Tensor, scale: int, protocol: Protocol) -> Tensor:
    """LPIPS (Zhang et al. 2018) with AlexNet, a learned perceptual distance.

    0 for equal images; below 0.1 they are hard to tell apart. Computed on RGB for every protocol, rounded to 8 bits,
    with the border shaved. Luma predictions get bicubic chroma, gray images three equal channels.

    Args:
        sr: Prediction, nominally in [0, 1], (N, C, h*scale, w*scale), C 1 (BT.601 luma) or 3.
        lr: Input of the network in [0, 1], (N, C', h, w).
        hr: Ground truth in [0, 1], (N, C', h*scale, w*scale).
        scale: Super-resolution factor.
        protocol: Only its border is used.

    Returns:
        (N,), float64.

    Raises:
        InputError: An image is too small for AlexNet.
        RuntimeError: torchvision or AlexNet's weights are missing; `select_measures` leaves LPIPS out then.
    """
    border = protocol.border_for(scale)
    height, width = (side - 2 * border for side in hr.shape[2:])
    if min(height, width) < LPIPS_MIN_SIDE:
        raise InputError(
            f"lpips needs {LPIPS_MIN_SIDE} x {LPIPS_MIN_SIDE} pixels, there are {height} x {width} after shaving "
            f"{border} per side: leave lpips out of measures"
        )
    sr = with_chroma(sr, lr, scale) if sr.shape[1] < lr.shape[1] else sr
    sr, hr = (
        quantize(to_channels(image, 3).float()[..., border : border + height, border : border + width])
        for image in (sr, hr)
    )
    network = lpips_network()
    if network is None:
        raise RuntimeError("LPIPS is not available: install torchvision and let it download AlexNet's weights")
    network = network.to(sr.device)
    return torch.stack([network(a[None], b[None]) for a, b in zip(sr, hr, strict=True)]).double()


MEASURES: dict[str, Measure] = {"spectrum": spectrum, "consistency": consistency, "lpips": lpips}


def select_measures(names: Sequence[str] | None) -> dict[str, Measure]:
    """Return the measures by name; LPIPS is left out with a warning if it is not available here.

    Raises:
        InputError: As in `check_measures`.

    Example:
        >>> list(select_measures(["consistency", "spectrum"]))
        ['consistency', 'spectrum']
    """
    check_measures(names)
    return {name: MEASURES[name] for name in names or () if name != "lpips" or lpips_network() is not None}


@cache
def lpips_network() -> nn.Module | None:
    """Return torchmetrics' LPIPS: (1, 3, H, W), (1, 3, H, W) in [0, 1] -> ().

    None, with a warning, if torchvision or AlexNet's weights are not available.
    """
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    try:
        return LearnedPerceptualImagePatchSimilarity("alex", normalize=True).eval()
    except (ImportError, RuntimeError, OSError) as error:  # torchvision missing or for another torch; no download
        log.warning(
            "lpips is left out: it needs the torchvision of torch %s (pip install torchvision) and AlexNet's weights, "
            "which torchvision downloads once. Error: %s",
            torch.__version__,
            str(error).splitlines()[0],
        )
        return None


def fine_power(image: Tensor) -> Tensor:
    """Power of an image at radial frequencies between half the Nyquist frequency and the Nyquist frequency.

    The weighted mean is subtracted and the image multiplied by a Hann window (periodic, one per axis), so that neither
    brightness nor the step between opposite edges leaks into high frequencies. |FFT|² is then summed where 0.5 <
    sqrt(fx² + fy²) <= 1, with frequencies in units of half a cycle per pixel.

    Args:
        image: (N, 1, H, W).

    Returns:
        (N,), float64. The unit depends on H and W: use it for ratios between images of one size.

    Example:
        >>> noise = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
        >>> round((fine_power(0.5 * noise) / fine_power(noise)).item(), 3)
        0.25
    """
    height, width = image.shape[2:]
    dtype, device = torch.float64, image.device
    window = torch.outer(*(torch.hann_window(size, dtype=dtype, device=device) for size in (height, width)))
    image = image[:, 0].double()
    mean = (image * window).sum(dim=(1, 2), keepdim=True) / window.sum()
    power = torch.fft.rfft2((image - mean) * window).abs().square()  # (N, H, W//2 + 1)
    fy = torch.fft.fftfreq(height, dtype=dtype, device=device)
    fx = torch.fft.rfftfreq(width, dtype=dtype, device=device)
    radius = 2 * torch.hypot(fy[:, None], fx)
    count = torch.full((width // 2 + 1,), 2.0, dtype=dtype, device=device)  # rfft leaves out the mirrored half
    count[0] = 1
    if width % 2 == 0:
        count[-1] = 1
    return (power * count * ((radius > 0.5) & (radius <= 1))).sum(dim=(1, 2))
