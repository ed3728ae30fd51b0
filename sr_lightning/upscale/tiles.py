"""Upscaling of images of any size in bounded memory, in tiles that overlap by the receptive radius."""

import logging
from collections.abc import Callable, Iterator
from itertools import chain, pairwise
from math import isqrt
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from sr_lightning.errors import InputError
from sr_lightning.upscale.options import MIN_TILE

log = logging.getLogger(__name__)

# Targets of `tile="auto"`. On a CPU, tiles are faster than the whole image, because the process gets new memory for the
# outputs of large layers page by page (tests/benchmarks/bench_upscale.py). The value for GPUs is not measured.
TILE_CPU, TILE_CUDA = 256, 1024  # LR pixels
MIN_TILE_RADII = 12  # smallest width of a tile in receptive radii, so that margins are not most of the work
MAX_LAYER_BYTES_CPU = 2**30  # of one layer's output; two or three of them exist at a time
MAX_LAYER_SHARE_CUDA = 0.25  # of the free memory, for one layer's output

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

    def expanded(self, margin: int, whole: "Box") -> "Box":
        """Return this box with `margin` more pixels on each side, within the whole."""
        return Box(
            max(self.top - margin, whole.top),
            min(self.bottom + margin, whole.bottom),
            max(self.left - margin, whole.left),
            min(self.right + margin, whole.right),
        )

    def slices_in(self, other: "Box", scale: int) -> tuple[slice, slice]:
        """Return rows and columns of this box in the upscaled image of another box that contains it."""
        top, left = self.top - other.top, self.left - other.left
        return (
            slice(top * scale, (top + self.height) * scale),
            slice(left * scale, (left + self.width) * scale),
        )

    def split(self, side: int) -> list["Box"]:
        """Split into boxes of at most side x side, all of nearly the same size."""
        return [
            Box(top, bottom, left, right)
            for top, bottom in _split_evenly(self.top, self.bottom, side)
            for left, right in _split_evenly(self.left, self.right, side)
        ]


def _split_evenly(start: int, stop: int, side: int) -> list[tuple[int, int]]:
    length = stop - start
    number = -(-length // side)
    edges = [start + i * length // number for i in range(number + 1)]
    return list(pairwise(edges))


def tile_map(
    compute: Callable[[Box, Box], Result], height: int, width: int, margin: int, tile: int | None
) -> Iterator[tuple[Box, Result]]:
    """Compute an image tile by tile; when memory runs out, continue with tiles of half the size.

    If the margin is the receptive radius, and padding depends on the image's border alone (zeros, replicated pixels),
    tiles equal the whole image: at the image's border a tile ends with the image, and elsewhere the padding of a cut
    edge affects only pixels of the margin, which are discarded.

    Args:
        compute: Called with the box to upscale and the same box with its margin; returns any result, on the CPU.
        height: Of the LR image.
        width: Of the LR image.
        margin: LR pixels around a box that its output depends on.
        tile: Largest height and width of a box. None: try the whole image first.

    Yields:
        Boxes that make up the image without overlap, from top to bottom, and the result of each.

    Raises:
        InputError: Not enough memory for the smallest tile.
    """
    whole = Box(0, height, 0, width)
    pending = [whole]
    while pending:
        box = pending.pop()
        if tile is not None and max(box.height, box.width) > tile:
            pending += reversed(box.split(tile))
            continue
        try:
            result = compute(box, box.expanded(margin, whole))
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
        tile = side // 2
        if tile < MIN_TILE:
            raise InputError(f"not enough memory, even for a tile of {side} with {margin} pixels around it: {problem}")
        log.warning("out of memory: continuing with tiles of %d", tile)
        pending.append(box)


def out_of_memory(error: BaseException) -> bool:
    """Return True if an exception reports that memory has run out."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in str(error) for words in OOM_MESSAGES)


# In messages of RuntimeError from torch's CPU allocator, NNPACK, oneDNN, C++, cuDNN and cuBLAS
OOM_MESSAGES = (
    *("can't allocate memory", "Cannot allocate memory", "not enough memory"),
    *("could not create a", "bad_alloc", "ALLOC_FAILED"),
)


def automatic_tile(network: nn.Module, radius: int, device: torch.device) -> int:
    """Choose the side of tiles that are fast and need little memory, in LR pixels.

    Args:
        network: On the device.
        radius: Its receptive radius in LR pixels, which are computed twice on each side of a tile.
        device: The network's; its memory limits the side.
    """
    if device.type == "cuda":
        side, most = TILE_CUDA, MAX_LAYER_SHARE_CUDA * torch.cuda.mem_get_info(device)[0]
    else:
        side, most = TILE_CPU, MAX_LAYER_BYTES_CPU
    allowed = isqrt(int(most / largest_layer(network))) - 2 * radius
    return min(max(side, MIN_TILE_RADII * radius), max(allowed, 4 * MIN_TILE))


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
