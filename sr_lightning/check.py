"""Check images before a training: python -m sr_lightning.check data=t91 scale=x3."""

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from sr_lightning.errors import InputError, find_input_error, raise_all, require_training_packages

require_training_packages(__name__)

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sr_lightning.cli import compose_config
from sr_lightning.data.sources import (
    Pair,
    UnpairedError,
    benchmark_folder,
    benchmark_names,
    benchmark_set,
    check_benchmarks,
    folder_pairs,
    image_folder,
)
from sr_lightning.training.checks import check_numbers
from sr_lightning.utils.commands import run_command
from sr_lightning.utils.cores import bound_spinning
from sr_lightning.utils.large_imports import large_imports
from sr_lightning.utils.markdown import markdown_table
from sr_lightning.utils.messages import MAX_LISTED, printable

if TYPE_CHECKING:
    from sr_lightning.data.findings import Finding

DESCRIPTION = """Check images before a training, and print all findings in one table: unreadable files, incomplete
pairs, sizes, the same picture twice or in training and in a test set (also cropped, rescaled, compressed, flipped or
rotated), LR that does not belong to its HR or is not MATLAB's. The exit code is 1 if there are errors. About 0.1 s per
image; nothing is written, but a damaged cache of decoded images is removed."""
EXAMPLE = """DATA is any setting of train.py, or folders: the first as training images, the others as test sets. With
settings, the training and validation images and all test sets of data_root are checked (benchmarks=[Set5]: only these).

example:
  python -m sr_lightning.check data=t91_bsds scale=x3
  python -m sr_lightning.check data=folder data.hr=photos data.lr=photos_x2 scale=x2
  python -m sr_lightning.check photos/train photos/test"""


ListImages = Callable[[], tuple[list[Pair], ...]]  # the images of one or several sets


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code: 0; 1 if there are errors; 130, 143 or 129 after Ctrl-C, SIGTERM or SIGHUP.
    """
    parser = argparse.ArgumentParser(
        "python -m sr_lightning.check",
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", nargs="+", metavar="DATA", help="settings of train.py, or folders of images")
    words = parser.parse_args(arguments).data
    bound_spinning()
    return run_command(partial(_check, words))


def _check(words: Sequence[str]) -> int:
    try:
        return check([word for word in words if "=" in word], [word for word in words if "=" not in word])
    except OmegaConfBaseException as error:  # of a reference to a key that does not exist
        raise InputError(str(error)) from error


def check(overrides: Sequence[str], folders: Sequence[str]) -> int:
    """Examine what a training with these settings uses, or else folders; print the findings and return the exit code.

    Raises:
        InputError: The settings are wrong.
    """
    if overrides and folders:
        raise InputError(f"give settings or folders, not both: {' '.join(folders)} has no `=`")
    cfg = settings(overrides)
    sources = dict(sources_of_folders(folders) if folders else sources_of_training(cfg, overrides))
    sets, unpaired = list_images(sources)

    with large_imports():
        from sr_lightning.data.findings import Finding, examine, examine_folders, summary

    findings = [Finding(True, at, "", line.strip()) for at, error in unpaired.items() for line in error.splitlines()]
    patch_size = 1 if folders or cfg.data.skip_small else cfg.data.patch_size
    images, of_two = examine(sets, cfg.scale, patch_size)
    findings += [finding for image in images for finding in image.findings] + of_two + examine_folders(sets)
    if not (folders or unpaired):
        findings += damaged_caches(cfg)
    print(f"{markdown_table(summary(images))}\n\n{report(findings)}", flush=True)
    return int(any(finding.is_error for finding in findings))


def damaged_caches(cfg: DictConfig) -> Iterator["Finding"]:
    """Yield the sets whose decoded images in the cache were damaged, and are removed."""
    from sr_lightning.data.findings import Finding

    text = "its decoded images in the cache are damaged, or of an earlier version: removed, the next run makes new ones"
    try:
        whole = instantiate(cfg.data, _convert_="all").verify_stores()
    except InputError:  # unusable files, which are findings of their own
        return
    for place, is_whole in zip(("training", "validation"), whole, strict=True):
        if not is_whole:
            yield Finding(False, place, "", text)


def list_images(sources: Mapping[tuple[str, ...], ListImages]) -> tuple[dict[str, list[Pair]], dict[str, str]]:
    """Return the images of each set, of incomplete sets those that are complete; and sets -> message about the others.

    Raises:
        InputError: Sets that do not exist.
    """
    sets, unpaired, missing = {}, {}, []
    for names, list_pairs in sources.items():
        try:
            sets |= zip(names, list_pairs(), strict=True)
        except Exception as error:
            cause = find_input_error(error)
            if cause is None:
                raise
            if isinstance(cause, UnpairedError):
                sets[names[0]] = cause.pairs
                unpaired[", ".join(names)] = str(cause)
            else:
                missing.append(str(cause))
    if missing:
        raise InputError("\n".join(missing))
    return sets, unpaired


def sources_of_folders(folders: Sequence[str]) -> Iterator[tuple[tuple[str, ...], ListImages]]:
    """Yield the first folder as training images, the others as test sets."""
    for name, folder in zip(("training", *folders[1:]), folders, strict=True):
        yield (name,), lambda folder=folder: (image_folder(folder),)


def sources_of_training(cfg: DictConfig, overrides: Sequence[str]) -> Iterator[tuple[tuple[str, ...], ListImages]]:
    """Yield training, validation and test sets; the latter as given, or all that exist.

    Raises:
        InputError: The settings name no images.
    """
    data = cfg.data
    if data.get("_target_") == "sr_lightning.data.FolderDataModule":
        if OmegaConf.is_missing(data, "hr") or data.hr is None:
            raise InputError("data=folder needs data.hr=DIR, the folder of the HR images")
        if data.val_hr is None:
            arguments = (data.hr, data.lr, data.val_hr, data.val_lr, data.val_fraction, data.scale)
            yield ("training", "validation"), lambda: folder_pairs(*arguments)
        else:
            yield ("training",), lambda: (image_folder(data.hr, data.lr, scale=data.scale),)
            yield ("validation",), lambda: (image_folder(data.val_hr, data.val_lr, scale=data.scale),)
    elif "train" in data and "val" in data:
        for name, part in (("training", data.train), ("validation", data.val)):
            yield (name,), lambda part=part: (instantiate(part),)
    else:
        raise InputError("these settings name no images: choose data= of `python train.py --help`")
    check_benchmarks(cfg.benchmarks)
    given = any(override.startswith("benchmarks=") for override in overrides)
    names = [str(name) for name in cfg.benchmarks] if given else benchmark_names(cfg.data_root)
    raise_all(*(partial(benchmark_folder, cfg.data_root, name) for name in names))
    for name in names:
        yield (name,), lambda name=name: (benchmark_set(cfg.data_root, name, cfg.scale),)


def settings(overrides: Sequence[str]) -> DictConfig:
    """Compose the config of train.py.

    Raises:
        InputError: There is no such setting or option.
    """
    cfg = compose_config("train", ["name=check", "run_dir=null", *overrides])
    try:
        check_numbers(cfg)
    except OmegaConfBaseException as error:
        raise InputError(str(error)) from None
    return cfg


def report(findings: Sequence["Finding"]) -> str:
    """Format the findings as one table, errors first, and count them. Of many equal ones the first are shown."""
    shown: dict[tuple, list[Finding]] = defaultdict(list)
    for finding in sorted(findings, key=lambda finding: not finding.is_error):
        shown[finding.is_error, finding.place, re.split(r"[\d/(]", finding.text)[0]].append(finding)
    rows = []
    for (is_error, place, _), equal in shown.items():
        level = "error" if is_error else "warning"
        rows += [[level, place, one_line(finding.image), one_line(finding.text)] for finding in equal[:MAX_LISTED]]
        if len(equal) > MAX_LISTED:
            rows.append([level, place, "...", f"and {len(equal) - MAX_LISTED} more"])
    table = [markdown_table([["", "set", "image", "finding"], *rows]), ""] if rows else []
    errors = sum(finding.is_error for finding in findings)
    return "\n".join([*table, f"errors: {errors}, warnings: {len(findings) - errors}"])


def one_line(text: str) -> str:
    """Escape the control characters of a text, also newlines."""
    return printable(text).replace("\n", "\\n")


if __name__ == "__main__":
    sys.exit(main())
