"""Fast summation of SSIM maps, for `metrics.psnr_ssim`.

The definition of SSIM and its slow, readable version are named there; nothing here changes the score.
"""

from functools import lru_cache

import torch
from torch import Tensor

C1, C2 = 0.01**2, 0.03**2  # (K1·L)², (K2·L)² for images in [0, 1]: L = 1
_STRIP = 1 << 16  # pixels processed at once on a CPU: four maps and their blur (2 MB in float32) fit into L2 and L3
_ROWS, _COLUMNS = 8, 16  # results of one row of a matrix product, see `_blur_by_products`


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
    grey, rows = grey[:, None, None], h - halo
    padding = -rows % _ROWS + 1  # rows of zeros, see `_blur`
    maps = x.new_empty(p, h + padding, 4, w)
    maps[:, h:].zero_()
    first, squares = maps[:, :h, :2], maps[:, :h, 2:]
    torch.add(x, y, out=first[:, :, 0]).sub_(grey)  # u
    torch.sub(x, y, out=first[:, :, 1])  # v
    torch.mul(first, first, out=squares)
    maps = _blur(maps, taps)[:, :rows]  # m_u - grey, m_v, E[(u - grey)²], E[v²]: (P, rows, 4, w)
    if weight is not None:
        maps[..., : w - halo].div_(weight[:, None])
    means, variances = maps[:, :, :2], maps[:, :, 2:]
    variances.sub_(means.square())
    means[:, :, 0].add_(grey)
    means.square_()
    means[:, :, 0].add_(2 * C1)
    variances[:, :, 0].add_(2 * C2)
    u, v = maps[:, :, ::2], maps[:, :, 1::2]  # (P, rows, 2, w): of the means, of the variances
    luminance, structure = (u - v).div_(u.add_(v)).unbind(2)
    values = luminance.mul_(structure)[..., : w - halo]
    if weight is not None:
        values = values * weight
    return values.sum(dim=(1, 2), dtype=torch.float64)


def _blur(maps: Tensor, taps: list[float]) -> Tensor:
    """Correlate rows and columns with the taps: (P, H, 4, W) -> (P, H - K, 4, W), H - K a multiple of `_ROWS`.

    Maps are flattened so that a shift in any direction is one contiguous slice. Shifts run across the ends of rows:
    the last K - 1 columns of the result are meaningless, and a row at the end of the maps is not used.
    """
    p, h, _, w = maps.shape
    rows = h - len(taps)
    if p == 1 and _products_are_exact(maps):
        blurred = _blur_by_products(maps[0].flatten(1), tuple(taps))
    else:
        blurred = _blur_by_slices(_blur_by_slices(maps.flatten(1), 4 * w, taps), 1, taps)
    return blurred.view(p, -1)[:, : rows * 4 * w].view(p, rows, 4, w)


def _blur_by_slices(maps: Tensor, step: int, taps: list[float]) -> Tensor:
    """Correlate with the taps along elements `step` apart: (..., L) -> (..., L - (K-1)*step).

    One multiply-add per tap. Adding pairs of equal weight first needs as many passes over the maps and is not faster.
    """
    first, *others = maps.unfold(-1, maps.shape[-1] - (len(taps) - 1) * step, step).unbind(-2)
    result = first * taps[0]
    for shifted, tap in zip(others, taps[1:], strict=True):
        result.add_(shifted, alpha=tap)
    return result


def _blur_by_products(maps: Tensor, taps: tuple[float, ...]) -> Tensor:
    """Correlate rows and columns with the taps: (H, L) -> ((H - K)*L,), overwriting the maps.

    The same sums in the same order as by slices, but as products of small banded matrices with overlapping blocks of
    the maps. On a CPU this is faster, because slices pass through the cache once per tap.
    """
    halo, (height, length) = len(taps) - 1, maps.shape
    size = (height - len(taps)) * length
    parts = -(-halo // _COLUMNS) + 1  # BLAS takes no overlapping rows: multiply every second, third, ... block at once
    blocks = -(-size // (parts * _COLUMNS))
    rows = maps.new_empty(blocks * parts * _COLUMNS + halo)
    rows[size:].zero_()
    overlapping = maps[:-1].unfold(0, _ROWS + halo, _ROWS).mT  # (n, 8 + halo, L)
    bands = _bands(taps, _ROWS).expand(len(overlapping), -1, -1)
    torch.bmm(bands, overlapping, out=rows[:size].view(-1, _ROWS, length))
    result = maps.view(-1)[: blocks * parts * _COLUMNS]
    for part in range(parts):
        overlapping = rows.as_strided((blocks, _COLUMNS + halo), (parts * _COLUMNS, 1), part * _COLUMNS)
        torch.mm(overlapping, _bands(taps, _COLUMNS).T, out=result.view(blocks, parts, _COLUMNS)[:, part])
    return result[:size]


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # the cached tensor must also work outside inference mode
def _bands(taps: tuple[float, ...], count: int) -> Tensor:
    """Matrix of `count` correlations, (count, count + K - 1) float32: the taps, one column further in each row."""
    return torch.stack([torch.tensor([*[0.0] * i, *taps, *[0.0] * (count - 1 - i)]) for i in range(count)])


def _products_are_exact(maps: Tensor) -> bool:
    """Return True for float32 on a CPU, unless torch may multiply float32 in bfloat16."""
    # pyright does not see `matmul`, which torch sets at run time
    precision = torch.backends.mkldnn.matmul.fp32_precision  # pyright: ignore[reportAttributeAccessIssue]
    return maps.device.type == "cpu" and maps.dtype == torch.float32 and precision in ("none", "ieee")
