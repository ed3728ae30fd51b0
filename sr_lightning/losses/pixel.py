"""Losses of pixels; L1 and mean squared error are torch's."""

import torch
from torch import Tensor, nn

from sr_lightning.errors import InputError


class Charbonnier(nn.Module):
    """Mean of sqrt((sr - hr)² + eps²): L1 whose corner is round.

    Deep Laplacian Pyramid Networks for Fast and Accurate Super-Resolution (LapSRN), Lai et al. 2017, section 3.3 (arXiv
    1704.03915); the sum over pixels there is a mean here.

    Args:
        eps: Where the corner ends, in units of the images; the paper's 1e-3. Identical images score eps.

    Raises:
        InputError: `eps` is not above 0.
    """

    def __init__(self, eps: float = 1e-3) -> None:
        super().__init__()
        if not eps > 0:
            raise InputError(f"eps={eps}: Charbonnier's is above 0, such as 1e-3; without it, it is torch.nn.L1Loss")
        self.eps = eps

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        return ((sr - hr).square() + self.eps**2).sqrt().mean()


class TotalVariation(nn.Module):
    """Mean over pixels and channels of the length of sr's gradient: what is not smooth costs.

    The regulariser of SRGAN's VGG22 variant, there with weight 2e-8 (Ledig et al. 2017, section 3.2, arXiv 1609.04802;
    its first version has the formula). Differences are forward ones, and 0 beyond the last row and column.
    """

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Sr (N, C, H, W) -> scalar; hr is not looked at."""
        down = torch.diff(sr, dim=-2, append=sr[..., -1:, :])
        right = torch.diff(sr, dim=-1, append=sr[..., -1:])
        return torch.linalg.vector_norm(torch.stack((down, right)), dim=0).mean()  # its slope at 0 is 0
