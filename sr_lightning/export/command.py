"""Command line: sr-export -c best.ckpt --to onnx."""

import argparse
import logging
from collections.abc import Sequence

from sr_lightning.checkpoints.options import add_network_option
from sr_lightning.export import LAYOUTS, SHAPES, SUFFIXES, export, log, parts
from sr_lightning.utils.commands import run_command

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
