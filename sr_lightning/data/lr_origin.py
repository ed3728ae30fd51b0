"""LR images and their HR: whether both show the same, and the program that made LR.

The exact method of a downscaling changes scores by tenths of a decibel, and half a pixel of displacement by several.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from sr_lightning.data.copies import SYMMETRIES, blur, details, turn
from sr_lightning.degradations import crop_to_multiple, downscale

MATLAB = ("MATLAB's bicubic", "MATLAB's bicubic with a replicated border")
SAME = 0.98  # least share of equal pixels of two LR images made in one way: rounding may differ in some
COMPARED = 256  # rows and columns of LR that are compared, at the top left: they have a border
MARGIN = 8  # further rows and columns of LR, so that these do not depend on the cut
REACH = 8  # LR pixels by which a displacement is sought
BETTER = 0.1  # correlation by which another place or orientation must exceed the expected one
UNLIKE = 0.3  # correlation below which two images show different things
FLAT = 0.1  # standard deviation in grey levels below which an image has no details
DISPLACED = 0.6  # HR pixels; a displacement is measured to a third of that


def origin(hr: np.ndarray, lr: np.ndarray, scale: int) -> str | None:
    """Find the way in which LR was made from HR: a key of WAYS, or None.

    Args:
        hr: (3, H, W) uint8.
        lr: (3, H // scale, W // scale) uint8.
        scale: The factor.
    """
    side = (COMPARED + MARGIN) * scale
    part = _cropped(hr[:, :side, :side], scale)
    # The last two rows and columns differ if LR was made from HR that is no multiple of the scale.
    height, width = (max(1, min(COMPARED, length - 2)) for length in lr.shape[1:])
    given = torch.from_numpy(np.ascontiguousarray(lr[:, :height, :width]))
    shares = {}
    for name, make in WAYS.items():
        made = make(part, scale)[:, :height, :width]
        shares[name] = (made == given).float().mean().item()
        if shares[name] == 1:
            return name
    best = max(shares, key=lambda name: shares[name])
    return best if shares[best] >= SAME else None


def mismatch(hr: np.ndarray, lr: np.ndarray, scale: int) -> str | None:
    """Describe the reason for which LR of unknown origin does not belong to HR; None if it does.

    Arguments as for `origin`. Two images without details belong together.
    """
    expected, given = downscale(_cropped(hr, scale), scale), torch.from_numpy(lr)
    inner = (slice(None), slice(2, -2), slice(2, -2))  # without the pixels that depend on the border
    if torch.equal(expected[inner], given[inner]):
        return None
    a, b = (_details(image) for image in (expected, given))
    contrasts = sorted(image.square().mean().sqrt().item() for image in (a, b))
    if contrasts[0] < FLAT:
        return "LR shows another picture than HR: one has no details" if contrasts[1] > 10 * FLAT else None
    found = {}
    for symmetry in SYMMETRIES:
        turned = turn(b, symmetry)
        if turned.shape == a.shape:
            found[symmetry] = _correlate(a, turned)
    usual = found[0][REACH, REACH].item()
    symmetry = max(found, key=lambda key: found[key].max().item())
    best = found[symmetry].max().item()
    if best > max(usual + BETTER, 2 * UNLIKE):
        if symmetry:
            return f"LR is HR flipped or rotated (correlation {best:.2f}, upright {usual:.2f})"
        row, column = divmod(int(found[0].argmax()), 2 * REACH + 1)
        shift = row - REACH, column - REACH
    elif usual < UNLIKE:
        return f"LR shows another picture than HR (correlation {usual:.2f})"
    else:
        shift = _displacement(a, b)
    rows, columns = (round(scale * part, 1) + 0.0 for part in shift)
    if max(abs(rows), abs(columns)) > DISPLACED:
        return f"LR is displaced by {rows:g} rows and {columns:g} columns of HR"
    return None


def _cropped(hr: np.ndarray, scale: int) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(crop_to_multiple(hr, scale)))


def _details(image: Tensor) -> Tensor:
    """Brightness (h, w) without noise and without coarse parts."""
    return details(blur(image.float().mean(0)[None, None]))[0, 0]


def _correlate(a: Tensor, b: Tensor) -> Tensor:
    """Correlation of a and b displaced by up to REACH pixels, (2 REACH + 1, 2 REACH + 1), the centre without shift."""
    size = [side + REACH for side in a.shape]
    products = torch.fft.irfft2(torch.fft.rfft2(b, s=size) * torch.fft.rfft2(a, s=size).conj(), s=size)
    window = products.roll((REACH, REACH), (0, 1))[: 2 * REACH + 1, : 2 * REACH + 1]
    return window / (a.norm() * b.norm())


def _displacement(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Displacement of b from a in pixels, below about one (Lucas and Kanade, 1981)."""
    gradients = torch.stack([step.flatten() for step in torch.gradient(a + b)], dim=1).double() / 2  # (h*w, 2)
    solution = torch.linalg.lstsq(gradients, (a - b).flatten().double()).solution
    return solution[0].item(), solution[1].item()


def _round(image: Tensor) -> Tensor:
    return (image + 0.5).floor().clamp(0, 255).byte()


def _pillow(kind: Image.Resampling) -> Callable[[Tensor, int], Tensor]:
    def make(hr: Tensor, scale: int) -> Tensor:
        image = Image.fromarray(hr.permute(1, 2, 0).contiguous().numpy())
        small = image.resize((image.width // scale, image.height // scale), kind)
        return torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1)

    return make


def _torch(antialias: bool) -> Callable[[Tensor, int], Tensor]:
    def make(hr: Tensor, scale: int) -> Tensor:
        size = [side // scale for side in hr.shape[-2:]]
        return _round(F.interpolate(hr[None].float(), size=size, mode="bicubic", antialias=antialias)[0])

    return make


# Ways to make LR, (hr, scale) -> lr. At whole scales OpenCV takes the same four pixels with the same weights as torch.
WAYS: Mapping[str, Callable[[Tensor, int], Tensor]] = {
    MATLAB[0]: downscale,
    MATLAB[1]: lambda hr, scale: downscale(hr, scale, "replicate"),
    "BasicSR's bicubic (MATLAB's in floating point)": lambda hr, scale: _round(downscale(hr.double(), scale)),
    "Pillow's bicubic": _pillow(Image.Resampling.BICUBIC),
    "torch's bicubic, antialiased": _torch(antialias=True),
    "OpenCV's INTER_CUBIC (or torch's bicubic, not antialiased)": _torch(antialias=False),
    "Pillow's bilinear": _pillow(Image.Resampling.BILINEAR),
    "Pillow's Lanczos": _pillow(Image.Resampling.LANCZOS),
    "OpenCV's INTER_AREA (the mean of each square)": _pillow(Image.Resampling.BOX),
    "the first pixel of each square": lambda hr, scale: hr[:, ::scale, ::scale],
}
