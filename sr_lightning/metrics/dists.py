"""DISTS of torchmetrics, with VGG16 built here: torchmetrics takes it from torchvision."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchmetrics.functional.image import dists

from sr_lightning.losses.vgg import MEAN, STD
from sr_lightning.utils.tensor_files import load_tensors

BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # of VGG16: (channels, convolutions)


class DISTS(dists.DISTSNetwork):
    """Image Quality Assessment: Unifying Structure and Texture Similarity, Ding et al. 2020 (arXiv 2004.07728).

    The mathematics and the weights of channels are torchmetrics'. VGG16: Simonyan and Zisserman 2015, configuration D
    (arXiv 1409.1556), with L2 pooling.

    Args:
        weights: Of torchvision's vgg16, by its names: `features.0.weight`, ...

    Shapes: (N, 3, H, W), (N, 3, H, W) in [0, 1] -> (N,), or () if N is 1.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        nn.Module.__init__(self)  # not the constructor of torchmetrics, which builds torchvision's network
        channels, index = 3, 0  # index: of a layer in torchvision's `vgg16().features`
        for number, (width, count) in enumerate(BLOCKS, 1):
            stage = nn.Sequential()
            if number > 1:
                stage.add_module(str(index), dists.L2pooling(channels=channels))
                index += 1
            for _ in range(count):
                stage.add_module(str(index), nn.Conv2d(channels, width, 3, padding=1, device="meta"))
                stage.add_module(str(index + 1), nn.ReLU())
                channels, index = width, index + 2
            names = [name for name, _ in stage.named_parameters()]
            stage.load_state_dict({name: weights[f"features.{name}"] for name in names}, strict=False, assign=True)
            self.add_module(f"stage{number}", stage)
        self.chns = [3, *(width for width, _ in BLOCKS)]
        constants = {name: torch.tensor(value).view(1, 3, 1, 1) for name, value in (("mean", MEAN), ("std", STD))}
        for name, value in (constants | load_tensors(dists._PATH_WEIGHT_DISTS)).items():  # with alpha and beta
            self.register_buffer(name, value)
        self.requires_grad_(False)
