"""Unsharp masking, by which Real-ESRGAN sharpens HR: Wang et al. 2021 (arXiv 2107.10833), and its code."""

from functools import lru_cache

import torch
from torch import Tensor

from sr_lightning.degradations.blur import mirrored
from sr_lightning.degradations.padded_batch import TIE, to_levels

REACH = 25  # pixels of the Gaussian to each side: the published radius, 50, is the width of its window
SIGMA = 8.0  # pixels, which OpenCV derives from that width
THRESHOLD = 10  # of 255: least difference from the blurred image that is amplified


def sharpen(images: Tensor, weight: float) -> Tensor:
    """Amplify the differences from the blurred image where they are large, without noise in flat regions.

    The mask of large differences is blurred as well. All is computed in float64 and rounded to 8 bits, so that the
    result does not depend on device and batch size. Borders are mirrored without repeating the edge pixel.

    Args:
        images: (N, C, H, W) float32 in [0, 1].
        weight: Of the differences that are added; Real-ESRGAN's is 0.5.

    Returns:
        (N, C, H, W) float32, multiples of 1/255.

    Example:
        >>> edge = torch.tensor([0.25, 0.75]).repeat_interleave(32).expand(1, 1, 64, 64)
        >>> sharpen(edge, weight=0.5)[0, 0, 0, [0, 31, 32, 63]].mul(255).int().tolist()
        [64, 39, 216, 191]
    """
    before = images.double()
    rows, columns = (_gaussian(side, images.device) for side in images.shape[-2:])
    difference = before - rows @ before @ columns.mT
    large = (difference.abs() * 255 > THRESHOLD + TIE).double()
    sharp = (before + weight * difference).clamp_(0, 1)
    return to_levels(torch.lerp(before, sharp, rows @ large @ columns.mT)).float().mul_(1 / 255)


@lru_cache
def _gaussian(side: int, device: torch.device) -> Tensor:
    """Matrix (side, side) that blurs columns of this length."""
    distance = torch.arange(-REACH, REACH + 1)
    tap = torch.exp(-(distance.double() ** 2) / (2 * SIGMA**2))
    index = mirrored((torch.arange(side)[:, None] + distance).flatten(), torch.tensor([[side - 1]]))
    matrix = torch.zeros(side, side, dtype=torch.float64)
    matrix.scatter_add_(1, index.view(side, -1), (tap / tap.sum()).expand(side, -1))
    return matrix.to(device)
