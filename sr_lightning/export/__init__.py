"""Export a trained network for other programs: sr-export -c best.ckpt --to onnx."""

import logging
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sr_lightning.errors import InputError
from sr_lightning.runs.folder import find_checkpoint
from sr_lightning.utils.atomic_files import check_writable, replacing
from sr_lightning.utils.large_imports import large_imports
from sr_lightning.utils.messages import reason

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from torch import nn

    from sr_lightning.export.writers import Run

SUFFIXES = {
    "onnx": (".onnx",),
    "ncnn": (".param",),
    "torch_export": (".pt2",),
    "safetensors": (".safetensors",),
    "torch": (".pth", ".pt"),
}
GRAPHS = ("onnx", "ncnn", "torch_export")  # the network with its weights
LAYOUTS = ("ours", "published", "basicsr", "edsr-pytorch")  # of `checkpoints.interop.save_weights`
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
PACKAGES = {"onnx": ONNX_PACKAGES, "ncnn": ("ncnn", "pnnx")}
SHAPES = ((1, 17, 23), (2, 9, 32), (3, 24, 5))  # batch, height and width of the images that verify a file
TOLERANCE = 1e-4  # relative to the output's range; 1/40 of a grey level
HALF_TOLERANCE = 1 / 255  # of float16, root mean square: deep networks have single pixels with more

WAY_OUT = "Try another version of torch, or another format"


class Exported(NamedTuple):
    """A written file.

    Attributes:
        path: The file.
        difference: Largest absolute difference between its output and the network's, over SHAPES.
    """

    path: Path
    difference: float


def export(
    ckpt: str | Path,
    to: str,
    output: str | Path | None = None,
    layout: str = "ours",
    allow: str | Sequence[str] | None = None,
    network: Mapping[str, Any] | None = None,
    *,
    rgb: bool = False,
    half: bool = False,
) -> Exported:
    """Write the fused network of a checkpoint, or its weights, completely or not at all.

    Args:
        ckpt: As of `runs.folder.find_checkpoint`. Averaged weights are exported if it has them.
        to: "onnx", "ncnn", "torch_export", "safetensors" or "torch".
        output: The file; of ncnn NAME.param, beside which NAME.bin is written. None: a file in the working directory,
            named after run and scale.
        layout: Key names, as for `checkpoints.interop.save_weights`; only with "safetensors" and "torch".
        allow: Packages besides this project, or classes, that the checkpoint may name as its network.
        network: Settings of the network that another project's file does not show, such as {"scale": 2} for VDSR.
        rgb: RGB images also for a luma network: the file converts colours and upscales chroma bicubically. Only graphs.
        half: Images and computations in float16; of ncnn and of weights what is stored alone.

    Raises:
        InputError: The checkpoint or a package is missing, options conflict, or the output differs from the
            network's.
    """
    check(to, output, layout, rgb=rgb, half=half)
    checkpoint = find_checkpoint(ckpt)
    with large_imports():
        from sr_lightning.checkpoints.identify import load_any
        from sr_lightning.export.converted import Converted
        from sr_lightning.export.writers import write

    trained = load_any(checkpoint, allow, dict(network or {}))
    if to in GRAPHS and not getattr(trained.network, "exports_any_size", True):
        raise InputError(
            f"--to {to}: {type(trained.network).__name__} cannot be converted for images of any size. "
            "Write its weights: --to safetensors"
        )
    name = re.sub(r"[^\w.+-]+", "_", trained.name)
    target = Path(output or f"{name}_x{trained.network.scale}{SUFFIXES[to][0]}").expanduser()
    size = sum(parameter.numel() for parameter in trained.network.parameters())
    log.info("exporting %s x%d, %s parameters, from %s", trained.name, trained.network.scale, f"{size:,}", checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder, target.name)
        try:
            run = write(trained, to, draft, layout, rgb=rgb, half=half)
            log.info("comparing its output with the network's on %d shapes", len(SHAPES))
            difference = compare(Converted(trained.network, rgb=rgb), run, target, half=half)
        except (InputError, OSError):
            raise
        except Exception as error:  # each exporter and runtime has its own
            if to not in GRAPHS:
                raise
            raise InputError(
                f"--to {to}: {type(trained.network).__name__} cannot be converted ({reason(error)}). Try another "
                "format, or write its weights: --to safetensors"
            ) from error
        try:
            with ExitStack() as stack:
                temporaries = [stack.enter_context(replacing(part)) for part in parts(target, to)]
                for part, temporary in zip(parts(draft, to), temporaries, strict=True):
                    shutil.copyfile(part, temporary)
        except OSError as error:
            raise InputError(f"{target} cannot be written: {error}") from error
    return Exported(target, difference)


def parts(path: Path, to: str) -> list[Path]:
    """Return the files of a format: of ncnn two."""
    return [path, path.with_suffix(".bin")] if to == "ncnn" else [path]


def check(to: str, output: str | Path | None, layout: str, *, rgb: bool, half: bool) -> None:
    """Check the options, before torch is imported.

    Raises:
        InputError: Names everything that is wrong.
    """
    wrong = []
    if to not in SUFFIXES:
        raise InputError(f"--to {to}: choose {', '.join(SUFFIXES)}")
    files = [] if output is None else parts(Path(output).expanduser(), to)
    if directories := [file for file in files if file.is_dir()]:
        wrong.append(f"-o {directories[0]} is a directory: name a file")
    elif output is not None and Path(output).suffix not in SUFFIXES[to]:
        wrong.append(f"-o {output}: with --to {to} the name must end in {' or '.join(SUFFIXES[to])}")
    if to == "torch" and layout == "ours":
        wrong.append(
            "--to torch writes for other projects: add --layout published, basicsr or edsr-pytorch, or use safetensors"
        )
    if to in GRAPHS and layout != "ours":
        wrong.append(f"--layout {layout} renames weights, and {to} has no key names: leave it out, or use --to torch")
    if to not in GRAPHS and rgb:
        wrong.append(f"--rgb: only with --to {', '.join(GRAPHS)}; --to {to} writes weights alone")
    if missing := [package for package in PACKAGES.get(to, ()) if find_spec(package) is None]:
        wrong.append(f"--to {to} needs {', '.join(missing)}: pip install {' '.join(missing)}")
    if wrong:
        raise InputError("; ".join(wrong))
    check_writable(files[0].parent if files else Path(), "the working directory" if output is None else f"-o {output}")


def compare(network: "nn.Module", run: "Run", target: Path, *, half: bool = False) -> float:
    """Return the largest absolute difference between a file's output and the network's.

    Raises:
        InputError: The shapes differ, or the difference exceeds TOLERANCE; with `half`, the root mean square exceeds
            HALF_TOLERANCE.
    """
    import torch

    largest = 0.0
    for n, height, width in SHAPES:
        lr = torch.rand(n, network.num_channels, height, width, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            expected = network(lr)
            sr = run(lr)
        if sr.shape != expected.shape:
            raise InputError(
                f"{target} was not written: for an image {tuple(lr.shape)} its output is {tuple(sr.shape)}, expected "
                f"{tuple(expected.shape)}. {WAY_OUT}"
            )
        difference = (sr - expected).abs().max().item()
        error = (sr - expected).square().mean().sqrt().item() if half else difference
        tolerance = HALF_TOLERANCE if half else TOLERANCE
        if not error <= tolerance * max(1.0, expected.abs().max().item()):  # NaN as well
            raise InputError(
                f"{target} was not written: for an image {tuple(lr.shape)} its output differs from torch's by "
                f"{error:.1e}. {WAY_OUT}"
            )
        largest = max(largest, difference)
    return largest
