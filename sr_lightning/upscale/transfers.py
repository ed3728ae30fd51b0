"""Copies of tiles to a GPU and back, while it computes others."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")


class Transfers:
    """Copies of tiles between the image and the device of a network.

    Between the host and a GPU they have streams of their own and pinned memory, which torch uses again once a copy has
    ended; channels of pixels stay side by side in memory where they are in the image, since the host would take longer
    to rearrange them than the GPU computes.

    Args:
        device: The network's.

    Attributes:
        at_once: Tiles that are begun before the result of the first one is used.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.streams = [torch.cuda.Stream(device) for _ in range(2)] if device.type == "cuda" else []
        self.at_once = 2 if self.streams else 1

    def upload(self, part: Tensor) -> Tensor:
        """Return a part of an image (C, h, w) on the device."""
        if not self.streams or part.is_cuda:
            return part.to(self.device)
        staged = torch.empty_like(part, pin_memory=True).copy_(part)
        stream, computing = self.streams[0], torch.cuda.current_stream(self.device)
        with torch.cuda.stream(stream):
            there = staged.to(self.device, non_blocking=True)
        computing.wait_stream(stream)
        there.record_stream(computing)
        return there

    def download(self, sr: Tensor, finite: Tensor, part: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
        """Begin to copy a result (C, H, W), and () whether it is finite, to where its part of the image is.

        Returns:
            A function that waits for both and returns them.
        """
        if not self.streams or part.is_cuda:
            results = sr.to(part.device), finite
            return lambda: results
        stream, computing = self.streams[1], torch.cuda.current_stream(self.device)
        interleaved = part.stride(0) == 1 < len(part)
        sr = sr.permute(1, 2, 0).contiguous().permute(2, 0, 1) if interleaved else sr.contiguous()
        stream.wait_stream(computing)
        with torch.cuda.stream(stream):
            copies = tuple(torch.empty_like(each, device="cpu", pin_memory=True) for each in (sr, finite))
            for each, copy in zip((sr, finite), copies, strict=True):
                copy.copy_(each, non_blocking=True)
                each.record_stream(stream)
            ended = stream.record_event()

        def wait() -> tuple[Tensor, Tensor]:
            ended.synchronize()
            return copies

        return wait

    def ahead(self, tiles: Iterable[Item]) -> Iterator[Item]:
        """Yield tiles, each begun when the iterator reaches it; `at_once` are begun before the first is yielded."""
        begun: deque[Item] = deque()
        for tile in tiles:
            begun.append(tile)
            if len(begun) == self.at_once:
                yield begun.popleft()
        yield from begun
