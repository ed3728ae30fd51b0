"""Upscaling of images of any size in bounded memory, in tiles that overlap by the receptive radius."""

import logging
from collections.abc import Callable, Iterator
from itertools import chain, islice, pairwise
from math import isqrt
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from sr_lightning.errors import InputError
from sr_lightning.upscale.options import MIN_TILE

log = logging.getLogger(__name__)

# Limits of `tile="auto"`, with margins. On a CPU, 64 features of 360x360 pixels are 32 MiB: glibc gets larger tensors
# from the system, page by page, unless it keeps freed memory (tests/benchmarks/bench_upscale.py). GPUs: not measured.
PIXELS_CPU, PIXELS_CUDA = 360**2, 1024**2  # LR pixels
MIN_SIDE_RADII = 22  # side of a square tile in receptive radii, so that margins are not most of the work
MAX_LAYER_BYTES_CPU = 3 * 2**27  # of one layer's output; networks need 2 to 13 times as much, with NNPACK's workspace
MAX_LAYER_SHARE_CUDA = 0.25  # of the free memory, for one layer's output
WIDE_TILE_COST = 1.05  # times the fewest pixels, for tiles in fewer columns: NNPACK is faster on wide tiles

Result = TypeVar("Result")


class Box(NamedTuple):
    """A part of an image, in LR pixels: rows top to bottom, columns left to right, the last ones excluded."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    def expanded(self, margin: int, whole: "Box", alignment: int = 1) -> "Box":
        """Return this box with `margin` or a few more pixels on each side, within the whole.

        Its edges are multiples of `alignment` away from those of the whole, also as seen by a flipped image.
        """
        before = (max(edge - margin - start, 0) for edge, start in ((self.top, whole.top), (self.left, whole.left)))
        after = (max(end - edge - margin, 0) for edge, end in ((self.bottom, whole.bottom), (self.right, whole.right)))
        (top, left), (below, right) = ([d - d % alignment for d in distances] for distances in (before, after))
        return Box(whole.top + top, whole.bottom - below, whole.left + left, whole.right - right)

    def slices_in(self, other: "Box", scale: int) -> tuple[slice, slice]:
        """Return rows and columns of this box in the upscaled image of another box that contains it."""
        top, left = self.top - other.top, self.left - other.left
        return (
            slice(top * scale, (top + self.height) * scale),
            slice(left * scale, (left + self.width) * scale),
        )

    def split(self, height: int, width: int) -> list["Box"]:
        """Split into boxes of at most this height and width, all of nearly the same size."""
        return [
            Box(top, bottom, left, right)
            for top, bottom in _split_evenly(self.top, self.bottom, height)
            for left, right in _split_evenly(self.left, self.right, width)
        ]


def _split_evenly(start: int, stop: int, side: int) -> list[tuple[int, int]]:
    length = stop - start
    number = -(-length // side)
    edges = [start + i * length // number for i in range(number + 1)]
    return list(pairwise(edges))


def tile_map(
    compute: Callable[[Box, Box], Result],
    height: int,
    width: int,
    margin: int,
    tile: tuple[int, int] | None,
    alignment: int = 1,
) -> Iterator[tuple[Box, Result]]:
    """Compute an image tile by tile; when memory runs out, continue with tiles of half the size.

    If the margin is the receptive radius, padding depends on the image's border alone (zeros, replicated pixels), and
    boxes are aligned as the network needs it (windows of attention, unshuffled pixels), tiles equal the whole image: at
    the image's border a tile ends with the image, and elsewhere the padding of a cut edge affects only pixels of the
    margin, which are discarded.

    Args:
        compute: Called with the box to upscale and the same box with its margin; returns any result.
        height: Of the LR image.
        width: Of the LR image.
        margin: LR pixels around a box that its output depends on.
        tile: Largest height and width of a box without its margin. None: try the whole image first.
        alignment: Boxes with their margins are multiples of this away from the image's borders.

    Yields:
        Boxes that make up the image without overlap, from top to bottom, and the result of each.

    Raises:
        InputError: Not enough memory for the smallest tile.
    """
    whole = Box(0, height, 0, width)
    pending = [whole]
    while pending:
        box = pending.pop()
        if tile is not None and (box.height > tile[0] or box.width > tile[1]):
            pending += reversed(box.split(*tile))
            continue
        try:
            result = compute(box, box.expanded(margin, whole, alignment))
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            problem = str(error)
        else:
            yield box, result
            continue
        # Not in the except block: while an exception is handled, its traceback keeps tensors alive.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        side = max(box.height, box.width)
        half = side // 2
        if half < MIN_TILE:
            raise InputError(f"not enough memory, even for a tile of {side} with {margin} pixels around it: {problem}")
        log.warning("out of memory: continuing with tiles of %d", half)
        tile = half, half
        pending.append(box)


def out_of_memory(error: BaseException) -> bool:
    """Return True if an exception reports that memory has run out."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in str(error) for words in OOM_MESSAGES)


# In messages of RuntimeError from torch's CPU allocator, NNPACK, oneDNN, C++, cuDNN, cuBLAS and CUDA's pinned memory
OOM_MESSAGES = (
    *("can't allocate memory", "Cannot allocate memory", "not enough memory"),
    *("could not create a", "bad_alloc", "ALLOC_FAILED", "CUDA error: out of memory"),
)


def automatic_pixels(network: nn.Module, margin: int, device: torch.device) -> int:
    """Choose the LR pixels of tiles, margins included, that are fast and need little memory.

    Args:
        network: On the device.
        margin: LR pixels around a tile that are computed twice.
        device: The network's; its memory limits the tiles.
    """
    if device.type == "cuda":
        pixels, most = PIXELS_CUDA, MAX_LAYER_SHARE_CUDA * torch.cuda.mem_get_info(device)[0]
    else:
        pixels, most = PIXELS_CPU, MAX_LAYER_BYTES_CPU
    allowed = int(most / largest_layer(network))
    return max(min(max(pixels, (MIN_SIDE_RADII * margin) ** 2), allowed), (4 * MIN_TILE + 2 * margin) ** 2)


def automatic_tile(height: int, width: int, margin: int, pixels: int) -> tuple[int, int]:
    """Choose tiles that compute few pixels twice: the whole image, strips as wide as the image, or smaller tiles.

    Args:
        height: Of the LR image.
        width: Of the LR image.
        margin: LR pixels around a tile that are computed twice.
        pixels: The most that a tile may have with its margins; at least a square of more than two margins.

    Returns:
        Largest height and width of a tile without margins.
    """

    def largest(side: int, number: int) -> int:
        return -(-side // number) + margin * min(number - 1, 2)

    costs = {}  # computed pixels by rows and columns of tiles
    for columns in range(1, -(-width // (isqrt(pixels) - 2 * margin)) + 1):
        fitting = (rows for rows in range(1, height + 1) if largest(height, rows) * largest(width, columns) <= pixels)
        for rows in islice(fitting, 1):
            costs[rows, columns] = (height + 2 * margin * (rows - 1)) * (width + 2 * margin * (columns - 1))
    rows, columns = next(grid for grid, cost in costs.items() if cost <= WIDE_TILE_COST * min(costs.values()))
    return -(-height // rows), -(-width // columns)


@torch.inference_mode()
def largest_layer(network: nn.Module) -> float:
    """Measure the bytes per LR pixel of the largest output of any layer, in float32."""
    side = 16
    device = next(chain(network.parameters(), network.buffers())).device
    sizes = []

    def look(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel())

    hooks = [module.register_forward_hook(look) for module in network.modules()]
    try:
        network(torch.zeros(1, network.num_channels, side, side, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return 4 * max(sizes) / side**2
