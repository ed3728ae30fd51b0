"""Float32 without TF32 on a GPU, whatever the program around it allows."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_lock = threading.Lock()
_blocks: list[list[Any]] = []  # for each block in progress, in any thread, the operations that it has switched


@contextmanager
def exact_float32() -> Iterator[None]:
    """Compute float32 convolutions and matrix products of the block without TF32, and restore the setting.

    TF32 has the ten mantissa bits of float16. torch allows it for convolutions by default, and many programs for matrix
    products. The setting is one of the process: it is restored when no thread is in such a block any more. Only the
    settings of each operation are used: torch refuses to read the older `allow_tf32` and
    `set_float32_matmul_precision` if the program has used both.
    """
    with _lock:
        operations = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)
        _blocks.append([operation for operation in operations if operation.fp32_precision == "tf32"])
        for operation in _blocks[-1]:
            operation.fp32_precision = "ieee"
    try:
        yield
    finally:
        with _lock:
            switched = _blocks.pop()
            if _blocks:
                _blocks[0] += switched  # restored by the last block
            else:
                for operation in switched:
                    operation.fp32_precision = "tf32"
