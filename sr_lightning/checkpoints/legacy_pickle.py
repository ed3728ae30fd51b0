"""Tensors of a torch.save file that holds a whole pickled module, read without importing or running any of it.

`torch.load(weights_only=True)` refuses such files: in the format before torch 1.6 a module's class is a persistent
reference with its source beside it. This reader replaces every class and function that the pickle names by an empty
class of its own, except the few that make up tensors.
"""

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sr_lightning.errors import InputError
from sr_lightning.utils.messages import reason
from sr_lightning.utils.tensor_archive import InertUnpickler, Unknown, is_archive, record

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001  # of torch.save before 1.6: torch/serialization.py
_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def read_module(path: str | Path) -> dict[str, Tensor]:
    """Read the parameters and buffers of the only module in a file, under the names of its state dict, to the CPU.

    Args:
        path: Written by `torch.save` of a module, or of a dictionary that contains one, with torch 0.1.12 or later.

    Raises:
        InputError: The file is of another kind, or holds no module or several.
    """
    try:
        content = _read_zip(Path(path)) if is_archive(path) else _read_stream(path)
        values = content.values() if isinstance(content, dict) else [content]
        modules = [value for value in values if isinstance(value, Unknown) and "_modules" in value.state]
        if len(modules) != 1:
            raise ValueError(f"it holds {len(modules)} modules")
        return _state_dict(modules[0])
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(
            f"{path} is damaged, or holds more than tensors and plain containers: give another file of weights "
            f"(as one pickled module: {reason(error)})"
        ) from error


def _state_dict(module: "Unknown", prefix: str = "") -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, value in [*module.state.get("_parameters", {}).items(), *module.state.get("_buffers", {}).items()]:
        value = value.data if isinstance(value, _Parameter) else value
        if isinstance(value, Tensor):  # or None
            tensors[prefix + name] = value.detach().clone()
    for name, child in module.state["_modules"].items():
        if isinstance(child, Unknown):
            tensors |= _state_dict(child, f"{prefix}{name}.")
    return tensors


class _Parameter:
    """A parameter in the format before torch 0.4: its data, then a state with requires_grad."""

    def __init__(self, data: Tensor | None = None, requires_grad: bool = True) -> None:
        self.data = data

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if len(state) == 5:  # the oldest form: the data is in the state
            self.data = state[0]


class _Unpickler(InertUnpickler):
    def __init__(self, file: Any, load_storage: Callable[..., Tensor] | None = None) -> None:
        def view(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
            if math.prod(size) > storage.numel():  # a step of 0 would make any size of one value
                raise ValueError(f"{tuple(size)} values of {storage.numel()}")
            return storage.as_strided(size, stride, storage.storage_offset() + offset)

        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch", "Size"): tuple,
            ("torch.nn.parameter", "Parameter"): type("Parameter", (_Parameter,), {}),
            ("torch.autograd.variable", "Variable"): type("Variable", (_Parameter,), {}),
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
            ("torch._utils", "_rebuild_tensor"): view,
            ("torch._utils", "_rebuild_tensor_v2"): view,
        }
        known |= {(module, name): dtype for module in ("torch", "torch.cuda") for name, dtype in _DTYPES.items()}
        super().__init__(file, known)
        self.load_storage = load_storage

    def persistent_load(self, reference: Any) -> Any:
        kind, *details = reference
        if kind == "module":  # class, file, source
            return details[0]
        if kind == "storage" and self.load_storage is not None:
            return self.load_storage(*details)
        raise pickle.UnpicklingError(f"a reference to {kind!r}")


def _read_zip(path: Path) -> Any:
    """Read the format since torch 1.6: <name>/data.pkl, and each storage as <name>/data/<key>."""
    data = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        infos = {info.filename.partition("/")[2]: info for info in archive.infolist()}
    records = {name: bytes(record(memoryview(data), info)) for name, info in infos.items()}
    if records.get("byteorder", b"little") != b"little":
        raise ValueError("its values are big-endian")
    storages: dict[str, Tensor] = {}

    def load(dtype: torch.dtype, key: str, location: str, numel: int) -> Tensor:
        if key not in storages:
            storages[key] = _numbers(records[f"data/{key}"], dtype, numel)
        return storages[key]

    return _Unpickler(io.BytesIO(records["data.pkl"]), load).load()


def _read_stream(path: str | Path) -> Any:
    """Read the format before 1.6: pickles of a magic number, version, system and content, then all storages, raw."""
    storages: dict[str, Tensor] = {}
    length_of_file = Path(path).stat().st_size

    def load(dtype: torch.dtype, key: str, location: str, numel: int, view: tuple[str, int, int] | None) -> Tensor:
        if key not in storages:  # its values follow later
            if numel * dtype.itemsize > length_of_file:
                raise ValueError(f"{numel} values of {dtype}: the file is cut off")
            storages[key] = torch.empty(numel, dtype=dtype)
        if view is None:
            return storages[key]
        _, offset, length = view
        return storages[key][offset : offset + length]

    with Path(path).open("rb") as file:
        if _Unpickler(file).load() != _MAGIC or _Unpickler(file).load() != _VERSION:
            raise ValueError("it has neither of torch's formats")
        if not _Unpickler(file).load()["little_endian"]:
            raise ValueError("its values are big-endian")
        content = _Unpickler(file, load).load()
        for key in _Unpickler(file).load():
            numel = int.from_bytes(file.read(8), "little")
            storage = storages[key]
            storage.copy_(_numbers(file.read(numel * storage.itemsize), storage.dtype, storage.numel()))
    return content


def _numbers(data: bytes, dtype: torch.dtype, numel: int) -> Tensor:
    if len(data) != numel * dtype.itemsize:
        raise ValueError(f"{numel} values of {dtype} in {len(data)} bytes: the file is cut off")
    return torch.frombuffer(bytearray(data), dtype=dtype) if numel else torch.empty(0, dtype=dtype)
