"""A CUDA graph without a GPU: the operations of a program, repeated on the same tensors."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
READING = aten._local_scalar_dense.default, aten.item.default, aten.is_nonzero.default  # the last two in inference mode


class FakeGraph(TorchDispatchMode):
    """Records a program as `cuda_graph` does: what the host has computed is fixed, and results keep their memory.

    A graph only records. This runs the program as well, and then restores the tensors from outside.
    """

    def __init__(self, program: Callable[[], None]) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.storages: dict[int, Any] = {}  # seen so far; of those from outside, with a copy
        with self:
            program()
        with torch.no_grad():
            for storage, before in filter(None, self.storages.values()):
                storage.copy_(before)

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation in READING:
            raise RuntimeError("the host waits for a value, which a graph cannot record")
        kwargs = kwargs or {}
        for tensor in tensors((args, kwargs)):
            if place(tensor) not in self.storages:
                self.storages[place(tensor)] = tensor.untyped_storage(), tensor.untyped_storage().clone()
        result = operation(*args, **kwargs)
        new = [tensor for tensor in tensors(result) if place(tensor) not in set(map(place, tensors((args, kwargs))))]
        self.storages |= dict.fromkeys(map(place, new))
        self.calls.append((operation, args, kwargs, new))
        return result

    def __call__(self) -> None:
        """Replay the program."""
        with torch.no_grad(), torch.autocast("cpu", enabled=False):  # recorded below both
            for operation, args, kwargs, new in self.calls:
                known = set(map(place, tensors((args, kwargs))))
                result = operation(*args, **kwargs)
                if operation.namespace == "c10d":
                    torch.distributed.Work.unbox(result[-1]).wait()
                again = [tensor for tensor in tensors(result) if place(tensor) not in known]
                for tensor, value in zip(new, again, strict=True):
                    tensor.copy_(value)


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
