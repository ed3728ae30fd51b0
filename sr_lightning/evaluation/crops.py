"""Places of an image where models gain and lose most against bicubic."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from sr_lightning.color import rgb_to_y

BASELINE = "bicubic"
CROP_SIDE = 48  # HR pixels: side of a place
CROPS_PER_KIND = 2  # gains, and losses, of each model and image


@dataclass(frozen=True)
class Crop:
    """A place where a model gains or loses against bicubic.

    Attributes:
        model: Name of the model.
        top: First row, in HR pixels.
        left: First column, in HR pixels.
        size: Side, in HR pixels.
        gain: Mean squared luma error of bicubic minus that of the model, in squared grey levels; negative: a loss.
        psnr: PSNR of the model on luma of this place, in dB.
        bicubic: PSNR of bicubic on luma of this place, in dB.
    """

    model: str
    top: int
    left: int
    size: int
    gain: float
    psnr: float
    bicubic: float


def find_crops(
    models: Mapping[str, np.ndarray],
    hr: np.ndarray,
    border: int = 0,
    size: int = CROP_SIDE,
    count: int = CROPS_PER_KIND,
) -> tuple[Crop, ...]:
    """Find the places where models gain and lose most against bicubic, by squared luma error.

    Args:
        models: Name -> uint8 (1 or 3, H, W). Without "bicubic" no place is found.
        hr: uint8 (1 or 3, H, W).
        border: Pixels left out on each side.
        size: Side of a place in pixels, reduced to that of a smaller image.
        count: Largest number of gains, and of losses, of each model. Gains do not overlap, nor do losses.

    Returns:
        For each model but bicubic: its gains, largest first, then its losses, largest first.
    """
    if BASELINE not in models:
        return ()
    height, width = hr.shape[-2:]
    border = min(border, (min(height, width) - 1) // 2)  # at least one pixel remains
    inside = np.s_[..., border : height - border, border : width - border]
    truth = _luma(hr[inside])
    size = min(size, *truth.shape)
    baseline = (_luma(models[BASELINE][inside]) - truth) ** 2  # (H, W)
    crops = []
    for name, picture in models.items():
        if name == BASELINE:
            continue
        error = (_luma(picture[inside]) - truth) ** 2
        gain = window_means(baseline - error, size)
        for sign in (1, -1):
            for top, left in largest_apart(sign * gain, size, count):
                window = np.s_[top : top + size, left : left + size]
                psnrs = (_psnr(error[window].mean()), _psnr(baseline[window].mean()))
                crops.append(Crop(name, top + border, left + border, size, float(gain[top, left]), *psnrs))
    return tuple(crops)


def _luma(picture: np.ndarray) -> np.ndarray:
    """Convert uint8 (1 or 3, H, W) to luma, float64 (H, W) in grey levels; one channel is luma already."""
    if len(picture) == 1:
        return picture[0].astype(np.float64)
    return 255 * rgb_to_y(torch.tensor(picture, dtype=torch.float64) / 255)[0].numpy()


def _psnr(squared_error: float) -> float:
    return 10 * math.log10(255**2 / squared_error) if squared_error > 0 else math.inf


def window_means(values: np.ndarray, size: int) -> np.ndarray:
    """Average all size x size windows, at their top left corners: (H, W) -> (H - size + 1, W - size + 1)."""
    total = np.pad(values, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    return (total[size:, size:] - total[:-size, size:] - total[size:, :-size] + total[:-size, :-size]) / size**2


def largest_apart(values: np.ndarray, size: int, count: int) -> list[tuple[int, int]]:
    """Find the largest positive values, no two of them less than `size` apart in both directions.

    Args:
        values: (H, W).
        size: Distance in elements.
        count: Largest number of values.

    Returns:
        (row, column), the largest first.
    """
    values = values.copy()
    places = []
    for _ in range(count):
        row, column = (int(i) for i in np.unravel_index(values.argmax(), values.shape))
        if values[row, column] <= 1e-6:  # equal errors differ by rounding
            break
        places.append((row, column))
        values[max(row - size + 1, 0) : row + size, max(column - size + 1, 0) : column + size] = -math.inf
    return places
