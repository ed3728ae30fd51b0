"""PatchGAN: a discriminator that judges patches, whatever the image's size."""

from torch import Tensor, nn
from torch.nn.utils import parametrizations

from sr_lightning.errors import InputError
from sr_lightning.networks.layers import check_channels, leaky


class PatchDiscriminator(nn.Module):
    """Image-to-Image Translation with Conditional Adversarial Networks, Isola et al. 2017, section 6.1.2 (1611.07004).

    4x4 convolutions, `num_layers` of stride 2 and two of stride 1, with batch normalisation after all but the first and
    the last: each logit judges a patch of 16, 34, 70 (the paper's choice), 142 or 286 pixels for 1 to 5 layers of
    stride 2. Weights start from N(0, 0.02²) as in the paper; convolutions before batch normalisation have no bias as in
    the authors' code. It sees the image alone, not the input beside it. Inside, images are in [-1, 1].

    Args:
        num_features: Channels of the first convolution; each next has twice as many, up to eight times.
        num_layers: Convolutions of stride 2.
        num_channels: 3 (RGB) or 1 (luma).
        spectral_norm: Divide each convolution's weights by their spectral norm (Miyato et al. 2018, arXiv 1802.05957)
            in place of batch normalisation, which would undo it. Not in the paper.

    Attributes:
        receptive_field: Pixels on a side of the patch that a logit depends on.
        least: Pixels on a side that an image needs: 24 for the paper's three layers.

    Shapes: images (N, num_channels, H, W) in [0, 1] -> logits (N, 1, H', W'), float32, above 0 for real; H' is H
    divided by 2**num_layers, rounded down, less 2.

    Raises:
        InputError: An argument that is none of the above, or an image that is too small.
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
            raise InputError(f"num_layers={num_layers}: PatchDiscriminator needs at least one convolution of stride 2")
        self.num_channels = num_channels
        self.receptive_field = 9 * 2**num_layers - 2
        self.least = 3 * 2**num_layers
        layers: list[nn.Module] = []
        channels = num_channels
        for i in range(num_layers + 1):
            width = num_features * min(2**i, 8)
            batch_norm = i > 0 and not spectral_norm
            conv = _conv4(channels, width, stride=1 if i == num_layers else 2, bias=not batch_norm)
            layers += leaky(conv, batch_norm=batch_norm, spectral_norm=spectral_norm)
            channels = width
        last = _conv4(channels, 1)
        self.layers = nn.Sequential(*layers, parametrizations.spectral_norm(last) if spectral_norm else last)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if min(height, width) < self.least:
            raise InputError(
                f"PatchDiscriminator was given images of {height}x{width} and needs {self.least}x{self.least}: take a "
                "larger patch_size or a smaller num_layers"
            )
        return self.layers(2 * images - 1).float()


def _conv4(in_channels: int, out_channels: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, 4, stride, padding=1, bias=bias)
    nn.init.normal_(conv.weight, std=0.02)
    return conv
