"""The features of FID: Inception v3 up to its last pooling, under the names of the published weights."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 299  # pixels of an image that the network sees
# TensorFlow's average leaves the padding out, and its last block has a maximum in place of the average.
AVERAGE = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
MAXIMUM = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)
HALVED = partial(F.max_pool2d, kernel_size=3, stride=2)


class Conv(NamedTuple):
    """A convolution of a block: its name in files, output channels, kernel and stride; padded if the stride is 1."""

    name: str
    out: int
    kernel: tuple[int, int]
    stride: int = 1


Step = Conv | tuple[Conv, Conv] | Callable[[Tensor], Tensor]  # a pair is computed side by side
Branch = Sequence[Step]


class ConvUnit(nn.Module):
    """Convolution, batch normalisation and ReLU."""

    def __init__(
        self, into: int, out: int, kernel: tuple[int, int], stride: int = 1, padding: tuple[int, int] = (0, 0)
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(into, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Block(nn.ModuleDict):
    """Branches of one input, concatenated."""

    def __init__(self, into: int, branches: Sequence[Branch]) -> None:
        super().__init__()
        self.branches = branches
        for branch in branches:
            channels = into
            for convs in (_convs(step) for step in branch):
                for name, out, kernel, stride in convs:
                    padding = (kernel[0] // 2, kernel[1] // 2) if stride == 1 else (0, 0)
                    self[name] = ConvUnit(channels, out, kernel, stride, padding)
                channels = sum(conv.out for conv in convs) or channels

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._branch(x, branch) for branch in self.branches], 1)

    def _branch(self, x: Tensor, branch: Branch) -> Tensor:
        for step in branch:
            convs = _convs(step)
            x = torch.cat([self[conv.name](x) for conv in convs], 1) if convs else step(x)  # pyright: ignore
        return x


def _convs(step: Step) -> tuple[Conv, ...]:
    """Return the convolutions of a step; none of a pooling."""
    if isinstance(step, Conv):
        return (step,)
    return step if isinstance(step, tuple) else ()


def _chain(name: str, *convs: tuple[int, tuple[int, int]], last_stride: int = 1) -> list[Conv]:
    """Number the convolutions of a branch from 1: output channels and kernels."""
    strides = [1] * (len(convs) - 1) + [last_stride]
    return [Conv(f"{name}_{i}", *conv, s) for i, (conv, s) in enumerate(zip(convs, strides, strict=True), 1)]


def _block_a(pooled: int) -> list[Branch]:
    return [
        [Conv("branch1x1", 64, (1, 1))],
        _chain("branch5x5", (48, (1, 1)), (64, (5, 5))),
        _chain("branch3x3dbl", (64, (1, 1)), (96, (3, 3)), (96, (3, 3))),
        [AVERAGE, Conv("branch_pool", pooled, (1, 1))],
    ]


def _block_b() -> list[Branch]:
    return [
        [Conv("branch3x3", 384, (3, 3), 2)],
        _chain("branch3x3dbl", (64, (1, 1)), (96, (3, 3)), (96, (3, 3)), last_stride=2),
        [HALVED],
    ]


def _block_c(inner: int) -> list[Branch]:
    row, column = (inner, (1, 7)), (inner, (7, 1))
    return [
        [Conv("branch1x1", 192, (1, 1))],
        _chain("branch7x7", (inner, (1, 1)), row, (192, (7, 1))),
        _chain("branch7x7dbl", (inner, (1, 1)), column, row, column, (192, (1, 7))),
        [AVERAGE, Conv("branch_pool", 192, (1, 1))],
    ]


def _block_d() -> list[Branch]:
    return [
        _chain("branch3x3", (192, (1, 1)), (320, (3, 3)), last_stride=2),
        _chain("branch7x7x3", (192, (1, 1)), (192, (1, 7)), (192, (7, 1)), (192, (3, 3)), last_stride=2),
        [HALVED],
    ]


def _block_e(pooling: Callable[[Tensor], Tensor]) -> list[Branch]:
    def fork(name: str) -> tuple[Conv, Conv]:
        return Conv(f"{name}a", 384, (1, 3)), Conv(f"{name}b", 384, (3, 1))

    return [
        [Conv("branch1x1", 320, (1, 1))],
        [*_chain("branch3x3", (384, (1, 1))), fork("branch3x3_2")],
        [*_chain("branch3x3dbl", (448, (1, 1)), (384, (3, 3))), fork("branch3x3dbl_3")],
        [pooling, Conv("branch_pool", 192, (1, 1))],
    ]


class InceptionV3(nn.Module):
    """Rethinking the Inception Architecture for Computer Vision, Szegedy et al. 2015 (arXiv 1512.00567).

    In the form of TensorFlow's model of 2015-12-05, whose features define FID, without its classifier.

    Attributes:
        num_features: Length of a feature vector.

    Shapes: images (N, 3, H, W) uint8 or float in 0..255, resized to 299x299 by an antialiased bilinear filter, as
    torchmetrics does -> (N, 2048).
    """

    num_features = 2048

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvUnit(3, 32, (3, 3), 2)
        self.Conv2d_2a_3x3 = ConvUnit(32, 32, (3, 3))
        self.Conv2d_2b_3x3 = ConvUnit(32, 64, (3, 3), padding=(1, 1))
        self.pool_1 = nn.MaxPool2d(3, 2)
        self.Conv2d_3b_1x1 = ConvUnit(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = ConvUnit(80, 192, (3, 3))
        self.pool_2 = nn.MaxPool2d(3, 2)  # (N, 192, 35, 35)
        self.Mixed_5b = Block(192, _block_a(32))
        self.Mixed_5c = Block(256, _block_a(64))
        self.Mixed_5d = Block(288, _block_a(64))
        self.Mixed_6a = Block(288, _block_b())  # (N, 768, 17, 17)
        self.Mixed_6b = Block(768, _block_c(128))
        self.Mixed_6c = Block(768, _block_c(160))
        self.Mixed_6d = Block(768, _block_c(160))
        self.Mixed_6e = Block(768, _block_c(192))
        self.Mixed_7a = Block(768, _block_d())  # (N, 1280, 8, 8)
        self.Mixed_7b = Block(1280, _block_e(AVERAGE))
        self.Mixed_7c = Block(2048, _block_e(MAXIMUM))

    def forward(self, images: Tensor) -> Tensor:
        x = F.interpolate(images.float(), (SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True)
        x = (x - 128) / 128
        for layer in self.children():
            x = layer(x)
        return x.mean(dim=(2, 3))
