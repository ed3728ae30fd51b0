"""Perceptual loss: images are compared as VGG19, trained to classify, sees them."""

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sr_lightning.errors import InputError
from sr_lightning.losses.weighted_sum import used_weights
from sr_lightning.utils.download import download

log = logging.getLogger(__name__)

# The weights of torchvision's vgg19, IMAGENET1K_V1. 494 of its 575 MB are the classifier's, which is not used here.
URL = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"
SHA256 = "dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44"
SIZE = 574673361  # bytes
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB in [0, 1]: what the weights were trained on
BLOCKS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))  # channels, convolutions; each block ends in a pooling


class VGGLoss(nn.Module):
    """Distance between VGG19's features of sr and hr, phi_{i,j} in SRGAN: Ledig et al. 2017, section 2.2 (1609.04802).

    SRGAN's content loss is `layers={"5_4": 1}` with the other defaults: mean squared error of what the 4th convolution
    of the 5th block gives after its ReLU, features divided by 12.75, so that the error is 0.00615 of the plain one.
    ESRGAN's (arXiv 1809.00219, section 3.3) is `before_relu=True, feature_scale=1, criterion=L1Loss()`. VGG19: Simonyan
    and Zisserman 2015, configuration E (arXiv 1409.1556), without the layers behind the deepest that is asked for.

    VGG19 is frozen and none of this module's submodules: it moves along to other devices, but is in no checkpoint, no
    optimizer and no exchange between processes.

    Args:
        layers: Weights of VGG19's convolutions "1_1" ... "5_4". Unquoted, YAML reads 5_4 as 54, which is taken as well.
        weights: "download" (torchvision's, 575 MB, into `cache_dir`, once); a file of such weights; or "random", always
            the same ones, to try things out: the loss then means nothing.
        cache_dir: Where downloads are kept.
        before_relu: Compare what the convolutions give, not what their ReLUs make of it.
        feature_scale: What features are multiplied by.
        criterion: Takes (features of sr, features of hr), gives a scalar; None for the mean squared error.

    Shapes: sr, hr (N, 1 or 3, H, W) float32 in [0, 1]; one channel is repeated to three. Each pooling on the way halves
    the image: the 5th block needs 16x16. Features are computed under the autocast that is on, the criterion in float32.

    Raises:
        InputError: Layers that VGG19 lacks, weights that cannot be had or do not fit, images that are too small.
    """

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
            raise InputError(f"VGG19 has no convolution {', '.join(unknown)}; it has {', '.join(indices)}")
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
        self.__dict__["vgg"] = vgg.requires_grad_(False).eval()  # past nn.Module, which would register it

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> nn.Module:
        """What is behind `to`, `cuda`, `float`."""
        self.vgg._apply(fn, *args, **kwargs)
        return super()._apply(fn, *args, **kwargs)

    def features(self, image: Tensor) -> list[Tensor]:
        """(N, 1 or 3, H, W) in [0, 1] -> the scaled features of each layer, float32, the shallowest first."""
        least = 2 ** (self.blocks - 1)
        if min(image.shape[-2:]) < least:
            size = "x".join(map(str, image.shape[-2:]))
            raise InputError(f"VGGLoss: images of {size}; its layers need {least}x{least}: take larger patches")
        x = (image.expand(-1, 3, -1, -1) - self.mean) / self.std
        found = []
        for index, layer in enumerate(self.vgg):
            x = layer(x)
            if index in self.layers:
                found.append(x.float() * self.feature_scale)
        return found

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.features(hr)
        pairs = zip(sorted(self.layers), self.features(sr), wanted, strict=True)
        return sum(self.layers[index] * self.criterion(x, y) for index, x, y in pairs)


def vgg19_convolutions() -> dict[str, int]:
    """Block and place in it -> where torchvision has that convolution in `vgg19().features`. Its ReLU follows it."""
    indices, index = {}, 0
    for block, (_, count) in enumerate(BLOCKS, 1):
        for place in range(1, count + 1):
            indices[f"{block}_{place}"] = index
            index += 2
        index += 1  # the pooling
    return indices


def vgg19_features(depth: int) -> nn.Sequential:
    """The first `depth` layers of torchvision's `vgg19().features`. ReLUs leave what they get as it is."""
    layers: list[nn.Module] = []
    channels = 3
    for width, count in BLOCKS:
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers[:depth])


def load_weights(weights: str, cache_dir: str | Path | None, vgg: nn.Sequential) -> dict[str, Tensor]:
    """The weights of `vgg`, float32, by its own names.

    Raises:
        InputError: They cannot be had, or do not fit.
    """
    if weights == "random":
        log.warning(
            "VGGLoss with weights=random: NOBODY HAS TRAINED THIS VGG19. The loss means nothing, and neither does a "
            "network trained on it. To train for real: weights=download, or the path of %s",
            URL.rpartition("/")[2],
        )
        return random_weights(vgg)
    if weights != "download":
        return read_weights(Path(weights).expanduser(), vgg)
    if cache_dir is None:
        raise InputError("VGGLoss: weights=download needs cache_dir, the folder to keep them in")
    path = Path(cache_dir).expanduser() / URL.rpartition("/")[2]
    return read_weights(download(URL, path, SHA256, size=SIZE), vgg)


def random_weights(vgg: nn.Sequential) -> dict[str, Tensor]:
    """He et al. 2015 (arXiv 1502.01852), equation 10: features keep their size from layer to layer.

    Always the same: a resumed run has no others, and nothing else's draws change.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = {key: torch.zeros(value.shape, device="cpu") for key, value in vgg.state_dict().items()}
    for value in drawn.values():
        if value.ndim == 4:
            nn.init.kaiming_normal_(value, nonlinearity="relu", generator=generator)
    return drawn


def read_weights(path: Path, vgg: nn.Sequential) -> dict[str, Tensor]:
    """What `vgg` needs of a file of torchvision's names, `features.0.weight` and on. Other keys are not looked at.

    Raises:
        InputError: No file, one that is not made of tensors, or keys that are missing or have another shape.
    """
    way_out = f"VGGLoss takes the weights of torchvision's vgg19 ({URL}), weights=download, or weights=random to try"
    if not path.is_file():
        raise InputError(f"weights={path}: there is no such file. {way_out}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(f"{path} is no file of weights, or holds more than tensors. {way_out}") from error
    except (RuntimeError, EOFError, OSError) as error:
        raise InputError(f"{path} cannot be read as weights: {error}. {way_out}") from error
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__} in place of weights by name. {way_out}")
    problems, found = [], {}
    for key, value in vgg.state_dict().items():
        there = content.get(f"features.{key}")
        if not isinstance(there, Tensor):
            problems.append(f"features.{key} is missing")
        elif there.shape != value.shape:
            problems.append(f"features.{key} is {tuple(there.shape)}, needed {tuple(value.shape)}")
        else:
            found[key] = there.float()
    if problems:
        raise InputError(f"{path} does not fit: {'; '.join(problems)}. {way_out}")
    return found
