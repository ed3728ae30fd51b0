"""Weights in ncnn's files, NAME.param with NAME.bin, of networks whose layers stand in the order of their weights."""

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sr_lightning.errors import InputError

NCNN_SUFFIXES = (".param", ".bin")
MAGIC = "7767517"  # first line of a .param
FLOAT16, FLOAT32 = 0x01306B47, 0  # tags before the weights of a layer
WITH_WEIGHTS = ("Convolution", "PReLU")
WITHOUT_WEIGHTS = (
    *("Input", "Split", "Concat", "Eltwise", "BinaryOp", "ReLU", "PixelShuffle", "Interp", "Noop"),
    *("MemoryData", "Crop", "Reorg"),
)


@dataclass(frozen=True)
class Layer:
    """A line of a .param.

    Attributes:
        kind: Its type, such as Convolution.
        options: Number of an option -> value, as text.
    """

    kind: str
    options: dict[int, str]

    def number(self, option: int, default: float = 0) -> float:
        """Return an option as a number."""
        return float(self.options.get(option, default))


def read_ncnn(path: Path) -> dict[str, Tensor]:
    """Read the weights of a Compact or RRDBNet from NAME.param and NAME.bin, under the published names.

    Args:
        path: One of the two files; the other lies beside it.

    Raises:
        InputError: A file is missing, damaged, of another network, or with a layer that is not read here.
    """
    text, data = path.with_suffix(".param"), path.with_suffix(".bin")
    if missing := [file for file in (text, data) if not file.is_file()]:
        raise InputError(f"{path}: ncnn's networks are two files; {missing[0]} is missing")
    layers = _layers(text)
    try:
        tensors = _tensors([layer for layer in layers if layer.kind in WITH_WEIGHTS], data.read_bytes())
    except (ValueError, struct.error) as error:
        raise InputError(f"{data} does not fit {text.name}: {error}. Get both files again") from error
    names = _names(layers, text)
    return {
        f"{name}.{kind}": value for name, kinds in zip(names, tensors, strict=True) for kind, value in kinds.items()
    }


def _layers(file: Path) -> list[Layer]:
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or lines[0].strip() != MAGIC:
        raise InputError(f"{file} is no .param of ncnn in text form: its first line is not {MAGIC}")
    layers = []
    for line in lines[2:]:
        kind, *words = line.split() or [""]
        options = [word.partition("=") for word in words if re.fullmatch(r"-?\d+=\S+", word)]
        layers.append(Layer(kind, {int(number): value for number, _, value in options}))
    layers = [layer for layer in layers if layer.kind]
    if unknown := sorted({layer.kind for layer in layers} - {*WITH_WEIGHTS, *WITHOUT_WEIGHTS}):
        raise InputError(f"{file} has layers that are not read here: {', '.join(unknown)}. Use the .pth of the network")
    return layers


def _tensors(layers: Sequence[Layer], data: bytes) -> list[dict[str, Tensor]]:
    """Read the weights of layers, in the order of the file.

    Raises:
        ValueError, struct.error: The file is shorter or longer, or its weights are quantised.
    """
    place = 0

    def take(count: int, kind: str) -> np.ndarray:
        nonlocal place
        size = count * np.dtype(kind).itemsize
        if place + size > len(data):
            raise ValueError(f"it ends after {len(data)} bytes")
        values = np.frombuffer(data, kind, count, place).astype(np.float32)
        place += -(-size // 4) * 4
        return values

    result = []
    for layer in layers:
        out = int(layer.number(0))
        if layer.kind == "PReLU":
            result.append({"weight": torch.from_numpy(take(out, "<f4"))})
            continue
        (tag,) = struct.unpack_from("<I", data, place)
        place += 4
        if tag not in (FLOAT16, FLOAT32):
            raise ValueError("its weights are neither float32 nor float16")
        side = int(layer.number(1))
        weight = take(int(layer.number(6)), "<f2" if tag == FLOAT16 else "<f4").reshape(out, -1, side, side)
        tensors = {"weight": torch.from_numpy(weight)}
        if layer.number(5):
            tensors["bias"] = torch.from_numpy(take(out, "<f4"))
        result.append(tensors)
    if place != len(data):
        raise ValueError(f"it has {len(data)} bytes, expected {place}")
    return result


def _names(layers: Sequence[Layer], file: Path) -> list[str]:
    """Return the published names of the layers with weights.

    Raises:
        InputError: Another network, or one whose output is resized.
    """
    kinds = [layer.kind for layer in layers if layer.kind in WITH_WEIGHTS]
    enlarged = [layer.number(1, 1) for layer in layers if layer.kind == "Interp"]
    if reduced := [factor for factor in enlarged if factor < 1]:
        raise InputError(
            f"{file} resizes its network's output by {reduced[0]:g}, so it holds a network of a larger scale. Use the "
            "file of that scale, and --factor"
        )
    if kinds[:-1] == ["Convolution", "PReLU"] * (len(kinds) // 2) and kinds[-1:] == ["Convolution"]:
        return [f"body.{i}" for i in range(len(kinds))]
    stages = len(enlarged)
    blocks, rest = divmod(len(kinds) - 4 - stages, 15)
    if set(kinds) != {"Convolution"} or stages < 1 or blocks < 1 or rest:
        raise InputError(f"{file} is neither a Compact nor an RRDBNet. Use the .pth of the network")
    dense = [f"body.{i}.rdb{j}.conv{k}" for i in range(blocks) for j in (1, 2, 3) for k in range(1, 6)]
    ups = [f"conv_up{i}" for i in range(1, stages + 1)]
    return ["conv_first", *dense, "conv_body", *ups, "conv_hr", "conv_last"]
