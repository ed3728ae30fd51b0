"""Conversion to ncnn by pnnx."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

RUN = Path(__file__).with_name("run_ncnn.py")
SIZES = ((20, 24), (33, 17))  # of the images that pnnx finds free sizes with


def convert(network: nn.Module, path: Path, half: bool = False) -> Callable[[Tensor], Tensor]:
    """Write NAME.param and NAME.bin, and nothing else.

    The blobs are called `data` and `output`, as Real-ESRGAN's programs for ncnn expect.

    Args:
        network: In inference form, without gradients.
        path: NAME.param, in a folder for temporary files.
        half: Store the weights in float16.

    Returns:
        The files, run by ncnn in a process of its own.

    Raises:
        RuntimeError: The network has operators that pnnx does not convert, or ncnn does not have.
    """
    import pnnx

    folder = path.parent / "pnnx"  # for its ten other files
    folder.mkdir()
    images = [torch.rand(1, network.num_channels, *size) for size in SIZES]
    torch.jit.trace(network, images[0], check_trace=False).save(str(folder / "net.pt"))
    shapes = [f"[{','.join(map(str, image.shape))}]" for image in images]
    command = [pnnx.EXEC_PATH, "net.pt", f"inputshape={shapes[0]}", f"inputshape2={shapes[1]}", f"fp16={int(half)}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    param = folder / "net.ncnn.param"
    if done.returncode or not param.is_file():
        raise RuntimeError("pnnx converts no such network")
    path.write_text(re.sub(r"\bout0\b", "output", re.sub(r"\bin0\b", "data", param.read_text())))
    param.with_suffix(".bin").replace(path.with_suffix(".bin"))

    def run(lr: Tensor) -> Tensor:
        images, results = folder / "lr.npy", folder / "sr.npy"
        np.save(images, lr.numpy())
        if subprocess.run([sys.executable, RUN, path, images, results], capture_output=True).returncode:
            raise RuntimeError("ncnn lacks a layer of it")
        return torch.from_numpy(np.load(results))

    return run
