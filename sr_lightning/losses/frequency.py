"""L1 between Fourier transforms."""

import torch
from torch import Tensor, nn


class FrequencyL1(nn.Module):
    """Mean absolute difference between the real and imaginary parts of the images' 2-D Fourier transforms.

    The second loss of SAFMN, with weight 0.05 beside L1 (Sun et al. 2023, arXiv 2302.13800, and its code). The
    transforms of each channel have no factor, so that the loss grows with the side of a patch. Of the two equal halves
    of a real image's spectrum one counts, as torch.fft.rfft2 returns it.
    """

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Compute the loss of sr and hr (N, C, H, W) -> scalar."""
        return torch.view_as_real(torch.fft.rfft2((sr - hr).float())).abs().mean()
