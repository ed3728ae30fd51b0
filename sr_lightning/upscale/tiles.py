"""Images of any size in bounded memory: pieces that overlap by what an output pixel depends on."""

import logging
from collections.abc import Callable, Iterator
from itertools import chain, pairwise
from math import isqrt
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from sr_lightning.errors import InputError

log = logging.getLogger(__name__)

SMALLEST = 16  # LR pixels: a tile that does not fit into memory is halved down to here

# What `tile="auto"` aims at. On a CPU it is faster than the whole image, whose large layers each take memory that is
# new to the process, page by page (tests/benchmarks/bench_upscale.py). A GPU wants more to do at a time: not measured.
SIDE_CPU, SIDE_CUDA = 256, 1024
MARGINS = 12  # a tile is this many receptive radii wide at least, so that margins are not most of the work
MOST_CPU = 2**30  # bytes of one layer's output; two or three of them exist at a time
MOST_CUDA = 0.25  # likewise, as a share of the free memory

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

    def grown(self, margin: int, whole: "Box") -> "Box":
        """With `margin` pixels more on each side, as far as the whole reaches."""
        return Box(
            max(self.top - margin, whole.top),
            min(self.bottom + margin, whole.bottom),
            max(self.left - margin, whole.left),
            min(self.right + margin, whole.right),
        )

    def within(self, other: "Box", scale: int) -> tuple[slice, slice]:
        """Where this box lies in the enlargement of another that holds it: rows and columns."""
        top, left = self.top - other.top, self.left - other.left
        return (
            slice(top * scale, (top + self.height) * scale),
            slice(left * scale, (left + self.width) * scale),
        )

    def split(self, side: int) -> list["Box"]:
        """Boxes of at most side x side that make up this one, all of nearly the same size."""
        return [
            Box(top, bottom, left, right)
            for top, bottom in _cuts(self.top, self.bottom, side)
            for left, right in _cuts(self.left, self.right, side)
        ]


def _cuts(start: int, stop: int, side: int) -> list[tuple[int, int]]:
    length = stop - start
    number = -(-length // side)
    edges = [start + i * length // number for i in range(number + 1)]
    return list(pairwise(edges))


def in_pieces(
    compute: Callable[[Box, Box], Result], height: int, width: int, margin: int, tile: int | None
) -> Iterator[tuple[Box, Result]]:
    """Compute an image piece by piece, in smaller pieces from where memory runs out.

    A network whose padding is a function of the image's border alone (zeros, replicated pixels) gives the pixels it
    gives for the whole image if the margin is its receptive radius: at the image's border a piece ends where the image
    ends, and elsewhere what padding does to the cut edge reaches nothing that is kept.

    Args:
        compute: The box to enlarge, and the same with its margin -> anything, on the CPU.
        height: Of the LR image.
        width: Of the LR image.
        margin: LR pixels around a box that its output depends on.
        tile: Height and width of a box, at most. None: the whole image at first.

    Yields:
        Boxes that make up the image without overlap, from top to bottom, and what was computed for each.

    Raises:
        InputError: Memory does not suffice for the smallest tile.
    """
    whole = Box(0, height, 0, width)
    pending = [whole]
    while pending:
        box = pending.pop()
        if tile is not None and max(box.height, box.width) > tile:
            pending += reversed(box.split(tile))
            continue
        try:
            result = compute(box, box.grown(margin, whole))
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            problem = str(error)
        else:
            yield box, result
            continue
        # Not in the except block: an exception that is being handled holds on to the tensors of its traceback.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        side = max(box.height, box.width)
        tile = side // 2
        if tile < SMALLEST:
            raise InputError(f"not enough memory, even for a tile of {side} with {margin} pixels around it: {problem}")
        log.warning("out of memory: going on in tiles of %d", tile)
        pending.append(box)


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory is used up."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in str(error) for words in _SAID)


# What libraries say in a plain RuntimeError: torch's allocator on the CPU, NNPACK, oneDNN, C++, cuDNN and cuBLAS
_SAID = (
    *("can't allocate memory", "Cannot allocate memory", "not enough memory"),
    *("could not create a", "bad_alloc", "ALLOC_FAILED"),
)


def automatic_tile(network: nn.Module, radius: int, device: torch.device) -> int:
    """The side of tiles that are fast and small, in LR pixels.

    Args:
        network: On the device.
        radius: Its receptive radius, whose pixels on each side of a tile are work done twice.
        device: That computes.
    """
    if device.type == "cuda":
        side, most = SIDE_CUDA, MOST_CUDA * torch.cuda.mem_get_info(device)[0]
    else:
        side, most = SIDE_CPU, MOST_CPU
    allowed = isqrt(int(most / largest_layer(network))) - 2 * radius
    return min(max(side, MARGINS * radius), max(allowed, 4 * SMALLEST))


@torch.inference_mode()
def largest_layer(network: nn.Module) -> float:
    """Bytes per LR pixel of the largest output of any layer, in float32."""
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
