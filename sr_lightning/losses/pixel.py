"""Pixel losses missing in torch, which has L1 and mean squared error."""

import torch
from torch import Tensor, nn

from sr_lightning.errors import InputError


class Charbonnier(nn.Module):
    """Mean of sqrt((sr - hr)² + eps²), a differentiable variant of L1.

    Deep Laplacian Pyramid Networks for Fast and Accurate Super-Resolution (LapSRN), Lai et al. 2017, section 3.3 (arXiv
    1704.03915). The paper sums over pixels; this is the mean.

    Args:
        eps: Differences below eps are penalised quadratically, in units of the images. The paper's 1e-3. Identical
            images have a loss of eps.

    Raises:
        InputError: eps is not above 0.
    """

    def __init__(self, eps: float = 1e-3) -> None:
        super().__init__()
        if not eps > 0:
            raise InputError(f"eps={eps}: Charbonnier needs eps above 0, such as 1e-3; for eps=0 use torch.nn.L1Loss")
        self.eps = eps

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        return ((sr - hr).square() + self.eps**2).sqrt().mean()


class TotalVariation(nn.Module):
    """Mean length of sr's image gradient over pixels and channels; penalises noise.

    Regulariser of SRGAN's VGG22 variant, with weight 2e-8 (Ledig et al. 2017, section 3.2, arXiv 1609.04802; its first
    version has the formula). Uses forward differences, which are 0 at the last row and column.
    """

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Compute the loss of sr (N, C, H, W) -> scalar; hr is not used."""
        down = torch.diff(sr, dim=-2, append=sr[..., -1:, :])
        right = torch.diff(sr, dim=-1, append=sr[..., -1:])
        return torch.linalg.vector_norm(torch.stack((down, right)), dim=0).mean()  # its gradient at 0 is 0
