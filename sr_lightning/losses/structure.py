"""Losses of structures rather than single pixels: MS-SSIM and the artifact map of LDL."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_lightning.errors import InputError

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, section 3.2
WINDOW, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2


class MSSSIM(nn.Module):
    """1 - MS-SSIM: Multi-scale structural similarity for image quality assessment, Wang, Simoncelli, Bovik 2003.

    https://ieeexplore.ieee.org/document/1292216

    The contrast and structure of each scale, and the luminance of the coarsest, are means over windows of 11x11 with a
    Gaussian of 1.5 pixels, inside the image only; each scale has half the side of the previous one. As a loss: Zhao et
    al. 2017 (arXiv 1511.08861).

    Args:
        weights: Exponents of the scales, finest first. The paper's five need images of 176 pixels a side; fewer scales
            need 88 (four), 44 (three), 22 (two) or 11.

    Shapes: sr, hr (N, C, H, W) in [0, 1] -> scalar, float32.

    Raises:
        InputError: No weight or one that is not above 0, or images that are too small.
    """

    gaussian: Tensor

    def __init__(self, weights: Sequence[float] = MS_SSIM_WEIGHTS) -> None:
        super().__init__()
        if not weights or min(weights) <= 0:
            raise InputError(f"MSSSIM: weights={list(weights)}: give a number above 0 for each scale")
        self.weights = tuple(weights)
        distance = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
        gaussian = torch.exp(-(distance**2) / (2 * SIGMA**2))
        self.register_buffer("gaussian", (gaussian / gaussian.sum()).float(), persistent=False)

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        least = WINDOW * 2 ** (len(self.weights) - 1)
        if min(sr.shape[-2:]) < least:
            raise InputError(
                f"MSSSIM was given images of {sr.shape[-2]}x{sr.shape[-1]}, its {len(self.weights)} scales need "
                f"{least}x{least}: use larger patches, or fewer weights"
            )
        with torch.autocast(sr.device.type, enabled=False):
            sr, hr = sr.float(), hr.float()
            result = torch.ones((), device=sr.device)
            for scale, weight in enumerate(self.weights):
                luminance, contrast = self._means(sr, hr)
                last = scale == len(self.weights) - 1
                # The power of a number below 1 has an infinite gradient at 0.
                result = result * (luminance if last else contrast).clamp(min=1e-6) ** weight
                sr, hr = F.avg_pool2d(sr, 2), F.avg_pool2d(hr, 2)
        return 1 - result.mean()

    def _means(self, sr: Tensor, hr: Tensor) -> tuple[Tensor, Tensor]:
        """Return the means over windows and channels of SSIM and of its contrast and structure, (N,) each."""
        count = sr.shape[1]
        rows = self.gaussian.view(1, 1, -1, 1).expand(5 * count, 1, -1, 1)
        images = torch.cat((sr, hr, sr * sr, hr * hr, sr * hr), dim=1)
        blurred = F.conv2d(F.conv2d(images, rows, groups=5 * count), rows.transpose(2, 3), groups=5 * count)
        sr_mean, hr_mean, sr_square, hr_square, product = blurred.chunk(5, dim=1)
        contrast = (2 * (product - sr_mean * hr_mean) + C2) / (sr_square - sr_mean**2 + hr_square - hr_mean**2 + C2)
        luminance = (2 * sr_mean * hr_mean + C1) / (sr_mean**2 + hr_mean**2 + C1)
        return (luminance * contrast).mean((1, 2, 3)), contrast.mean((1, 2, 3))


class LDL(nn.Module):
    """L1 weighted by a map of likely artifacts: Details or Artifacts, Liang, Zeng, Zhang 2022 (arXiv 2203.09195).

    The weight of a pixel is the variance of the error in the window around it, times the fifth root of the variance
    over the image (equations 2 to 4). The map is a constant for the gradient.

    Args:
        window: Side of the window in pixels, odd; the paper's 7.
        refined: Set the weight to 0 where sr is closer to hr than the SR of a moving average of the network is
            (equation 5), as in the paper. It costs a forward pass per step.

    Attributes:
        needs_average: True if the loss takes that SR as a third argument; None: no refinement.

    Shapes: sr, hr, averaged (N, C, H, W) in [0, 1] -> scalar.

    Raises:
        InputError: The window is even or below 3.
    """

    def __init__(self, window: int = 7, refined: bool = False) -> None:
        super().__init__()
        if window < 3 or window % 2 == 0:
            raise InputError(f"LDL: window={window}: give an odd number of pixels of at least 3")
        self.window, self.needs_average = window, refined

    def forward(self, sr: Tensor, hr: Tensor, averaged: Tensor | None = None) -> Tensor:
        return (self.artifact_map(sr, hr, averaged) * (sr - hr)).abs().mean()

    @torch.no_grad()
    def artifact_map(self, sr: Tensor, hr: Tensor, averaged: Tensor | None = None) -> Tensor:
        """Compute the weights (N, 1, H, W) of sr, hr and averaged (N, C, H, W)."""
        error = (hr - sr).abs().sum(dim=1, keepdim=True)
        padded = F.pad(error, [self.window // 2] * 4, mode="reflect")
        windows = padded.unfold(2, self.window, 1).unfold(3, self.window, 1)  # (N, 1, H, W, window, window)
        weight = error.var((1, 2, 3), keepdim=True) ** 0.2 * windows.var((-2, -1))
        return weight if averaged is None else weight * (error >= (hr - averaged).abs().sum(dim=1, keepdim=True))
