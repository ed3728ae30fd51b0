"""Draw the figure of a paper from one image: python -m sr_lightning.figure RUN --image butterfly."""

import argparse
import difflib
import logging
import math
import os
import re
import sys
import textwrap
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sr_lightning.errors import InputError, raise_all, require_training_packages

require_training_packages(__name__)

from sr_lightning.data.sources import Pair, benchmark_folder, benchmark_names, benchmark_set, image_folder
from sr_lightning.images.files import image_size
from sr_lightning.images.folder import short_name
from sr_lightning.pretrained.web import ADDRESSES
from sr_lightning.runs.folder import RunFolder, find_checkpoint
from sr_lightning.runs.saved_config import read_config
from sr_lightning.utils.atomic_files import check_writable, replacing
from sr_lightning.utils.commands import run_command
from sr_lightning.utils.cores import bound_spinning
from sr_lightning.utils.large_imports import large_imports
from sr_lightning.utils.messages import printable

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from sr_lightning.evaluation.scoring import Sample, ScoredModel

log = logging.getLogger(__name__)

SUFFIXES = (".png", ".pdf")
PANEL = 240  # pixels: geometric mean of a panel's sides, at most; a crop is enlarged by a whole number
LONGEST = 480  # pixels of a panel's longer side; a longer crop is not enlarged, and has larger letters
NARROWEST = 120  # pixels that a panel's caption takes
DPI, LETTERS, LINE, GAP = 150, 8, 22, 8  # letters in points; height of a line and distance of panels in pixels
COLOUR = "#e6194b"  # of the square
FONT = "DejaVu Sans"  # comes with matplotlib

DESCRIPTION = """Draw the figure of a paper: HR with a square marked, and the pixels in the square of HR, LR, bicubic
and each network, with the PSNR of the whole image below each. The numbers are those of evaluate.py."""
EXAMPLE = """example:
  python -m sr_lightning.figure outputs/RUN --image butterfly
  python -m sr_lightning.figure A=outputs/RUN_A Ours=outputs/RUN_B --image butterfly --crop 96,60,48,36 -o a.pdf"""


class Box(NamedTuple):
    """A rectangle of an image, in HR pixels."""

    left: int
    top: int
    width: int
    height: int

    def __str__(self) -> str:
        return ",".join(map(str, self))

    @property
    def pixels(self) -> tuple[slice, slice]:
        """Rows and columns."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


@dataclass(frozen=True)
class Versions:
    """One image in all its versions, and its scores.

    Attributes:
        pictures: "HR", "LR" (enlarged without smoothing), "bicubic" and models -> uint8 (H, W, 3).
        psnrs: "bicubic" and models -> PSNR of the whole image in dB.
        channel: Scored by the PSNR.
        protocol: Its name.
        chosen: Box where the first model gains most over bicubic.
    """

    pictures: dict[str, "np.ndarray"]
    psnrs: dict[str, float]
    channel: str
    protocol: str
    chosen: Box


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code: 0; 1 if nothing was written; 130, 143 or 129 after Ctrl-C, SIGTERM or SIGHUP.
    """
    options = parser().parse_args(arguments)
    bound_spinning()
    return run_command(lambda: print(printable(figure(**vars(options)))))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m sr_lightning.figure",
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="run's directory (its best checkpoint), or a checkpoint; TEXT=RUN writes TEXT below its crop",
    )
    parser.add_argument("--image", required=True, metavar="NAME", help="image of a test set, or an image file")
    parser.add_argument("--set", metavar="SET", dest="benchmark", help="its test set (default: the one that has it)")
    parser.add_argument(
        "--crop", metavar="X,Y,W,H", help="square in HR pixels (default: where the first RUN gains most over bicubic)"
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", help=".png or .pdf, replaced if it exists (default: SET_NAME_xSCALE.png)"
    )
    parser.add_argument(
        "--data-root",
        default=os.environ.get("SR_DATA_ROOT", "data"),
        metavar="DIR",
        help="folder that contains `benchmark` (default: SR_DATA_ROOT, or data)",
    )
    parser.add_argument(
        "--allow", action="append", metavar="PACKAGE", help="package besides this project that may define a network"
    )
    return parser


def figure(
    runs: Sequence[str | Path],
    image: str,
    benchmark: str | None = None,
    crop: str | None = None,
    output: str | Path | None = None,
    data_root: str | Path = "data",
    allow: Sequence[str] | None = None,
) -> str:
    """Write the figure; the arguments are those of the command.

    Returns:
        One line: file, image, crop, scores and protocol.

    Raises:
        InputError: A run, image or package is missing, the runs are of several scales, the crop is not in the image,
            or the file cannot be written.
    """
    box = None if crop is None else parse_crop(crop)
    labels, runs = zip(*map(label_and_path, runs), strict=True)
    raise_all(
        partial(check_output, output), partial(check_labels, labels), *(partial(find_checkpoint, run) for run in runs)
    )
    checkpoints = [find_checkpoint(run) for run in runs]
    check_scales(runs, [scale_of(checkpoint) for checkpoint in checkpoints])
    dataset, pair = find_image(data_root, benchmark, image)
    if box:
        check_crop(box, image, image_size(pair.hr))

    with large_imports():
        from sr_lightning.evaluation.evaluate import requested_models

    models = requested_models(checkpoints, allow=allow)
    models = [replace(model, name=label or model.name) for label, model in zip(labels, models, strict=True)]
    check_scales(runs, [model.network.scale for model in models])
    scale = models[0].network.scale
    if dataset is not None:
        pair = next(each for each in benchmark_set(data_root, dataset, scale) if each.name == pair.name)
    versions = make_versions(models, dataset or "file", pair)
    if box:
        check_crop(box, f"{image} at x{scale}", versions.pictures["HR"].shape[:2])
    box = box or versions.chosen
    name = " ".join(pair.name.split())
    title = f"{name}, {dataset} ×{scale}" if dataset else f"{name} ×{scale}"
    path = Path(output or f"{file_name(dataset, pair.name)}_x{scale}.png").expanduser()
    scores = ", ".join(f"{name} {psnr:.2f} dB" for name, psnr in versions.psnrs.items())
    about = f"{title}, crop {box}; PSNR of the whole image by {versions.protocol}: {scores}"
    draw(path, versions, box, title, about)
    return f"{path}: {about}"


def file_name(dataset: str | None, name: str) -> str:
    return short_name("_".join(re.sub(r"[^\w.+-]+", "_", part) for part in (dataset, name) if part))


def label_and_path(run: str | Path) -> tuple[str, str | Path]:
    """Split `TEXT=RUN`; a path that exists, or an address, is no label."""
    label, equals, path = str(run).partition("=")
    is_path = Path(run).expanduser().exists() or str(run).startswith(ADDRESSES)
    return (label, path) if equals and not is_path else ("", run)


def check_labels(labels: Sequence[str]) -> None:
    """Check that given labels differ from one another and from those of the other crops.

    Raises:
        InputError: Names those that do not.
    """
    times = Counter([*filter(None, labels), "HR", "LR", "bicubic"])
    if several := [label for label, count in times.items() if count > 1]:
        raise InputError(f"{', '.join(several)}: the label of several crops; give each its own")


def parse_crop(text: str) -> Box:
    """Read `X,Y,W,H`.

    Raises:
        InputError: It is no crop.
    """
    match = re.fullmatch(r"(\d{1,9}),(\d{1,9}),([1-9]\d{0,8}),([1-9]\d{0,8})", re.sub(r"\s", "", text), re.ASCII)
    if match is None:
        raise InputError(f"--crop {text}: give left,top,width,height in HR pixels, such as --crop 96,60,48,36")
    return Box(*map(int, match.groups()))


def check_crop(box: Box, image: str, size: tuple[int, int]) -> None:
    """Check that a crop is within an image of `size` (H, W).

    Raises:
        InputError: It is not.
    """
    height, width = size
    if box.left + box.width > width or box.top + box.height > height:
        raise InputError(
            f"--crop {box} ends at x {box.left + box.width}, y {box.top + box.height}, but {image} has "
            f"{width}x{height} pixels (width x height)"
        )


def check_output(output: str | Path | None) -> None:
    """Check name and folder of the file, and that the package which draws it is installed.

    Raises:
        InputError: Names what is wrong.
    """
    path = None if output is None else Path(output).expanduser()
    if path is not None and path.is_dir():
        raise InputError(f"-o {output} is a directory: name a file, such as {Path(output, 'figure.pdf')}")
    if path is not None and path.suffix.lower() not in SUFFIXES:
        raise InputError(f"-o {output}: the name must end in {' or '.join(SUFFIXES)}")
    check_writable(path.parent if path else Path(), f"-o {output}" if path else "the working directory")
    if find_spec("matplotlib") is None:
        raise InputError("figures need matplotlib: pip install 'sr_lightning[train]', or 'matplotlib>=3.10,<4'")


def scale_of(checkpoint: Path) -> int | None:
    """Read the scale of a run from the config beside its checkpoint; None if there is none that can be read."""
    config = RunFolder(checkpoint.parent.parent).config
    try:
        return read_config(config).get("scale") if config.is_file() else None
    except InputError:
        return None  # the checkpoint has it as well


def check_scales(runs: Sequence[str | Path], scales: Sequence[int | None]) -> None:
    """Check that all runs whose scale is known have the same.

    Raises:
        InputError: Names the scale of each.
    """
    if len({scale for scale in scales if scale is not None}) > 1:
        named = ", ".join(f"{run} is x{scale}" for run, scale in zip(runs, scales, strict=True) if scale is not None)
        raise InputError(f"a figure shows networks of one scale, but {named}")


def find_image(root: str | Path, benchmark: str | None, image: str) -> tuple[str | None, Pair]:
    """Find an image by the name of its file, or in a test set, or in all of them.

    Returns:
        Test set, None for a file; and the image, without its LR.

    Raises:
        InputError: There is none, or there are several.
    """
    if benchmark is None and Path(image).expanduser().is_file():
        file = Path(image).expanduser()
        return None, Pair(file.stem, file)
    names = [benchmark] if benchmark is not None else benchmark_names(root)
    sets = {name: image_folder(benchmark_folder(root, name) / "HR") for name in names}
    found = [(name, pair) for name, pairs in sets.items() for pair in pairs if pair.name == image]
    if len(found) > 1:
        raise InputError(f"--image {image} is in several test sets: add --set {' or --set '.join(n for n, _ in found)}")
    if not found:
        likely = difflib.get_close_matches(image, [pair.name for pairs in sets.values() for pair in pairs], 1)
        hint = f"did you mean {likely[0]}?" if likely else "name one of their images, or an image file"
        searched = f"test set {', '.join(sets)}" if sets else f"any test set, as {root} has no benchmark/<name>/HR"
        raise InputError(f"--image {image}: neither a file nor an image of {searched}; {hint}")
    return found[0]


def make_versions(models: "Sequence[ScoredModel]", dataset: str, pair: Pair) -> Versions:
    """Score an image as evaluate.py does, and make its versions.

    Raises:
        InputError: As of `Scorer.score_sets`.
    """
    from sr_lightning.degradations import Bicubic
    from sr_lightning.evaluation.crops import find_crops
    from sr_lightning.evaluation.scoring import Scorer
    from sr_lightning.metrics import Protocol

    protocol, scale = Protocol(), models[0].network.scale
    outputs = _Outputs()
    Scorer(protocol, Bicubic(), {}).score_sets(models, {dataset: [pair]}, outputs)
    border, first = protocol.border_for(scale), list(outputs.models)[:2][-1]
    compared = {name: outputs.models[name] for name in ("bicubic", first)}
    crops = find_crops(compared, outputs.hr, border)
    height, width = outputs.hr.shape[1:]
    side = min(48, height, width)
    chosen = (
        Box(crops[0].left, crops[0].top, crops[0].size, crops[0].size)
        if crops
        else Box((width - side) // 2, (height - side) // 2, side, side)
    )
    planes = {"HR": outputs.hr, "LR": outputs.lr.repeat(scale, 1).repeat(scale, 2), **outputs.models}
    pictures = {name: _rgb(picture) for name, picture in planes.items()}
    psnrs = {name: row[f"psnr_{protocol.channel}"] for name, row in outputs.rows.items()}
    return Versions(pictures, psnrs, protocol.channel, next(iter(outputs.rows.values()))["protocol"], chosen)


class _Outputs:
    """Receiver of the outputs for one image, uint8 (1 or 3, H, W): `lr`, `hr`, and of `models` by name."""

    def add(
        self,
        dataset: str,
        scale: int,
        sample: "Sample",
        outputs: "Mapping[str, Tensor]",
        rows: Mapping[str, Mapping[str, Any]],
    ) -> None:
        from sr_lightning.color import to_uint8
        from sr_lightning.inference import in_colour

        self.lr, self.hr = (to_uint8(image[0]).cpu().numpy() for image in (sample.lr, sample.hr))
        self.models = {name: to_uint8(in_colour(sr, sample.lr, scale)[0]).cpu().numpy() for name, sr in outputs.items()}
        self.rows = rows


def _rgb(picture: "np.ndarray") -> "np.ndarray":
    """Convert (1 or 3, H, W) to (H, W, 3)."""
    return picture.transpose(1, 2, 0).repeat(3 // len(picture), 2)


def part_around(box: Box, size: tuple[int, int]) -> Box:
    """Return the part of an image of `size` (H, W) that is shown: all of it, unless it is very wide or very tall."""
    height, width = size
    shown_width = min(width, max(box.width, round(1.6 * height)))
    shown_height = min(height, max(box.height, round(1.6 * width)))
    left = min(max(box.left + (box.width - shown_width) // 2, 0), width - shown_width)
    top = min(max(box.top + (box.height - shown_height) // 2, 0), height - shown_height)
    return Box(left, top, shown_width, shown_height)


def draw(path: Path, versions: Versions, box: Box, title: str, about: str) -> None:
    """Write the figure: the whole HR at the left, and the crops in one or two rows beside it.

    In a PNG, the pixels of a crop are squares of whole pixels; in a PDF, they are stored without loss.

    Args:
        path: .png or .pdf.
        versions: Of the image.
        box: The crop.
        title: Below the whole image.
        about: Stored in the file.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.font_manager import findfont, get_font
    from matplotlib.patches import Rectangle

    longest = max(box.width, box.height)
    zoom = max(1, min(round(PANEL / math.sqrt(box.width * box.height)), LONGEST // longest))
    unit = max(1, round(longest / LONGEST))  # letters grow with crops that are larger than a panel
    line, gap, dpi = LINE * unit, GAP * unit, DPI * unit
    captions = _captions(versions, max(box.width * zoom, NARROWEST * unit) / unit)
    caption = line * max(len(lines) for lines in captions.values())
    rows = 1 if len(captions) <= 3 else 2
    columns = math.ceil(len(captions) / rows)
    panel_width, panel_height = box.width * zoom, box.height * zoom
    slot = max(panel_width, NARROWEST * unit)

    part = part_around(box, versions.pictures["HR"].shape[:2])
    whole_height = rows * panel_height + (rows - 1) * (caption + gap)
    whole_width = max(round(whole_height * part.width / part.height), 1)
    first = max(whole_width, NARROWEST * unit)
    width, height = first + columns * (gap + slot), whole_height + caption
    drawn = Figure(figsize=(width / dpi, height / dpi), dpi=dpi)

    def put(picture: "np.ndarray", x: int, y: int, slot: int, lines: Sequence[str], best: str = "") -> Any:
        """Place a picture with its lines in a slot whose top left corner is (x, y)."""
        tall, wide = picture.shape[:2]
        place = (x + (slot - wide) // 2, height - y - tall)
        axes = drawn.add_axes((place[0] / width, place[1] / height, wide / width, tall / height), frameon=False)
        axes.set_axis_off()
        axes.imshow(picture, interpolation="none", aspect="auto")
        for number, text in enumerate(lines):
            drawn.text(
                *((x + slot / 2) / width, (place[1] - (number + 0.55) * line) / height, text),
                ha="center",
                va="center",
                fontsize=LETTERS,
                parse_math=False,
                fontweight="bold" if text == best else "normal",
            )
        return axes

    glyphs = get_font(findfont(FONT)).get_charmap()
    if missing := sorted({letter for text in (title, *captions) for letter in text if ord(letter) not in glyphs}):
        log.warning("boxes are drawn for %s, which %s lacks: use TEXT=RUN in other letters", " ".join(missing), FONT)
    rc = {"pdf.fonttype": 42, "font.family": [FONT]}  # TrueType: publishers refuse type 3
    with rc_context(rc), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        axes = put(_resized(versions.pictures["HR"][part.pixels], whole_width, whole_height), 0, 0, first, [title])
        factor_x, factor_y = whole_width / part.width, whole_height / part.height
        corner = ((box.left - part.left) * factor_x - 0.5, (box.top - part.top) * factor_y - 0.5)
        sides = (box.width * factor_x, box.height * factor_y)
        axes.add_patch(Rectangle(corner, *sides, fill=False, edgecolor=COLOUR, linewidth=1.2, clip_on=False))
        best = f"{max(versions.psnrs.values()):.2f} dB"
        for number, (name, lines) in enumerate(captions.items()):
            row, column = divmod(number, columns)
            pixels = versions.pictures[name][box.pixels].repeat(zoom, 0).repeat(zoom, 1)
            x, y = first + gap + column * (slot + gap), row * (panel_height + caption + gap)
            put(pixels, x, y, slot, lines, best)
        is_pdf = path.suffix.lower() == ".pdf"
        facts = {"Title": title, "Subject": about, "CreationDate": None} if is_pdf else {"Description": about}
        with replacing(path) as temporary:
            drawn.savefig(temporary, format="pdf" if is_pdf else "png", dpi=dpi, metadata=facts)


def _captions(versions: Versions, width: float) -> dict[str, list[str]]:
    """Return the lines below each crop, the score last; names are broken to fit into `width` pixels."""
    scores = {"HR": f"PSNR ({versions.channel.upper()})", "LR": ""}
    scores |= {name: f"{psnr:.2f} dB" for name, psnr in versions.psnrs.items()}
    names = {name: textwrap.wrap(name, max(int(width / 10), 8)) for name in versions.pictures}
    most = max(len(lines) for lines in names.values())
    return {name: [*lines, scores[name]] + [""] * (most - len(lines)) for name, lines in names.items()}


def _resized(picture: "np.ndarray", width: int, height: int) -> "np.ndarray":
    import numpy as np
    from PIL import Image

    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize((width, height), Image.Resampling.LANCZOS))


if __name__ == "__main__":
    sys.exit(main())
