"""Export a trained network for other programs: sr-export -c best.ckpt --to onnx."""

import argparse
import copy
import json
import logging
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sr_lightning.checkpoints.options import add_network_option
from sr_lightning.errors import InputError
from sr_lightning.runs.folder import find_checkpoint
from sr_lightning.utils.atomic_files import check_writable, replacing
from sr_lightning.utils.commands import run_command
from sr_lightning.utils.large_imports import large_imports
from sr_lightning.utils.messages import reason

log = logging.getLogger("sr_lightning.export")  # also if it is __main__

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from sr_lightning.checkpoints.checkpoint import Trained

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
METADATA = "sr_lightning.json"  # extra file inside a torch.export file
SHAPES = ((1, 17, 23), (2, 9, 32), (3, 24, 5))  # batch, height and width of the images that verify a file
TOLERANCE = 1e-4  # relative to the output's range; 1/40 of a grey level
HALF_TOLERANCE = 1 / 255  # of float16, root mean square: deep networks have single pixels with more

WAY_OUT = "Try another version of torch, or another format"

DESCRIPTION = """Export a trained network for other programs. Formats and how to read them: docs/export.md.

onnx          one file for onnxruntime, TensorRT, OpenVINO, ...; any batch, height and width
ncnn          NAME.param and NAME.bin, for ncnn, Real-ESRGAN's programs, Upscayl, ...; any height and width
torch_export  one file for torch.export.load, which does not need this project
safetensors   the weights, by the names of this project or another (--layout)
torch         the weights as spandrel, BasicSR or EDSR-PyTorch load them (--layout)

A file is written only if its output equals that of the network in the checkpoint."""
EXAMPLE = """example:
  sr-export -c outputs/RUN --to onnx -o espcn_x2.onnx
  sr-export -c outputs/RUN --to onnx --rgb --half -o espcn_x2_fp16.onnx
  sr-export -c edsr.ckpt --to torch --layout basicsr -o edsr_x2.pth"""


class Exported(NamedTuple):
    """A written file.

    Attributes:
        path: The file.
        difference: Largest absolute difference between its output and the network's, over SHAPES.
    """

    path: Path
    difference: float


Run = Callable[["Tensor"], "Tensor"]  # lr -> sr, as a file computes it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code of `run_command`.
    """
    options = parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO)
    return run_command(lambda: _export(options))


def _export(options: argparse.Namespace) -> None:
    path, difference = export(
        options.ckpt,
        options.to,
        options.output,
        options.layout,
        options.allow,
        dict(options.network),
        rgb=options.rgb,
        half=options.half,
    )
    size = sum(part.stat().st_size for part in parts(path, options.to)) / 1e6
    print(f"{path}, {size:.1f} MB: differs by at most {difference:.1e} from torch's output, on {len(SHAPES)} shapes")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "sr-export",
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-c", "--ckpt", required=True, help="file of weights, run's directory (its best), or as of sr-upscale"
    )
    parser.add_argument("--to", required=True, choices=SUFFIXES, help="output format")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="output file, replaced if it exists (default: named after run and scale)",
    )
    parser.add_argument("--layout", choices=LAYOUTS, default="ours", help="key names in safetensors and torch files")
    parser.add_argument(
        "--rgb", action="store_true", help="RGB images also for a luma network, colours inside the file"
    )
    parser.add_argument(
        "--half",
        action="store_true",
        help="images and computation in float16; of ncnn, safetensors and torch the stored weights",
    )
    add_network_option(parser)
    parser.add_argument(
        "--allow", action="append", metavar="PACKAGE", help="package besides this project that may define the network"
    )
    return parser


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


def write(trained: "Trained", to: str, path: Path, layout: str, *, rgb: bool, half: bool) -> Run:
    """Write a network or its weights in a format.

    Returns:
        The file as it computes.
    """
    if to not in GRAPHS:
        return write_weights(trained, path, layout, half)
    from sr_lightning.export.converted import Converted

    if rgb or half:
        network = copy.deepcopy(fused(trained.network))
        trained = replace(trained, network=Converted(network, rgb=rgb, half=half and to != "ncnn"))
    if to == "ncnn":
        return write_ncnn(trained, path, half)
    return write_onnx(trained, path) if to == "onnx" else write_torch_export(trained, path)


def write_onnx(trained: "Trained", path: Path) -> Run:
    """Write an ONNX file, weights included.

    Returns:
        The file, run by onnxruntime on the CPU.
    """
    import onnxruntime
    import torch

    with quiet():
        program = torch.onnx.export(
            fused(trained.network),
            (example(trained.network),),
            dynamo=True,
            input_names=["lr"],
            output_names=["sr"],
            dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),
            verbose=False,
        )
    for node in program.model.graph:
        node.metadata_props.clear()  # source positions with this machine's paths
    program.model.metadata_props.update(metadata(trained))
    program.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    dtype = dtype_of(trained.network)
    return lambda lr: torch.from_numpy(session.run(["sr"], {"lr": lr.to(dtype).numpy()})[0]).float()


def write_torch_export(trained: "Trained", path: Path) -> Run:
    """Write a program for torch.export.load, with JSON metadata in its extra file METADATA.

    Returns:
        The loaded program.
    """
    import torch

    sizes = {i: torch.export.Dim(name, min=1) for i, name in ((0, "batch"), (2, "height"), (3, "width"))}
    with quiet():
        network, lr = unfolded(fused(trained.network)), example(trained.network)
        program = torch.export.export(network, (lr,), dynamic_shapes=(sizes,))
        for module in program.graph_module.modules():
            for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
                node.meta.pop("stack_trace", None)  # this machine's paths
        torch.export.save(program, path, extra_files={METADATA: json.dumps(metadata(trained), indent=1)})
        loaded, dtype = torch.export.load(path).module(), dtype_of(network)
    return lambda lr: loaded(lr.to(dtype)).float()


def write_ncnn(trained: "Trained", path: Path, half: bool = False) -> Run:
    """Write NAME.param and NAME.bin; `half` stores the weights in float16.

    Returns:
        The files, run by ncnn.
    """
    from sr_lightning.export.ncnn_files import convert

    with quiet():
        return convert(unfolded(fused(trained.network)), path, half)


def write_weights(trained: "Trained", path: Path, layout: str, half: bool = False) -> Run:
    """Write the weights, with `half` in float16: safetensors, or a torch file if the suffix is .pth or .pt.

    Returns:
        The network with the weights read back from the file.
    """
    import torch

    from sr_lightning.checkpoints.interop import load_weights, save_weights

    network = copy.deepcopy(trained.network)
    save_weights(network.half() if half else network, path, layout, metadata=metadata(trained))
    network = copy.deepcopy(trained.network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(torch.nan)
    load_weights(network, path)
    return network


def fused(network: "nn.Module") -> "nn.Module":
    """Return the fused network, without gradients."""
    from sr_lightning.inference import fuse_for_inference

    return fuse_for_inference(network).requires_grad_(False)


def unfolded(network: "nn.Module") -> "nn.Module":
    """Replace folded upsamplers by their layers, in place: their slices want images of at least four pixels a side."""
    from sr_lightning.networks.layers import FoldedUpsampler

    for name, module in list(network.named_modules()):
        if isinstance(module, FoldedUpsampler):
            network.set_submodule(name, module.layers)
    return network


def dtype_of(network: "nn.Module") -> "torch.dtype":
    """Return the type of a network's images."""
    import torch

    return getattr(network, "dtype", torch.float32)


def example(network: "nn.Module") -> "Tensor":
    """Return an image to trace with, (2, C, 20, 24): tracing would treat equal sizes, and sizes of 1, as constants."""
    import torch

    return torch.rand(2, network.num_channels, 20, 24, dtype=dtype_of(network))


def metadata(trained: "Trained") -> dict[str, str]:
    """Describe the network, for storage in the file."""
    import torch

    from sr_lightning import __version__
    from sr_lightning.metrics.protocol import Protocol

    network = trained.network
    luma = (
        "BT.601 luma, black 16/255 and white 235/255: (65.481 R + 128.553 G + 24.966 B + 16) / 255 of RGB in [0, 1]; "
        "upscale chroma bicubically"
    )
    protocol = {key: value for key, value in trained.config["protocol"].items() if key != "_target_"}
    return {
        "sr_lightning": __version__,
        "torch": torch.__version__,
        "name": trained.name,
        "step": "unknown" if trained.step is None else str(trained.step),
        "scale": str(network.scale),
        "num_channels": str(network.num_channels),
        "receptive_radius": "whole image" if network.receptive_radius is None else str(network.receptive_radius),
        "images": f"lr (N, {network.num_channels}, h, w) -> sr (N, {network.num_channels}, {network.scale}h, "
        f"{network.scale}w), {str(dtype_of(network)).removeprefix('torch.')} in [0, 1], sr not clamped; "
        f"{'RGB' if network.num_channels == 3 else luma}",
        "network": json.dumps(trained.config["model"]["network"]),
        "protocol": Protocol(**protocol).name,
    }


def compare(network: "nn.Module", run: Run, target: Path, *, half: bool = False) -> float:
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


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the log lines and warnings of torch's exporters."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


if __name__ == "__main__":
    sys.exit(main())
