"""Distances between features of networks trained on photos: LPIPS, DISTS, and FID of a whole set."""

import logging
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sr_lightning.color import quantize
from sr_lightning.errors import InputError
from sr_lightning.inference import to_channels, with_chroma
from sr_lightning.metrics.protocol import Protocol
from sr_lightning.utils.download import download
from sr_lightning.utils.tensor_files import load_tensors
from sr_lightning.utils.timings import cache_dir

if TYPE_CHECKING:
    from sr_lightning.metrics.dists import DISTS
    from sr_lightning.metrics.inception import InceptionV3

log = logging.getLogger(__name__)

LPIPS_MIN_SIDE = 31  # pixels, required by the strides of AlexNet
FID_MIN_IMAGES = 2  # a covariance needs two


@dataclass(frozen=True)
class PublishedWeights:
    """Weights of a network that a measure needs, downloaded once into the folder of `cache_dir`.

    Attributes:
        measure: The measure.
        url: The file.
        sha256: Its digest.
        size: Its length in bytes.
    """

    measure: str
    url: str
    sha256: str
    size: int

    def load(self) -> dict[str, Tensor]:
        """Return the weights by their published names.

        Raises:
            InputError: They are not there and cannot be downloaded, or the file is another one.
        """
        path = cache_dir() / self.url.rpartition("/")[2]
        try:
            return load_tensors(download(self.url, path, self.sha256, size=self.size))
        except InputError as error:
            raise InputError(f"{self.measure} needs weights, or leave it out of measures: {error}") from error


VGG16 = PublishedWeights(  # of torchvision, IMAGENET1K_V1; nine tenths belong to the classifier, which is not used
    "dists",
    "https://download.pytorch.org/models/vgg16-397923af.pth",
    "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    553433881,
)
INCEPTION = PublishedWeights(
    "fid",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    95628359,
)


def as_seen(sr: Tensor, lr: Tensor, hr: Tensor, scale: int, protocol: Protocol) -> tuple[Tensor, Tensor]:
    """Return SR and HR as RGB rounded to 8 bits, with the border shaved, whatever the protocol's channel.

    Luma predictions get bicubic chroma, gray images three equal channels.

    Args:
        sr: Prediction, nominally in [0, 1], (N, C, h*scale, w*scale), C 1 (BT.601 luma) or 3.
        lr: Input of the network in [0, 1], (N, C', h, w).
        hr: Ground truth in [0, 1], (N, C', h*scale, w*scale).
        scale: Super-resolution factor.
        protocol: Only its border is used.

    Returns:
        Both (N, 3, h*scale - 2*border, w*scale - 2*border) in [0, 1].
    """
    border = protocol.border_for(scale)
    height, width = (side - border for side in hr.shape[2:])
    sr = with_chroma(sr, lr, scale) if sr.shape[1] < lr.shape[1] else sr
    first, second = (quantize(to_channels(image, 3).float()[..., border:height, border:width]) for image in (sr, hr))
    return first, second


def lpips(sr: Tensor, lr: Tensor, hr: Tensor, scale: int, protocol: Protocol) -> Tensor:
    """LPIPS (Zhang et al. 2018) with AlexNet, a learned perceptual distance, of images `as_seen`.

    0 for equal images; below 0.1 they are hard to tell apart.

    Args:
        sr: As of `as_seen`, and so are the others.
        lr: Input of the network.
        hr: Ground truth.
        scale: Super-resolution factor.
        protocol: Only its border is used.

    Returns:
        (N,), float64.

    Raises:
        InputError: An image is too small for AlexNet.
        RuntimeError: torchvision or AlexNet's weights are missing; `select_measures` leaves LPIPS out then.
    """
    border = protocol.border_for(scale)
    height, width = (side - 2 * border for side in hr.shape[2:])
    if min(height, width) < LPIPS_MIN_SIDE:
        raise InputError(
            f"lpips needs {LPIPS_MIN_SIDE} x {LPIPS_MIN_SIDE} pixels, there are {height} x {width} after shaving "
            f"{border} per side: leave lpips out of measures"
        )
    sr, hr = as_seen(sr, lr, hr, scale, protocol)
    network = lpips_network()
    if network is None:
        raise RuntimeError("LPIPS is not available: install torchvision and let it download AlexNet's weights")
    network = network.to(sr.device)
    return torch.stack([network(a[None], b[None]) for a, b in zip(sr, hr, strict=True)]).double()


@cache
def lpips_network() -> nn.Module | None:
    """Return torchmetrics' LPIPS: (1, 3, H, W), (1, 3, H, W) in [0, 1] -> ().

    None, with a warning, if torchvision or AlexNet's weights are not available.
    """
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    try:
        return LearnedPerceptualImagePatchSimilarity("alex", normalize=True).eval()
    except (ImportError, RuntimeError, OSError) as error:  # torchvision missing or for another torch; no download
        log.warning(
            "lpips is left out: it needs the torchvision of torch %s (pip install torchvision) and AlexNet's weights, "
            "which torchvision downloads once. Error: %s",
            torch.__version__,
            str(error).splitlines()[0],
        )
        return None


def dists(sr: Tensor, lr: Tensor, hr: Tensor, scale: int, protocol: Protocol) -> Tensor:
    """DISTS (Ding et al. 2020), a distance of structure and texture in VGG16's features, of images `as_seen`.

    0 for equal images; it tolerates another sample of the same texture. Images keep their size.

    Args:
        sr: As of `as_seen`, and so are the others.
        lr: Input of the network.
        hr: Ground truth.
        scale: Super-resolution factor.
        protocol: Only its border is used.

    Returns:
        (N,), float64.

    Raises:
        InputError: As of `PublishedWeights.load`.
    """
    return dists_network().to(sr.device)(*as_seen(sr, lr, hr, scale, protocol)).double().view(len(sr))


@cache
def dists_network() -> "DISTS":
    """Return DISTS with the published weights.

    Raises:
        InputError: As of `PublishedWeights.load`.
    """
    from sr_lightning.metrics.dists import DISTS

    return DISTS(VGG16.load())


class FID:
    """Fréchet Inception distance (Heusel et al. 2017, arXiv 1706.08500) of a set's SR from its HR, by torchmetrics.

    The squared distance of two normal distributions of Inception v3's features, those of all SR and of all HR images
    `as_seen`, each resized to 299x299. 0 for equal sets. It falls with the number of images: compare it only between
    networks on one set.

    Raises:
        InputError: As of `PublishedWeights.load`.
    """

    def __init__(self) -> None:
        from torchmetrics.image.fid import FrechetInceptionDistance

        self.distance = FrechetInceptionDistance(inception())

    @torch.inference_mode()
    def update(self, sr: Tensor, lr: Tensor, hr: Tensor, scale: int, protocol: Protocol) -> None:
        """Add images; arguments as of `as_seen`."""
        distance = self.distance.to(sr.device)
        for image, real in zip(as_seen(sr, lr, hr, scale, protocol), (False, True), strict=True):
            distance.update(image.mul(255).round().byte(), real=real)

    def compute(self) -> float:
        """Return the distance of all images added, of which there must be `FID_MIN_IMAGES`."""
        return self.distance.compute().item()


@cache
def inception() -> "InceptionV3":
    """Return the network of FID with the published weights.

    Raises:
        InputError: As of `PublishedWeights.load`.
    """
    from sr_lightning.metrics.inception import InceptionV3

    with torch.device("meta"):
        network = InceptionV3()
    weights = INCEPTION.load()
    network.load_state_dict({name: weights[name] for name in network.state_dict()}, assign=True)
    return network.eval().requires_grad_(False)
