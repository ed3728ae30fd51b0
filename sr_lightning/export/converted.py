"""A network behind the images that an exported file takes and returns."""

import torch
from torch import Tensor, nn

from sr_lightning.inference import to_channels, with_chroma
from sr_lightning.networks.bicubic import Bicubic


class Converted(nn.Module):
    """A network that takes and returns RGB images, or computes in float16.

    Args:
        network: Has `scale`, `num_channels` and `receptive_radius`. With `half` its weights are rounded, in place.
        rgb: Convert RGB images to luma for a luma network, and add the bicubically upscaled chroma to its output.
        half: Compute in float16, colours in float32.

    Attributes:
        dtype: Of the images.

    Shapes: lr (N, C, h, w) -> sr (N, C, h*scale, w*scale), both of `dtype`; C is 3 if `rgb`, else that of the network.
    """

    def __init__(self, network: nn.Module, *, rgb: bool = False, half: bool = False) -> None:
        super().__init__()
        self.network = network.half() if half else network
        self.dtype = torch.float16 if half else torch.float32
        self.scale, self.num_channels = network.scale, 3 if rgb else network.num_channels
        radius = network.receptive_radius
        self.receptive_radius = radius if radius is None else max(radius, 2)  # bicubic's is 2
        # Its own: the one that all calls share would be built while this is traced, and have no values afterwards.
        self.bicubic = Bicubic(scale=network.scale) if self.num_channels != network.num_channels else None

    def forward(self, lr: Tensor) -> Tensor:
        lr = lr.float()
        sr = self.network(to_channels(lr, self.network.num_channels).to(self.dtype)).float()
        sr = sr if self.bicubic is None else with_chroma(sr, lr, self.scale, self.bicubic)
        return sr.to(self.dtype)
