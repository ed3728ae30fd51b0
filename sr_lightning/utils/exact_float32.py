"""Float32 without TF32 on a GPU, whatever the program around it allows."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def exact_float32() -> Iterator[None]:
    """Compute float32 convolutions and matrix products of the block without TF32, and restore the setting.

    TF32 has the ten mantissa bits of float16. torch allows it for convolutions by default, and many programs for matrix
    products. Only the settings of each operation are used: torch refuses to read the older `allow_tf32` and
    `set_float32_matmul_precision` if the program has used both.
    """
    operations = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)
    inexact = [operation for operation in operations if operation.fp32_precision == "tf32"]
    for operation in inexact:
        operation.fp32_precision = "ieee"
    try:
        yield
    finally:
        for operation in inexact:
            operation.fp32_precision = "tf32"
