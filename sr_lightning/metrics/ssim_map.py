"""Fast summation of SSIM maps, for `metrics.psnr_ssim`.

The definition of SSIM and its slow, readable version are named there; nothing here changes the score.
"""

import torch
from torch import Tensor

C1, C2 = 0.01**2, 0.03**2  # (K1·L)², (K2·L)² for images in [0, 1]: L = 1
_STRIP = 1 << 16  # pixels processed at once on a CPU: four maps and their blur (2 MB in float32) fit into L2 and L3


def sum_ssim_map(sr: Tensor, hr: Tensor, grey: Tensor, taps: list[float], weight: Tensor | None = None) -> Tensor:
    """Sum the SSIM map of each plane, in strips that fit into a CPU's cache, or all at once on a GPU.

    Args:
        sr: (N, C, H, W) in [0, 1].
        hr: Same shape.
        grey: (N, C), any value near the mean of sr + hr; it reduces rounding errors (see `sum_ssim_strip`).
        taps: The K taps of the separable window, summing to 1.
        weight: Only for images padded by (K-1)/2 pixels with sr = hr = grey / 2: (H-K+1, W-K+1), the share of each
            window that lies inside the unpadded image. Local means are taken over that share, which is also the
            weight in the sum.

    Returns:
        (N, C) float64.
    """
    (n, c, height, width), halo = sr.shape, len(taps) - 1
    sr, hr, grey = sr.flatten(0, 1), hr.flatten(0, 1), grey.flatten()  # (N*C, H, W), (N*C,)
    planes, rows = (1, max(16, _STRIP // width)) if sr.device.type == "cpu" else (n * c, height)
    total = torch.zeros(n * c, dtype=torch.float64, device=sr.device)
    for first in range(0, n * c, planes):
        part = slice(first, first + planes)
        for top in range(0, height - halo, rows):
            strip = slice(top, top + rows + halo)
            inside = None if weight is None else weight[top : top + rows]
            total[part] += sum_ssim_strip(sr[part, strip], hr[part, strip], grey[part], taps, inside)
    return total.view(n, c)


def sum_ssim_strip(x: Tensor, y: Tensor, grey: Tensor, taps: list[float], weight: Tensor | None = None) -> Tensor:
    """Sum the SSIM map of each plane over all positions where the window fits.

    With u = x + y, v = x - y, their local means m and local variances s, the two factors of SSIM become
        (m_u² - m_v² + 2 C1) / (m_u² + m_v² + 2 C1)   and   (s_u - s_v + 2 C2) / (s_u + s_v + 2 C2).
    For similar images v is small, so that s_v = E[v²] - m_v² is accurate in float32. The error of s_u appears in both
    numerator and denominator and largely cancels; subtracting `grey` from u reduces the rest.

    Args:
        x: (P, H, W).
        y: Same shape.
        grey: (P,).
        taps: As in `sum_ssim_map`.
        weight: As in `sum_ssim_map`.

    Returns:
        (P,) float64.
    """
    (p, h, w), halo = x.shape, len(taps) - 1
    grey = grey.unsqueeze(1)
    # Planes are flattened so that a shift in any direction is one contiguous slice. The blur then runs across the ends
    # of rows, into columns that are dropped at the end.
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
    means[0].add_(2 * C1)
    variances[0].add_(2 * C2)
    u, v = maps[::2], maps[1::2]  # (2, P, ...): of the means, of the variances
    luminance, structure = (u - v).div_(u.add_(v))
    values = luminance.mul_(structure).view(p, -1, w)[..., : w - halo]
    if weight is not None:
        values = values * weight
    return values.sum(dim=(1, 2), dtype=torch.float64)


def _blur(maps: Tensor, step: int, taps: list[float]) -> Tensor:
    """Correlate with the taps along elements `step` apart: (..., L) -> (..., L - (K-1)*step).

    One multiply-add per tap. Adding pairs of equal weight first needs as many passes over the maps and is not faster.
    """
    first, *others = maps.unfold(-1, maps.shape[-1] - (len(taps) - 1) * step, step).unbind(-2)
    result = first * taps[0]
    for shifted, tap in zip(others, taps[1:], strict=True):
        result.add_(shifted, alpha=tap)
    return result
