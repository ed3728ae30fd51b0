"""The discriminator of Real-ESRGAN: a U-Net that rates each pixel."""

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn import utils

from sr_lightning.errors import InputError
from sr_lightning.networks.layers import check_channels


class UNetDiscriminator(nn.Module):
    """UNetDiscriminatorSN of Real-ESRGAN, Wang et al. 2021, section 3.3 (arXiv 2107.10833).

    Three convolutions with stride 2, three bilinear enlargements with skip connections, and spectral normalisation
    (Miyato et al. 2018, arXiv 1802.05957) of all but the first and the last convolution. The names of the weights are
    the published ones. Initial weights are PyTorch's default, as in the authors' code
    (github.com/xinntao/Real-ESRGAN).

    Args:
        num_features: Channels of the first convolution; they double with each of the next three.
        num_channels: 3 (RGB) or 1 (luma).
        spectral_norm: False leaves the normalisation out, unlike the paper.
        crop_size: Side of the images, to check it early; None: any multiple of 8.

    Shapes: images (N, num_channels, H, W) in [0, 1], H and W multiples of 8 -> logits (N, 1, H, W), float32, above 0
    for real.

    Raises:
        InputError: An argument is not supported, or an image has another size.

    Example:
        >>> import torch
        >>> UNetDiscriminator(num_features=4)(torch.rand(2, 3, 32, 24)).shape
        torch.Size([2, 1, 32, 24])
    """

    def __init__(
        self,
        *,
        num_features: int = 64,
        num_channels: int = 3,
        spectral_norm: bool = True,
        crop_size: int | None = None,
    ) -> None:
        super().__init__()
        check_channels(num_channels)
        if crop_size is not None:
            _check_size(crop_size, crop_size)
        self.num_channels = num_channels
        n, norm = num_features, _spectral_norm if spectral_norm else nn.Identity()
        self.conv0 = nn.Conv2d(num_channels, n, 3, padding=1)
        self.conv1, self.conv2, self.conv3 = (
            norm(nn.Conv2d(k * n, 2 * k * n, 4, stride=2, padding=1, bias=False)) for k in (1, 2, 4)
        )
        self.conv4, self.conv5, self.conv6, self.conv7, self.conv8 = (
            norm(nn.Conv2d(a * n, b * n, 3, padding=1, bias=False)) for a, b in ((8, 4), (4, 2), (2, 1), (1, 1), (1, 1))
        )
        self.conv9 = nn.Conv2d(n, 1, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        _check_size(*images.shape[-2:])
        skips, x = [], _activation(self.conv0(images))
        for conv in (self.conv1, self.conv2, self.conv3):
            skips.append(x)
            x = _activation(conv(x))  # (N, C, h, w) -> (N, 2C, h/2, w/2)
        for conv in (self.conv4, self.conv5, self.conv6):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = _activation(conv(x)) + skips.pop()  # (N, 2C, h/2, w/2) -> (N, C, h, w)
        return self.conv9(_activation(self.conv8(_activation(self.conv7(x))))).float()


def _spectral_norm(conv: nn.Conv2d) -> nn.Conv2d:
    """Normalise by torch's older function: the published names of weights are its own, and its initial vectors differ.

    It leaves the weight of the latest forward pass in the layer; without its graph, the layer can be copied.
    """
    conv = utils.spectral_norm(conv)
    conv.register_forward_hook(_detach_weight)
    return conv


def _detach_weight(conv: nn.Conv2d, inputs: object, output: object) -> None:
    conv.weight = conv.weight.detach()


def _check_size(height: int, width: int) -> None:
    if height % 8 or width % 8:
        raise InputError(
            f"UNetDiscriminator was given images of {height}x{width}, which are no multiples of 8: choose another "
            "data.patch_size, such as 24 or 48"
        )


def _activation(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)
