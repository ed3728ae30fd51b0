"""SRGAN's discriminator, for images of a fixed size."""

from torch import Tensor, nn
from torch.nn.utils import parametrizations

from sr_lightning.errors import InputError
from sr_lightning.networks.layers import check_channels, discriminator_layer


class SRGANDiscriminator(nn.Module):
    """Photo-Realistic Single Image Super-Resolution Using a GAN, Ledig et al. 2017, figure 4 (arXiv 1609.04802).

    Eight 3x3 convolutions, every second with stride 2, with batch normalisation after all but the first, then two dense
    layers, the first of which fixes the size of the images. 23,565,505 parameters for the paper's crops of 96 pixels.
    All convolutions have biases. The paper's sigmoid is part of the loss here. Initial weights are PyTorch's default.
    Internally, images are in [-1, 1].

    Args:
        crop_size: Height and width of the images in pixels, above 16: patch_size * scale.
        num_features: Channels of the first convolution; the last has eight times as many.
        num_hidden: Width of the first dense layer.
        num_channels: 3 (RGB, as in the paper) or 1 (luma).
        spectral_norm: Divide each layer's weights by their spectral norm (Miyato et al. 2018, arXiv 1802.05957) instead
            of batch normalisation, which would undo it. Not in the paper.

    Shapes: images (N, num_channels, crop_size, crop_size) in [0, 1] -> logits (N, 1), float32, above 0 for real.

    Raises:
        InputError: An argument or the size of an image is not supported.

    Example:
        >>> import torch
        >>> SRGANDiscriminator(crop_size=32, num_features=8, num_hidden=16)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 1])
    """

    def __init__(
        self,
        *,
        crop_size: int,
        num_features: int = 64,
        num_hidden: int = 1024,
        num_channels: int = 3,
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        check_channels(num_channels)
        if crop_size <= 16:  # the last map would have one pixel, too few for batch normalisation of one image
            raise InputError(f"crop_size={crop_size}: SRGANDiscriminator halves images four times; give more than 16")
        self.crop_size, self.num_channels = crop_size, num_channels
        layers: list[nn.Module] = []
        channels = num_channels
        for i in range(8):
            width = num_features * 2 ** (i // 2)
            conv = nn.Conv2d(channels, width, 3, stride=1 + i % 2, padding=1)
            layers += discriminator_layer(conv, batch_norm=i > 0, spectral_norm=spectral_norm)
            channels = width
        side = -(-crop_size // 16)
        dense = nn.Linear(channels * side * side, num_hidden)
        last = nn.Linear(num_hidden, 1)
        self.layers = nn.Sequential(
            *layers,
            nn.Flatten(),
            *discriminator_layer(dense, batch_norm=False, spectral_norm=spectral_norm),
            parametrizations.spectral_norm(last) if spectral_norm else last,
        )

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if (height, width) != (self.crop_size, self.crop_size):
            raise InputError(
                f"SRGANDiscriminator with crop_size={self.crop_size} was given images of {height}x{width}: "
                "crop_size must be patch_size * scale"
            )
        return self.layers(2 * images - 1).float()  # (N, C, H, W) -> (N, 8F, H/16, W/16) -> (N, 1)
