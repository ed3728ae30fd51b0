"""PSNR and two definitions of SSIM, as pure functions of batches of images."""

import math

import torch
from torch import Tensor

from sr_lightning.color import check_float, quantize
from sr_lightning.errors import InputError

WINDOW = 11  # Wang 2004: an 11x11 Gaussian, sigma 1.5
_GAUSSIAN = torch.exp(-((torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2) ** 2) / (2 * 1.5**2))
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
    height, width = sr.shape[2:]
    if min(height, width) < WINDOW:
        raise InputError(f"SSIM needs at least {WINDOW} x {WINDOW} pixels, got {height} x {width}")
    total = _ssim_total(sr, hr, 2 * hr.mean(dim=(2, 3)), _TAPS)
    return (total / ((height - WINDOW + 1) * (width - WINDOW + 1))).mean(dim=1)


@torch.no_grad()
def ssim_daala(sr: Tensor, hr: Tensor) -> Tensor:
    """Structural similarity as the tool dump_ssim of Xiph's video codec Daala defines it, which the SRGAN paper used.

    Other than Wang's: both images are rounded to 8 bits; the Gaussian grows with the image, sigma = height * 1.5 / 256,
    in weights rounded to 1/256 and cut where they would be 0; the map covers the whole image, with windows that end at
    its border and weigh in the mean what is left of them.

    A measure, not a loss: no gradient. Arithmetic as in `ssim`.

    Args:
        sr: images in [0, 1], (N, C, H, W). A border to be left out has been left out: sigma depends on the height.
        hr: the ground truth, same shape.

    Returns:
        (N,), float64: the mean over the channels.
    """
    sr, hr = (quantize(image) for image in _pair(sr, hr))
    height, width = sr.shape[2:]
    taps = daala_taps(height * 1.5 / 256, min(height, width))
    reach = len(taps) // 2
    rows, columns = (_covered(size, taps).to(sr) for size in (height, width))
    grey = 2 * hr.mean(dim=(2, 3))
    total = _ssim_total(_framed(sr, grey / 2, reach), _framed(hr, grey / 2, reach), grey, taps, rows[:, None] * columns)
    return (total / (rows.sum(dtype=torch.float64) * columns.sum(dtype=torch.float64))).mean(dim=1)


def daala_taps(sigma: float, longest: int) -> list[float]:
    """Daala's Gaussian in 256ths, with a sum of exactly 1; it reaches less than `longest` pixels to each side."""
    least = math.sqrt(math.pi / 2) * sigma / 256
    reach = 0 if least >= 1 else math.floor(sigma * math.sqrt(-2 * math.log(least)))
    reach = min(reach, longest - 1)
    peak = 256 / (math.sqrt(2 * math.pi) * sigma)
    side = [math.floor(peak * math.exp(-0.5 * (k / sigma) ** 2) + 0.5) for k in range(reach, 0, -1)]
    return [tap / 256 for tap in (*side, 256 - 2 * sum(side), *reversed(side))]


def _covered(size: int, taps: list[float]) -> Tensor:
    """The sum of the taps that fall on a line of `size` pixels when centred at each: (size,) float64."""
    reach = len(taps) // 2
    line = torch.zeros(size + 2 * reach, dtype=torch.float64)
    line[reach : reach + size] = 1
    return line.unfold(0, len(taps), 1).mul(torch.tensor(taps, dtype=torch.float64)).sum(dim=1)


def _framed(image: Tensor, grey: Tensor, reach: int) -> Tensor:
    """`reach` pixels of a grey (N, C) around each plane: (N, C, H, W) -> (N, C, H + 2*reach, W + 2*reach)."""
    height, width = image.shape[2:]
    framed = grey[..., None, None].repeat(1, 1, height + 2 * reach, width + 2 * reach)
    framed[..., reach : reach + height, reach : reach + width] = image
    return framed


def _ssim_total(sr: Tensor, hr: Tensor, grey: Tensor, taps: list[float], weight: Tensor | None = None) -> Tensor:
    """The sum over the SSIM map of each plane, in parts that suit the machine; arguments as in `_ssim_sum`.

    Returns:
        (N, C) float64.
    """
    (n, c, height, width), halo = sr.shape, len(taps) - 1
    sr, hr, grey = sr.flatten(0, 1), hr.flatten(0, 1), grey.flatten()  # (N*C, H, W), (N*C,)
    # A CPU is fast on what is in its cache, a GPU on everything at once.
    planes, rows = (1, max(16, _STRIP // width)) if sr.device.type == "cpu" else (n * c, height)
    total = torch.zeros(n * c, dtype=torch.float64, device=sr.device)
    for first in range(0, n * c, planes):
        part = slice(first, first + planes)
        for top in range(0, height - halo, rows):
            strip = slice(top, top + rows + halo)
            covered = None if weight is None else weight[top : top + rows]
            total[part] += _ssim_sum(sr[part, strip], hr[part, strip], grey[part], taps, covered)
    return total.view(n, c)


def _ssim_sum(x: Tensor, y: Tensor, grey: Tensor, taps: list[float], weight: Tensor | None = None) -> Tensor:
    """The sum over the SSIM map of each plane, where the window fits.

    With u = x + y, v = x - y, their local means m and local variances s, the two factors of SSIM become
        (m_u² - m_v² + 2 C1) / (m_u² + m_v² + 2 C1)   and   (s_u - s_v + 2 C2) / (s_u + s_v + 2 C2).
    Images to be compared are alike, so v is small and s_v is precise even as a difference E[v²] - m_v² in float32; the
    error of s_u falls on both sides of the fraction and leaves with it. What is left of it shrinks as u is taken
    relative to `grey`, any constant near its mean.

    Args:
        x: (P, H, W).
        y: (P, H, W).
        grey: (P,).
        taps: the window is the product of this and itself; K of them, with a sum of 1.
        weight: the part of each window that is inside the image, (H-K+1, W-K+1), if there is an outside: pixels where
            x = y = grey / 2. Local means are of that part, and it is the weight in the sum.

    Returns:
        (P,) float64.
    """
    (p, h, w), halo = x.shape, len(taps) - 1
    grey = grey.unsqueeze(1)
    # Planes lie flat, so that a shift in any direction is one contiguous stretch; the blur then runs on across the end
    # of a row, into columns that are dropped at the end.
    x, y = x.reshape(p, h * w), y.reshape(p, h * w)
    maps = x.new_zeros(4, p, h * w + halo)
    u, v = maps[0, :, : h * w], maps[1, :, : h * w]
    torch.add(x, y, out=u).sub_(grey)
    torch.sub(x, y, out=v)
    torch.mul(maps[:2], maps[:2], out=maps[2:])
    maps = _blur(_blur(maps, w, taps), 1, taps)  # m_u - grey, m_v, E[(u - grey)²], E[v²]: (4, P, (h - halo)*w)
    if weight is not None:
        maps.view(4, p, -1, w)[..., : w - halo].div_(weight)
    means, variances = maps[:2], maps[2:]
    variances.sub_(means.square())
    means[0].add_(grey)
    means.square_()
    means[0].add_(2 * _C1)
    variances[0].add_(2 * _C2)
    u, v = maps[::2], maps[1::2]  # (2, P, ...): of the means, of the variances
    luminance, structure = (u - v).div_(u.add_(v))
    values = luminance.mul_(structure).view(p, -1, w)[..., : w - halo]
    if weight is not None:
        values = values * weight
    return values.sum(dim=(1, 2), dtype=torch.float64)


def _blur(maps: Tensor, step: int, taps: list[float]) -> Tensor:
    """The window along elements `step` apart: (..., L) -> (..., L - (K-1)*step).

    One multiply-add per tap. Adding the pairs of equal weight first takes as many passes over the maps, and is no
    faster.
    """
    first, *others = maps.unfold(-1, maps.shape[-1] - (len(taps) - 1) * step, step).unbind(-2)
    result = first * taps[0]
    for shifted, tap in zip(others, taps[1:], strict=True):
        result.add_(shifted, alpha=tap)
    return result


def _pair(sr: Tensor, hr: Tensor) -> tuple[Tensor, Tensor]:
    """Both checked, in one dtype."""
    if sr.shape != hr.shape or sr.ndim != 4:
        raise InputError(f"sr {tuple(sr.shape)} and hr {tuple(hr.shape)} must have one shape, (N, C, H, W)")
    sr, hr = precise(sr), precise(hr)
    dtype = torch.promote_types(sr.dtype, hr.dtype)
    return sr.to(dtype), hr.to(dtype)


def precise(image: Tensor) -> Tensor:
    """In float32 or finer: half precision is for networks, not for measuring them."""
    check_float(image)
    return image.to(torch.promote_types(image.dtype, torch.float32))
