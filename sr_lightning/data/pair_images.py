"""HR and LR of a pair: read, checked against each other, cropped."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, mse_loss

from sr_lightning.data.sources import Pair
from sr_lightning.degradations.bicubic import crop_to_multiple, downscale
from sr_lightning.errors import InputError, raise_all
from sr_lightning.images.files import image_size, read_image
from sr_lightning.utils.threads import in_threads

log = logging.getLogger(__name__)


class Degradation(Protocol):
    """Function from hr to lr.

    Attributes:
        key: Plain values on which the result depends besides HR and the scale: name, settings, version.
        lr_source: Name of its LR in the scoring protocol.
    """

    key: Any
    lr_source: str

    def __call__(self, hr: Tensor, scale: int) -> Tensor:
        """Map (3, H, W) uint8, multiples of the scale, to (3, H/scale, W/scale) uint8."""
        ...


def load_pair(
    pair: Pair, hr_size: np.ndarray, scale: int, degradation: Degradation | None
) -> tuple[np.ndarray, np.ndarray]:
    """Load cropped HR and LR, uint8 (3, H, W) and (3, H/scale, W/scale)."""
    whole, *lr_file = (torch.from_numpy(image) for image in _read_pair(pair))
    hr = crop_to_multiple(whole, scale).contiguous()
    lr = crop_lr(lr_file[0], whole, scale, pair) if lr_file else degradation(hr, scale)
    hr, lr = hr.numpy(), lr.numpy()
    for file, image, size in ((pair.hr, hr, hr_size), (pair.lr or degradation, lr, hr_size // scale)):
        if image.dtype != np.uint8 or image.shape != (3, *size):
            raise InputError(f"{file}: has {image.dtype} of {image.shape}, expected uint8 of {(3, *size.tolist())}")
    return hr, lr


def _read_pair(pair: Pair) -> list[np.ndarray]:
    """Read HR and, if there is a file of it, LR, uint8 (3, H, W) each; gray is repeated."""
    images: list[np.ndarray] = []
    files = (file for file in (pair.hr, pair.lr) if file is not None)
    raise_all(*(partial(lambda file: images.append(read_image(file)), file) for file in files))
    return [image if len(image) == 3 else np.repeat(image, 3, axis=0) for image in images]


def hr_size(pair: Pair, scale: int) -> tuple[int, int]:
    """Read height and width of the cropped HR from the headers, and check that LR matches."""
    height, width = image_size(pair.hr)
    expected, rounded_up = (height // scale, width // scale), (-(-height // scale), -(-width // scale))
    if min(expected) == 0:
        raise InputError(f"{pair.hr}: {height}x{width} has no pixel left at scale {scale}; exclude it")
    lr = expected if pair.lr is None else image_size(pair.lr)
    if not (lr[0] in (expected[0], rounded_up[0]) and lr[1] in (expected[1], rounded_up[1])):
        raise InputError(
            f"{pair.lr}: {lr[0]}x{lr[1]}, but HR of {height}x{width} at scale {scale} has LR of "
            f"{expected[0]}x{expected[1]}; is it the LR of {pair.hr}, and of this scale?"
        )
    return expected[0] * scale, expected[1] * scale


def crop_lr(lr: Tensor, hr: Tensor, scale: int, pair: Pair) -> Tensor:
    """Crop LR to the part that HR, cropped to a multiple of the scale, shows.

    MATLAB's `imresize(hr, 1/scale)` rounds sizes up and keeps the scale, so that the last row and column go beyond HR.
    Other tools stretch HR to the rounded size, which moves LR pixels by up to one pixel against HR.

    Args:
        lr: uint8 (1 or 3, h, w), HR's size divided by the scale, rounded down or up.
        hr: uint8 (1 or 3, H, W), not cropped.
        scale: The factor.
        pair: Named in the message.

    Raises:
        InputError: LR is more like a stretched HR.
    """
    height, width = (side // scale for side in hr.shape[-2:])
    cropped = lr[..., :height, :width]
    if cropped.shape == lr.shape:
        return lr
    hr_gray, lr_gray, cropped_gray = (image.double().mean(dim=0)[None, None] for image in (hr, lr, cropped))
    aligned = downscale(crop_to_multiple(hr_gray, scale), scale)
    stretched = interpolate(hr_gray, size=lr.shape[-2:], mode="bicubic", antialias=True)
    if mse_loss(stretched, lr_gray) < mse_loss(aligned, cropped_gray):
        raise InputError(
            f"{pair.lr}: {lr.shape[-2]}x{lr.shape[-1]} was not made by the factor {scale} from "
            f"{hr.shape[-2]}x{hr.shape[-1]}: its pixels are not aligned with those of {pair.hr}; "
            f"crop HR to a multiple of {scale} and make LR again"
        )
    return cropped


@contextmanager
def naming_all(pairs: Sequence[Pair], scale: int) -> Iterator[None]:
    """If a file cannot be used, read all files completely, so that one message names every such file."""
    try:
        yield
    except InputError:
        log.info("a file cannot be used: reading all files to name all such files")
        all(in_threads(lambda pair: _check(pair, scale), pairs))
        raise


def _check(pair: Pair, scale: int) -> bool:
    """Decode both files of a pair; return True, or raise InputError with all that is wrong."""
    _read_pair(pair)
    hr_size(pair, scale)
    return True
