"""Images of any channel count through networks of any channel count: the one place where chroma is handled."""

import torch
from torch import Tensor, nn

from sr_lightning.color import rgb_to_y, rgb_to_ycbcr, ycbcr_to_rgb
from sr_lightning.networks.bicubic import Bicubic


def to_channels(image: Tensor, num_channels: int) -> Tensor:
    """An image as a network of `num_channels` takes it: RGB to BT.601 luma, gray repeated to RGB.

    Args:
        image: (N, 1 or 3, H, W) in [0, 1].
        num_channels: 1 or 3.

    Returns:
        (N, num_channels, H, W); one-channel images are luma as they are.
    """
    if image.shape[1] == num_channels:
        return image
    return rgb_to_y(image) if num_channels == 1 else image.expand(-1, num_channels, -1, -1)


def with_chroma(sr_luma: Tensor, lr: Tensor, scale: int) -> Tensor:
    """The colour image of a luma prediction: chroma is enlarged bicubically.

    Args:
        sr_luma: (N, 1, h*scale, w*scale) luma in [0, 1].
        lr: (N, 3, h, w) the RGB image it was made from.
        scale: The factor.

    Returns:
        (N, 3, h*scale, w*scale) RGB, unclamped.
    """
    ycbcr = Bicubic(scale=scale).to(lr.device)(rgb_to_ycbcr(lr))
    ycbcr[:, :1] = sr_luma
    return ycbcr_to_rgb(ycbcr)


def super_resolve(network: nn.Module, lr: Tensor) -> Tensor:
    """Enlarge images of one or three channels with any network.

    Args:
        network: Has `scale` and `num_channels` (1: luma, 3: RGB).
        lr: (N, 1 or 3, h, w) in [0, 1].

    Returns:
        (N, 1 or 3, h*scale, w*scale), channels as in `lr`, unclamped.
    """
    sr = network(to_channels(lr, network.num_channels))
    if sr.shape[1] == lr.shape[1]:
        return sr
    if network.num_channels == 1:
        return with_chroma(sr, lr, network.scale)
    return sr.mean(dim=1, keepdim=True)


class SelfEnsemble(nn.Module):
    """Any network on the eight flips and rotations of an image, turned back and averaged: the papers' "+".

    EDSR's section 3.3 (arXiv 1707.02921) after Timofte et al. 2016. Each kind is enlarged on its own, so memory grows
    by one image, and time eightfold. Only for degradations that commute with flips and rotations, as bicubic does.

    Args:
        network: Has `scale` and `num_channels`.

    Shapes: as the network's; sr is float32.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.scale, self.num_channels = network.scale, network.num_channels
        self.receptive_radius = network.receptive_radius

    def forward(self, lr: Tensor) -> Tensor:
        total: Tensor | float = 0.0
        for flipped in (False, True):
            for turns in range(4):
                x = torch.rot90(lr.flip(-1) if flipped else lr, turns, (-2, -1))  # (N, C, h, w) or (N, C, w, h)
                sr = torch.rot90(self.network(x.contiguous()).float(), -turns, (-2, -1))
                total += sr.flip(-1) if flipped else sr
        return total / 8

    def for_inference(self) -> "SelfEnsemble":
        """A copy around the network's inference form."""
        return SelfEnsemble(inference_form(self.network))


def inference_form(network: nn.Module) -> nn.Module:
    """What computes the same in less time (weight normalisation folded, deconvolution rewritten), or the network."""
    return network.for_inference() if hasattr(network, "for_inference") else network
