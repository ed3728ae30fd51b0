"""Metrics beside PSNR and SSIM by name, and two of them: fine detail, and agreement with LR."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sr_lightning.color import quantize, rgb_to_y
from sr_lightning.degradations.bicubic import downscale
from sr_lightning.metrics.measure_names import check_measures
from sr_lightning.metrics.perceptual import FID, dists, dists_network, inception, lpips, lpips_network
from sr_lightning.metrics.protocol import Protocol, prepare_for_scoring
from sr_lightning.metrics.psnr_ssim import capped_psnr

Measure = Callable[[Tensor, Tensor, Tensor, int, Protocol], Tensor]
SetMeasure = type[FID]  # one object for a set: `update` as a Measure is called, then `compute`


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


MEASURES: dict[str, Measure | SetMeasure] = {
    "spectrum": spectrum,
    "consistency": consistency,
    "lpips": lpips,
    "dists": dists,
    "fid": FID,
}
NETWORKS = {"lpips": lpips_network, "dists": dists_network, "fid": inception}  # that measures need


def select_measures(names: Sequence[str] | None) -> dict[str, Measure | SetMeasure]:
    """Return the measures by name, with their networks loaded; LPIPS is left out with a warning if it is not available.

    Raises:
        InputError: As in `check_measures`; or weights are missing and cannot be downloaded.

    Example:
        >>> list(select_measures(["consistency", "spectrum"]))
        ['consistency', 'spectrum']
    """
    check_measures(names)
    return {name: MEASURES[name] for name in names or () if name not in NETWORKS or NETWORKS[name]() is not None}


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
