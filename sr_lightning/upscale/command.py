"""Upscale images and videos with a trained network: sr-upscale photo.jpg -c best.ckpt -o big."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from sr_lightning.checkpoints.options import add_network_option
from sr_lightning.errors import InputError
from sr_lightning.images.formats import IMAGE_FORMATS, PNG_COMPRESSION
from sr_lightning.pretrained import card_of, default_for, included
from sr_lightning.runs.folder import find_checkpoint
from sr_lightning.upscale.options import check_options
from sr_lightning.upscale.plan import STDOUT, check_output, check_suffix, find_inputs, plan, without_results
from sr_lightning.upscale.size import parse_factor, size_of_results, suffix_of
from sr_lightning.utils.cores import bound_spinning
from sr_lightning.utils.devices import PRECISIONS
from sr_lightning.utils.large_imports import large_imports
from sr_lightning.utils.messages import escape_messages, listing
from sr_lightning.utils.signals import Interrupted, interruptible

log = logging.getLogger("sr_lightning.upscale")

DESCRIPTION = """Upscale images (PNG, JPEG, WebP, TIFF, BMP) and videos with a trained network: your own, or one
that comes with the package.

photo.jpg becomes photo_x4.jpg beside it, for a network of scale 4, or
OUT/photo_x4.jpg. Metadata, depth and limits: docs/upscale.md."""
EXAMPLE = """examples:
  sr-upscale photo.jpg
  sr-upscale photo.jpg -c outputs/RUN -o big
  sr-upscale scans/ 'more/**/*.png' clip.mp4 -c best.ckpt -o big --exist skip
  sr-upscale -r photos -c outputs/RUN -o big --to 3840x2160
  cat a.jpg | sr-upscale - -c outputs/RUN --format png > b.png"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code: 0; 1 if anything failed; 130, 143 or 129 after Ctrl-C, SIGTERM or SIGHUP.
    """
    options = parser().parse_args(arguments)
    bound_spinning()
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("sr_lightning").setLevel(logging.INFO)
    escape_messages()
    try:
        with interruptible():
            failures = run(options)
    except InputError as error:
        log.error("error: %s", error)
        return 1
    except OSError as error:  # a folder without permission to read, a name that is too long
        log.error("error: %s", f"{error.filename}: {error.strerror}" if error.filename else error)
        return 1
    except Interrupted as stop:
        way_on = "run the same command again" if options.exist == "skip" else "add --exist skip"
        log.error("interrupted; the results written so far are complete. To continue, %s", way_on)
        return int(stop.code)
    return 1 if failures else 0


def entry_point() -> None:
    """Run the command from a shell."""
    sys.exit(main())


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "sr-upscale", description=DESCRIPTION, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="files, folders, patterns, or - for standard input")
    parser.add_argument(
        *("-c", "--ckpt"),
        help="network: a file of weights, a run's directory (its best), https://HOST/FILE#sha256=HEX, hf:USER/NAME, "
        f"wandb:ENTITY/PROJECT/NAME:ALIAS, or one that comes with the package: {', '.join(included())} (default: luma, "
        "of the --factor)",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=_path,
        help="folder; for one input also a file, or - for standard output (default: beside the input, of - standard "
        "output)",
    )
    parser.add_argument("-r", "--recursive", action="store_true", help="search subfolders, and keep them below OUT")
    parser.add_argument("--suffix", help="ends the names of results (default: _x4, for a factor of 4)")
    parser.add_argument(
        "--factor", help="of enlargement, such as 3 or 2.5: the network as often as needed, then bicubic down"
    )
    parser.add_argument(
        "--to", metavar="SIZE", help="of results: width 4096x, height x2160, or 4096x2160, into which they fit"
    )
    parser.add_argument("--format", choices=IMAGE_FORMATS, help="format of images (default: that of the input)")
    parser.add_argument("--quality", type=int, default=95, help="of JPEG and WebP; 100: lossless WebP (default: 95)")
    parser.add_argument(
        "--png-compression",
        type=int,
        default=PNG_COMPRESSION,
        metavar="N",
        help=f"of PNG, 0 to 9; 6 is a little smaller and takes several times as long (default: {PNG_COMPRESSION})",
    )
    parser.add_argument(
        "--exist",
        choices=["error", "skip", "overwrite"],
        default="error",
        help="treatment of results that exist (default: error, before anything is computed)",
    )
    parser.add_argument(
        "--self-ensemble", action="store_true", help="average over 8 flips and rotations, in 8 times the time"
    )
    parser.add_argument(
        "--tile",
        type=_tile,
        default="auto",
        metavar="auto|N|0",
        help="side of tiles in input pixels; 0: the whole image at once (default: auto, fast with little memory). "
        "The result is the same, except for networks that see the whole image",
    )
    parser.add_argument(
        "--device",
        default="auto",
        metavar="auto|cpu|cuda|cuda:N",
        help="auto: a GPU if available; cuda:1: the second GPU (default: auto)",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="bfloat16 is faster on some processors, float16 on GPUs, with errors of about a grey level; "
        "auto: the fastest as measured, if its loss of PSNR is negligible (default: float32)",
    )
    add_network_option(parser)
    parser.add_argument(
        "--allow", action="append", metavar="PACKAGE", help="package besides this project that may define the network"
    )
    return parser


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("an empty name; the working directory is .")
    return Path(text).expanduser()


def _tile(text: str) -> int | str:
    return int(text) if text.isdecimal() else text  # `check_options` names the valid ones


def run(options: argparse.Namespace) -> list[str]:
    """Upscale the inputs; the options are checked before torch is imported.

    Returns:
        One line per file that failed.

    Raises:
        InputError: An invalid input, checkpoint, option or name of a result; nothing was computed.
    """
    size_of = size_of_results(options.factor, options.to)
    if not 1 <= options.quality <= 100:
        raise InputError(f"--quality {options.quality}: choose a number from 1 to 100")
    if not 0 <= options.png_compression <= 9:
        raise InputError(f"--png-compression {options.png_compression}: choose a number from 0 to 9")
    check_options(options.device, options.precision, options.tile)
    check_suffix(options.suffix, options.out)
    checkpoint = find_checkpoint(
        default_for(parse_factor(options.factor) if options.factor else None) if options.ckpt is None else options.ckpt
    )
    sources = find_inputs(options.inputs, options.out, recursive=options.recursive)
    out = STDOUT if options.out is None and options.inputs == ["-"] else options.out
    check_output(sources, out, options.format)
    with large_imports():
        from sr_lightning.upscale.pipeline import upscale_all
        from sr_lightning.upscale.upscaler import Upscaler
    from sr_lightning.utils.cores import limit_threads
    from sr_lightning.utils.malloc import keep_freed_memory

    keep_freed_memory()
    limit_threads()
    net = Upscaler.load(
        checkpoint,
        options.allow,
        dict(options.network),
        device=options.device,
        precision=options.precision,
        tile=options.tile,
        self_ensemble=options.self_ensemble,
    )
    suffix = suffix_of(options.factor, options.to, net.scale) if options.suffix is None else options.suffix
    chosen = without_results(sources, suffix) if out is None else sources
    jobs = plan(chosen, out, suffix, options.format, options.exist)
    log.info("%s", net)
    if options.ckpt is None:
        log.info("%s", about_default(checkpoint))
    if net.sees_whole_image:
        log.info(
            "every pixel depends on the whole image: %s",
            f"tiles of {options.tile} change the result" if net.tile else "it is not split into tiles",
        )
    if skipped := len(chosen) - len(jobs):
        log.info("%d of %d skipped: their results exist", skipped, len(chosen))
    failures = upscale_all(net, jobs, size_of, options.quality, options.png_compression)
    places = {STDOUT: "standard output", None: "the folders of the inputs"}
    log.info("%d of %d written to %s", len(jobs) - len(failures), len(jobs), places.get(out, out))
    if failures:
        log.error("error: %d failed:%s", len(failures), listing(failures))
    return failures


def about_default(path: Path) -> str:
    """Describe the network that is used without `--ckpt`."""
    card = card_of(path)
    gains = [f"{scores['psnr'] - scores['bicubic']:+.1f} dB on {name}" for name, scores in card["scores"].items()]
    return (
        f"{path.stem} comes with this program: {' and '.join(gains)} over bicubic. It does not remove the noise of "
        "JPEG. Other networks: --ckpt (sr-models --weights)"
    )
