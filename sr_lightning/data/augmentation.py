"""Augmentations of training patches beside flips and rotations: CutBlur, mixup, exchanged colours.

CutBlur and mixup in super-resolution: Yoo, Ahn, Sohn, "Rethinking Data Augmentation for Image Super-resolution" (2020,
arXiv 2004.00448); mixup: Zhang et al. 2017 (arXiv 1710.09412).
"""

from dataclasses import dataclass, fields
from itertools import permutations
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sr_lightning.degradations import downscale
from sr_lightning.degradations.padded_batch import as_int64, is_probability, uniform
from sr_lightning.errors import InputError

CUT = 0.7  # side of CutBlur's box relative to the patch, the mean of the paper's
ORDERS = np.array(list(permutations(range(3))))  # of the colours, (6, 3)
NUM_DRAWS = 9  # random 64-bit values per patch, whichever augmentations are used


class AugmentationDraw(NamedTuple):
    """Augmentations of this process's patches, and of the patches that are mixed into some of them.

    Attributes:
        rows: (B + M,) int64, numbers of the patches in the batch of all processes: this process's, then the partners
            of those that are mixed.
        order: (B + M, 3) int64, order of the colours.
        cut: (B + M,) bool, True for CutBlur.
        corner: (B + M, 2), position of CutBlur's box, from 0 (top, left) to 1.
        outside: (B + M,) bool, True if LR is replaced outside the box.
        mixed: (B,) bool with M times True, for mixup.
        weight: (B,) float32 in [0, 1], of this process's patches; that of the partner is the difference to 1.
    """

    rows: np.ndarray
    order: np.ndarray
    cut: np.ndarray
    corner: np.ndarray
    outside: np.ndarray
    mixed: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True)
class Augmentation:
    """Random changes of each patch, with the probability of each; None or 0: never.

    Attributes:
        cutblur: Replace LR in a box, or outside of it, by bicubically downscaled HR: the network learns where not to
            restore. HR does not change.
        mixup: Average the patch with another of the batch, both LR and HR, with a weight that is uniform in [0, 1).
        channel_shuffle: Put red, green and blue of LR and HR in a random order, one of six.

    Raises:
        InputError: A probability is none; the message names all of them.
    """

    cutblur: float | None = None
    mixup: float | None = None
    channel_shuffle: float | None = None

    def __post_init__(self) -> None:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        wrong = [f"data.{name}={p}" for name, p in values.items() if p is not None and not is_probability(p)]
        if wrong:
            raise InputError(f"{', '.join(wrong)}: give a probability from 0 to 1, or null for none")

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) for field in fields(self))

    def draw(
        self, seed: int, batch_number: int, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> AugmentationDraw:
        """Draw the augmentations of this process's part of a batch, a function of the seed and the batch number.

        From Philox, with another counter than the bits of patches and degradations.
        """
        generator = np.random.Philox(key=[seed, batch_number], counter=[0, 0, 0, 3])
        bits = generator.random_raw(batch_size * NUM_DRAWS).reshape(batch_size, NUM_DRAWS)
        u = uniform(as_int64(bits)).numpy()
        mixed = u[:, 0] < (self.mixup or 0)
        partner = (np.arange(batch_size) + 1 + (u[:, 1] * (batch_size - 1)).astype(np.int64)) % batch_size
        own = np.arange(rank, batch_size, world_size)
        rows = np.concatenate([own, partner[own][mixed[own]]])
        shuffled = u[rows, 3] < (self.channel_shuffle or 0)
        return AugmentationDraw(
            rows=rows,
            order=ORDERS[np.where(shuffled, (u[rows, 4] * len(ORDERS)).astype(np.int64), 0)],
            cut=u[rows, 5] < (self.cutblur or 0),
            corner=u[rows, 6:8],
            outside=u[rows, 8] < 0.5,
            mixed=mixed[own],
            weight=np.where(mixed, np.floor(u[:, 2] * 2**16) / 2**16, 1).astype(np.float32)[own],  # 1 - weight is exact
        )


def augment(images: dict[str, Tensor], draw: AugmentationDraw) -> dict[str, Tensor]:
    """Augment patches: first CutBlur, then the colours of each, then mixup.

    Args:
        images: "lr" (B + M, 3, p, p) and others, such as "hr" (B + M, 3, p*scale, p*scale), float32 in [0, 1]; of "hr",
            multiples of 1/255. They may be changed in place.
        draw: From an `Augmentation`.

    Returns:
        The images by the same names, B of each; bits equal on every device.
    """
    if draw.cut.any():
        _cutblur(images["lr"], images["hr"], draw)
    return {name: _mix(_reorder(image, draw.order), draw) for name, image in images.items()}


def _cutblur(lr: Tensor, hr: Tensor, draw: AugmentationDraw) -> None:
    """Replace LR inside or outside of the drawn boxes by downscaled HR, in place."""
    cut, size = torch.from_numpy(np.flatnonzero(draw.cut)).to(lr.device), lr.shape[-1]
    clean = downscale(hr[cut].mul(255).round_().to(torch.uint8), hr.shape[-1] // size).float().mul_(1 / 255)
    side = max(1, round(CUT * size))
    start = (draw.corner[draw.cut] * (size - side + 1)).astype(np.int64)[:, :, None]  # (K, 2, 1)
    rows, columns = np.moveaxis((start <= np.arange(size)) & (np.arange(size) < start + side), 1, 0)  # (K, p) each
    replaced = (rows[:, :, None] & columns[:, None]) ^ draw.outside[draw.cut, None, None]
    lr[cut] = torch.where(torch.from_numpy(replaced[:, None]).to(lr.device), clean, lr[cut])


def _reorder(image: Tensor, order: np.ndarray) -> Tensor:
    """Put the colours of each image in its order: (N, 3, H, W), (N, 3)."""
    if (order == ORDERS[0]).all():
        return image
    index = torch.from_numpy(order).to(image.device)
    return image[torch.arange(len(order), device=image.device)[:, None], index]


def _mix(image: Tensor, draw: AugmentationDraw) -> Tensor:
    """Average the mixed images with their partners, in place: (B + M, 3, H, W) -> (B, 3, H, W)."""
    own, partners = image.split([len(draw.mixed), len(draw.rows) - len(draw.mixed)])
    if draw.mixed.any():
        # Products and sums are rounded one by one, as on every device; torch.lerp may fuse them.
        weight = torch.from_numpy(draw.weight).to(image.device)[:, None, None, None]
        at = torch.from_numpy(np.flatnonzero(draw.mixed)).to(image.device)
        own.mul_(weight).index_add_(0, at, partners.mul_(1 - weight[at]))
    return own
