"""Training batches: drawing the patches of batch k, and gathering them as uint8."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sr_lightning.data.store import ImageStore
from sr_lightning.errors import InputError
from sr_lightning.utils.devices import to_device

CACHE_BYTES = 1 << 19  # fits a core's second-level cache


class PatchDraw(NamedTuple):
    """Positions of the patches of a batch, all int64 of shape (B,).

    Attributes:
        image: Index in the store.
        top: First row, in LR pixels.
        left: First column, in LR pixels.
        symmetry: Sum of 1 (reverse the rows), 2 (reverse the columns) and 4 (then exchange rows and columns).
    """

    image: np.ndarray
    top: np.ndarray
    left: np.ndarray
    symmetry: np.ndarray


class PatchSampler:
    """Draw patches with equal probability for every position in the data set and every symmetry.

    Args:
        store: The images.
        patch_size: Side of a patch in LR pixels.
        batch_size: Patches per step over all processes.
        seed: At least 0.
        augment: Draw symmetries; without them the positions are the same.
        rank: Index of this process.
        world_size: Number of processes. Each takes every world_size-th patch of the batch, so the training data do not
            depend on their number.

    Raises:
        InputError: A patch does not fit into every image, or the processes cannot share the batch evenly.
    """

    def __init__(
        self,
        store: ImageStore,
        *,
        patch_size: int,
        batch_size: int,
        seed: int,
        augment: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if patch_size < 1:
            raise InputError(f"patch_size={patch_size}: must be at least 1 LR pixel")
        store.check_patch_size(patch_size)
        if batch_size < 1 or batch_size % world_size:
            raise InputError(f"batch_size={batch_size}: must be a multiple of the number of processes, {world_size}")
        if seed < 0:
            raise InputError(f"seed={seed}: must not be negative")
        self.patch_size, self.batch_size, self.seed = patch_size, batch_size, seed
        self.augment, self.rank, self.world_size = augment, rank, world_size
        rows, self._columns = (store.lr_sizes - patch_size + 1).T
        places = rows * self._columns
        self._ends = np.cumsum(places)
        self._starts = self._ends - places

    def draw(self, batch_number: int, rows: np.ndarray | None = None) -> PatchDraw:
        """Draw this process's part of a batch, a function of the seed and the batch number on every machine.

        With `rows` the patches of the whole batch that have these numbers are drawn instead.

        Only raw Philox bits are used: NumPy guarantees them for all versions, unlike the draws of its Generator. The
        modulo favours small numbers by less than 2**-24 even with 2**37 positions.
        """
        bits = np.random.Philox(key=[self.seed, batch_number]).random_raw(self.batch_size)
        number = (bits % np.uint64(8 * self._ends[-1])).astype(np.int64)
        symmetry = number & 7 if self.augment else np.zeros_like(number)
        place = number >> 3
        image = np.searchsorted(self._ends, place, side="right")
        top, left = np.divmod(place - self._starts[image], self._columns[image])
        draw = PatchDraw(image, top, left, symmetry)
        if rows is None and self.world_size == 1:
            return draw
        which = slice(self.rank, None, self.world_size) if rows is None else rows
        return PatchDraw(*(part[which] for part in draw))


def gather(store: ImageStore, draw: PatchDraw, patch_size: int) -> tuple[Tensor, Tensor]:
    """Copy the patches of a batch out of the store.

    Args:
        store: The images.
        draw: From a sampler of this store.
        patch_size: In LR pixels.

    Returns:
        lr (B, 3, p, p) and hr (B, 3, p*scale, p*scale), uint8, contiguous copies.
    """
    lr = _crops(store.pixels, store.lr_starts, store.lr_sizes, draw, 1, patch_size)
    hr = _crops(store.pixels, store.hr_starts, store.hr_sizes, draw, store.scale, patch_size * store.scale)
    return lr, hr


class DeviceGather:
    """Gather batches from a copy of the store on a device, so that only positions are transferred.

    Args:
        store: The images.
        device: With memory for all pixels.

    Raises:
        InputError: The device's memory is too small.
    """

    def __init__(self, store: ImageStore, device: torch.device | str) -> None:
        self.store = store
        self._steps: dict[int, Tensor] = {}  # by side of a patch
        total, piece = len(store.pixels), 1 << 26
        try:
            self.pixels = torch.empty(total, dtype=torch.uint8, device=device)
        except torch.OutOfMemoryError:
            raise InputError(
                f"the images need {total / 1e9:.1f} GB, more than {device} has free; set data.residence=mmap"
            ) from None
        for start in range(0, total, piece):  # in pieces: torch needs a writable copy
            self.pixels[start : start + piece] = torch.from_numpy(store.pixels[start : start + piece].copy())

    def __call__(self, draw: PatchDraw, patch_size: int) -> tuple[Tensor, Tensor]:
        """Gather patches like `gather`, on the device; the host does not wait for it."""
        store, scale, sides = self.store, self.store.scale, (patch_size, patch_size * self.store.scale)
        lr = _walks(store.lr_starts, store.lr_sizes, draw, 1, sides[0])
        hr = _walks(store.hr_starts, store.hr_sizes, draw, scale, sides[1])
        walks = to_device(torch.from_numpy(np.stack([lr, hr])), self.pixels.device)
        lr, hr = (self.pixels[self._places(walk, side)] for walk, side in zip(walks, sides, strict=True))
        return lr, hr

    def _places(self, walks: Tensor, side: int) -> Tensor:
        """Return the place of each byte of patches, int64 (B, 3, side, side): one product, not many small sums."""
        if side not in self._steps:
            colour, row, column = torch.meshgrid(*map(torch.arange, (3, side, side)), indexing="ij")
            steps = torch.stack([torch.ones_like(row), row, column, colour]).double()  # exact for integers below 2**53
            self._steps[side] = steps.flatten(1).to(self.pixels.device)
        return (walks @ self._steps[side]).long().view(-1, 3, side, side)


def _walks(starts: np.ndarray, sizes: np.ndarray, draw: PatchDraw, unit: int, side: int) -> np.ndarray:
    """Return where patches begin in the store and the steps to the next row, column and colour, float64 (B, 4)."""
    start, pitch = _places(starts, sizes, draw, unit)
    reverse_rows, reverse_columns, exchange = (draw.symmetry >> bit & 1 for bit in range(3))
    start = start + (side - 1) * (reverse_rows * pitch + reverse_columns * 3)
    down, right = pitch * (1 - 2 * reverse_rows), 3 * (1 - 2 * reverse_columns)
    down, right = np.where(exchange, right, down), np.where(exchange, down, right)
    return np.stack([start, down, right, np.ones_like(start)], axis=1).astype(np.float64)


def _places(starts: np.ndarray, sizes: np.ndarray, draw: PatchDraw, unit: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the start of each patch in the store, at `unit` times its position, and the bytes per row; both (B,)."""
    pitch = 3 * sizes[draw.image, 1]
    return starts[draw.image] + unit * (draw.top * pitch + 3 * draw.left), pitch


def _crops(pixels: np.ndarray, starts: np.ndarray, sizes: np.ndarray, draw: PatchDraw, unit: int, side: int) -> Tensor:
    """Copy crops at `unit` times the drawn positions, (B, 3, side, side).

    First the rows of some patches are copied, each as one item of 3*side bytes, so that many memory reads run at once.
    Then each patch, now in the CPU cache, is flipped or transposed and split into planes byte by byte.
    """
    start, pitch = _places(starts, sizes, draw, unit)
    # Reversing the rows costs nothing: they are copied from the last to the first.
    rows = np.where(draw.symmetry[:, None] & 1, np.arange(side)[::-1], np.arange(side))  # (B, side)
    rows = start[:, None] + pitch[:, None] * rows
    items = np.ndarray(
        len(pixels) - 3 * side + 1, f"V{3 * side}", pixels, strides=(1,)
    )  # one item starts at every byte
    turns = (draw.symmetry >> 1).tolist()
    batch = torch.empty((len(turns), 3, side, side), dtype=torch.uint8)
    patches = batch.numpy()
    together = max(CACHE_BYTES // (3 * side * side), 1)
    for first in range(0, len(turns), together):
        copied = items[rows[first : first + together]].view(np.uint8)
        planes = copied.reshape(-1, side, side, 3).transpose(0, 3, 1, 2)  # (together, 3, side, side)
        turned = (planes, planes[..., ::-1], planes.mT, planes[..., ::-1].mT)
        for i, turn in enumerate(turns[first : first + together]):
            patches[first + i] = turned[turn][i]
    return batch
