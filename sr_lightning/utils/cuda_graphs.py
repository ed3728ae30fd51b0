"""CUDA graphs: programs of a GPU, recorded once and launched as a whole."""

import logging
import threading
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

Program = Callable[[], None]
Inputs = tuple[Tensor, ...]
Recorder = Callable[..., Program]  # records a program, and returns its replay
Function = Callable[..., tuple[Tensor, ...]]

RECORDING = threading.Lock()  # torch records one graph of a process at a time


def cuda_graph(program: Program, **options: Any) -> Program:
    """Record a program without running it, and return its replay.

    Args:
        program: Has run before, so that libraries have chosen algorithms.
        **options: Of `torch.cuda.graph`. It records on the current stream, unless that is the default one.
    """
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    if stream != torch.cuda.default_stream():
        options.setdefault("stream", stream)
    try:
        with RECORDING, torch.cuda.graph(graph, capture_error_mode="thread_local", **options):  # others may allocate
            program()
    finally:
        torch.cuda.set_stream(stream)  # which torch leaves changed if recording fails
    return graph.replay


class Replays:
    """Replays of a function of tensors, a graph for their shapes, recorded when these come for the second time.

    Before that it is computed directly, so that a shape that comes once, as those of photos, costs nothing more. A
    function that cannot be recorded is always computed directly.

    Args:
        device: Of the tensors.
        record: `cuda_graph`, or what computes the same. On a GPU it records on a stream of that GPU, in memory that the
            graphs share, since they run one after the other.
        most: Shapes that are remembered, those used last.

    Attributes:
        is_refused: True after a recording has failed: all is computed directly.
    """

    def __init__(self, device: torch.device, record: Recorder = cuda_graph, most: int = 16) -> None:
        self.record = record
        if device.type == "cuda":
            self.record = partial(record, pool=torch.cuda.graph_pool_handle(), stream=torch.cuda.Stream(device))
        self.most, self.is_refused = most, False
        self.graphs: dict[Any, _Graph | None] = {}  # None: the shape came once
        self.stream: torch.cuda.Stream | None = None  # of the latest replay
        self.lock = threading.Lock()

    @torch.inference_mode()
    def __call__(self, function: Function, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the function of tensors.

        Args:
            function: Does not wait for the device; always the same.
            *inputs: On the device.
        """
        with self.lock:
            try:
                return self._computed(function, inputs)
            except torch.OutOfMemoryError:
                if not any(self.graphs.values()):
                    raise
            # Not in the except block: while an exception is handled, its traceback keeps tensors alive.
            self.graphs.clear()  # they hold memory
            torch.cuda.empty_cache()
            return self._computed(function, inputs)

    def _computed(self, function: Function, inputs: Inputs) -> tuple[Tensor, ...]:
        key = tuple((x.dtype, x.shape, x.stride()) for x in inputs)
        came_before, graph = key in self.graphs, self.graphs.pop(key, None)
        if came_before and graph is None and not self.is_refused:
            graph = self._recorded(function, inputs)
        results = function(*inputs) if graph is None else self._replayed(graph, inputs)
        self.graphs[key] = graph
        if len(self.graphs) > self.most:
            del self.graphs[next(iter(self.graphs))]
        return results

    def _replayed(self, graph: "_Graph", inputs: Inputs) -> tuple[Tensor, ...]:
        if inputs[0].is_cuda:  # graphs share memory, and threads may have streams of their own
            stream = torch.cuda.current_stream(inputs[0].device)
            if self.stream is not None and self.stream != stream:
                stream.wait_stream(self.stream)
            self.stream = stream
        return graph(inputs)

    def _recorded(self, function: Function, inputs: Inputs) -> "_Graph | None":
        try:
            with torch.cuda.device(inputs[0].device) if inputs[0].is_cuda else nullcontext():
                return _Graph(function, inputs, self.record)
        except Exception as error:  # whatever stops the recording, the function can be computed directly
            if isinstance(error, torch.OutOfMemoryError) and any(self.graphs.values()):
                raise  # without the other graphs there may be enough
            message = str(error).partition("\n")[0]
            log.info("computed without a CUDA graph, since recording it fails: %s: %s", type(error).__name__, message)
            self.is_refused = True
            return None


class _Graph:
    """A recorded function of tensors with the shapes of `inputs`."""

    def __init__(self, function: Function, inputs: Inputs, record: Recorder) -> None:
        self.inputs, self.results = tuple(x.clone() for x in inputs), ()
        function(*self.inputs)  # prepares the libraries, which torch opens for each thread

        def program() -> None:
            self.results = function(*self.inputs)

        self.replay = record(program)

    def __call__(self, inputs: Inputs) -> tuple[Tensor, ...]:
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        self.replay()
        return tuple(result.clone() for result in self.results)  # the next replay overwrites them
