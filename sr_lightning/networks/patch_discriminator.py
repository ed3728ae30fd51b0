"""PatchGAN: a discriminator of patches, for images of any size."""

from torch import Tensor, nn
from torch.nn.utils import parametrizations

from sr_lightning.errors import InputError
from sr_lightning.networks.layers import check_channels, discriminator_layer


class PatchDiscriminator(nn.Module):
    """Image-to-Image Translation with Conditional Adversarial Networks, Isola et al. 2017, section 6.1.2 (1611.07004).

    4x4 convolutions, `num_layers` with stride 2 and two with stride 1, with batch normalisation after all but the first
    and the last. Each logit rates a patch of 16, 34, 70 (the paper's choice), 142 or 286 pixels for 1 to 5 layers with
    stride 2. Initial weights are drawn from N(0, 0.02²), as in the paper; convolutions before batch normalisation have
    no bias, as in the authors' code. Unlike there, the discriminator sees only the image, not the generator's input.
    Internally, images are in [-1, 1].

    Args:
        num_features: Channels of the first convolution; they double with each next one, up to eight times.
        num_layers: Number of convolutions with stride 2.
        num_channels: 3 (RGB) or 1 (luma).
        spectral_norm: Divide each convolution's weights by their spectral norm (Miyato et al. 2018, arXiv 1802.05957)
            instead of batch normalisation, which would undo it. Not in the paper.

    Attributes:
        receptive_field: Side in pixels of the patch that a logit depends on.
        least: Minimum side of an image in pixels: 24 for the paper's three layers.

    Shapes: images (N, num_channels, H, W) in [0, 1] -> logits (N, 1, H', W'), float32, above 0 for real; H' is H
    divided by 2**num_layers, rounded down, minus 2.

    Raises:
        InputError: An argument is not supported, or an image is too small.

    Example:
        >>> import torch
        >>> PatchDiscriminator(num_features=8)(torch.rand(2, 3, 32, 24)).shape
        torch.Size([2, 1, 2, 1])
    """

    def __init__(
        self,
        *,
        num_features: int = 64,
        num_layers: int = 3,
        num_channels: int = 3,
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        check_channels(num_channels)
        if num_layers < 1:
            raise InputError(
                f"num_layers={num_layers}: PatchDiscriminator needs at least one convolution with stride 2"
            )
        self.num_channels = num_channels
        self.receptive_field = 9 * 2**num_layers - 2
        self.least = 3 * 2**num_layers
        layers: list[nn.Module] = []
        channels = num_channels
        for i in range(num_layers + 1):
            width = num_features * min(2**i, 8)
            batch_norm = i > 0 and not spectral_norm
            conv = _conv4(channels, width, stride=1 if i == num_layers else 2, bias=not batch_norm)
            layers += discriminator_layer(conv, batch_norm=batch_norm, spectral_norm=spectral_norm)
            channels = width
        last = _conv4(channels, 1)
        self.layers = nn.Sequential(*layers, parametrizations.spectral_norm(last) if spectral_norm else last)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if min(height, width) < self.least:
            raise InputError(
                f"PatchDiscriminator was given images of {height}x{width} and needs {self.least}x{self.least}: "
                "increase patch_size or decrease num_layers"
            )
        return self.layers(2 * images - 1).float()


def _conv4(in_channels: int, out_channels: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, 4, stride, padding=1, bias=bias)
    nn.init.normal_(conv.weight, std=0.02)
    return conv
