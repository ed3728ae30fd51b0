"""Perceptual loss: distance between VGG19 features of images."""

import logging
import operator
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sr_lightning.errors import InputError
from sr_lightning.losses.weighted_sum import used_weights
from sr_lightning.utils.download import download
from sr_lightning.utils.tensor_files import load_tensors

log = logging.getLogger(__name__)

# Weights of torchvision's vgg19, IMAGENET1K_V1. 494 of the 575 MB belong to the classifier, which is not used.
URL = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"
SHA256 = "dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44"
SIZE = 574673361  # bytes
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB in [0, 1]; the weights expect it
BLOCKS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))  # (channels, convolutions); each block ends with a pooling


class VGGLoss(nn.Module):
    """Distance between VGG19 features of sr and hr, phi_{i,j} in SRGAN: Ledig et al. 2017, section 2.2 (1609.04802).

    SRGAN's content loss is `layers={"5_4": 1}` with the other defaults: mean squared error after the ReLU of the 4th
    convolution in the 5th block. Features are divided by 12.75, so that the error is multiplied by 0.00615. ESRGAN's
    loss (arXiv 1809.00219, section 3.3) is `before_relu=True, feature_scale=1, criterion=L1Loss()`. VGG19: Simonyan and
    Zisserman 2015, configuration E (arXiv 1409.1556), cut off after the deepest layer used.

    VGG19 is frozen and not registered as a submodule: it follows this module to other devices, but is not part of
    checkpoints, optimizers or communication between processes.

    Args:
        layers: Weights of VGG19's convolutions "1_1" ... "5_4". YAML reads an unquoted 5_4 as 54, which also works.
        weights: "download" (torchvision's, 575 MB, downloaded once to `cache_dir`); the path of such a file; or
            "random", which is reproducible but only for smoke tests.
        cache_dir: Folder of the downloaded file.
        before_relu: Compare features before the ReLU instead of after it.
        feature_scale: Factor of the features.
        criterion: `criterion(features of sr, features of hr)` -> scalar; None: mean squared error.

    Shapes: sr, hr (N, 1 or 3, H, W) float32 in [0, 1]; one channel is repeated to three. Each pooling halves the image;
    the 5th block needs at least 16x16. Features are computed under the current autocast, the criterion in float32.

    Raises:
        InputError: Unknown layers, weights that are not available or do not fit, or images that are too small.
    """

    mean: Tensor
    std: Tensor
    vgg: nn.Sequential

    def __init__(
        self,
        layers: Mapping[str, float],
        *,
        weights: str,
        cache_dir: str | Path | None = None,
        before_relu: bool = False,
        feature_scale: float = 1 / 12.75,
        criterion: nn.Module | None = None,
    ) -> None:
        super().__init__()
        indices = vgg19_convolutions()
        names = {name: "_".join(str(name).replace("_", "")) for name in layers}
        if unknown := [str(given) for given, name in names.items() if name not in indices]:
            raise InputError(f"VGG19 has no convolution {', '.join(unknown)}; choose from {', '.join(indices)}")
        used = used_weights({names[name]: weight for name, weight in layers.items()}, "VGGLoss.layers")
        self.layers = {indices[name] + (not before_relu): weight for name, weight in used.items()}
        self.blocks = max(int(name[0]) for name in used)
        self.feature_scale = feature_scale
        self.criterion = criterion or nn.MSELoss()
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        with torch.device("meta"):
            vgg = vgg19_features(max(self.layers) + 1)
        vgg.load_state_dict(load_weights(weights, cache_dir, vgg), assign=True)
        self.__dict__["vgg"] = vgg.requires_grad_(False).eval()  # bypasses nn.Module, which would register it

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> nn.Module:
        """Move or cast the unregistered VGG19, too."""
        self.vgg._apply(fn, *args, **kwargs)
        return super()._apply(fn, *args, **kwargs)

    def features(self, image: Tensor) -> list[Tensor]:
        """Compute the scaled float32 features of each layer, shallowest first, of (N, 1 or 3, H, W) in [0, 1]."""
        least = 2 ** (self.blocks - 1)
        if min(image.shape[-2:]) < least:
            size = "x".join(map(str, image.shape[-2:]))
            raise InputError(f"VGGLoss was given images of {size}, its layers need {least}x{least}: use larger patches")
        x = (image.expand(-1, 3, -1, -1) - self.mean) / self.std
        found = []
        for index, layer in enumerate(self.vgg):
            x = layer(x)
            if index in self.layers:
                found.append(x.float() * self.feature_scale)
        return found

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        with torch.no_grad():
            hr_features = self.features(hr)
        pairs = zip(sorted(self.layers), self.features(sr), hr_features, strict=True)
        return reduce(operator.add, (self.layers[index] * self.criterion(x, y) for index, x, y in pairs))


def vgg19_convolutions() -> dict[str, int]:
    """Index of each convolution, such as "5_4", in torchvision's `vgg19().features`; its ReLU has the next index."""
    indices, index = {}, 0
    for block, (_, count) in enumerate(BLOCKS, 1):
        for place in range(1, count + 1):
            indices[f"{block}_{place}"] = index
            index += 2
        index += 1  # the pooling
    return indices


def vgg19_features(depth: int) -> nn.Sequential:
    """Build the first `depth` layers of torchvision's `vgg19().features`, with ReLUs that are not in-place."""
    layers: list[nn.Module] = []
    channels = 3
    for width, count in BLOCKS:
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers[:depth])


def load_weights(weights: str, cache_dir: str | Path | None, vgg: nn.Sequential) -> dict[str, Tensor]:
    """Return the weights for `vgg`, float32, by its parameter names.

    Raises:
        InputError: The weights are not available or do not fit.
    """
    if weights == "random":
        log.warning(
            "VGGLoss with weights=random uses an untrained VGG19: for smoke tests only, the loss is meaningless. To "
            "train a network give weights=download, or the path of %s",
            URL.rpartition("/")[2],
        )
        return random_weights(vgg)
    if weights != "download":
        return read_weights(Path(weights).expanduser(), vgg)
    if cache_dir is None:
        raise InputError("VGGLoss: weights=download needs cache_dir, the folder for the downloaded file")
    path = Path(cache_dir).expanduser() / URL.rpartition("/")[2]
    return read_weights(download(URL, path, SHA256, size=SIZE), vgg)


def random_weights(vgg: nn.Sequential) -> dict[str, Tensor]:
    """Return He's initial weights (He et al. 2015, arXiv 1502.01852, equation 10), which keep the scale of features.

    Uses its own generator: the weights are the same in every run, and no other random numbers change.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = {key: torch.zeros(value.shape, device="cpu") for key, value in vgg.state_dict().items()}
    for value in drawn.values():
        if value.ndim == 4:
            nn.init.kaiming_normal_(value, nonlinearity="relu", generator=generator)
    return drawn


def read_weights(path: Path, vgg: nn.Sequential) -> dict[str, Tensor]:
    """Read the weights for `vgg` from a file with torchvision's names (`features.0.weight`, ...); ignore other keys.

    Raises:
        InputError: The file is missing or does not hold tensors, or keys are missing or have another shape.
    """
    way_out = f"Give the weights of torchvision's vgg19 ({URL}), weights=download, or weights=random for a smoke test"
    if not path.is_file():
        raise InputError(f"weights={path}: file not found. {way_out}")
    try:
        content = load_tensors(path)
    except InputError as error:
        raise InputError(f"{error}. {way_out}") from error
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__} instead of weights by name. {way_out}")
    problems, found = [], {}
    for key, value in vgg.state_dict().items():
        there = content.get(f"features.{key}")
        if not isinstance(there, Tensor):
            problems.append(f"features.{key} is missing")
        elif there.shape != value.shape:
            problems.append(f"features.{key} is {tuple(there.shape)}, expected {tuple(value.shape)}")
        else:
            found[key] = there.float()
    if problems:
        raise InputError(f"{path} does not fit VGG19: {'; '.join(problems)}. {way_out}")
    return found
