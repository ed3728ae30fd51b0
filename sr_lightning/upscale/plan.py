"""Inputs of the upscale command and the names of its results. Imports neither torch nor Pillow."""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import NamedTuple

from sr_lightning.errors import InputError
from sr_lightning.images.folder import distinct, possible_names
from sr_lightning.images.formats import (
    IMAGE_SUFFIXES,
    UPSCALE_SUFFIXES,
    VIDEO_SUFFIXES,
    WRITABLE_IMAGE_SUFFIXES,
    WRITABLE_VIDEO_SUFFIXES,
)
from sr_lightning.utils.messages import listing

log = logging.getLogger("sr_lightning.upscale")
MAX_NAME = 255  # bytes of a file name, on most file systems


class Job(NamedTuple):
    """One file to make from another."""

    source: Path
    target: Path


def find_inputs(inputs: Iterable[str]) -> list[Path]:
    """List the files that arguments name, each once, in order.

    Args:
        inputs: Files, folders (without subfolders) and patterns.

    Raises:
        InputError: Names all arguments without a file.
    """
    files: dict[Path, Path] = {}
    problems = []
    for argument in inputs:
        path = Path(argument).expanduser()
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
            found = [p for p in inside if p.suffix.lower() in UPSCALE_SUFFIXES]
            if not found:
                problems.append(f"{argument}: no image and no video in this folder; subfolders are not searched")
            elif len(found) < len(inside):
                log.info("%s: %d other files ignored", argument, len(inside) - len(found))
        elif path.exists():
            found = [path]
        elif has_magic(argument):
            matches = (Path(name) for name in sorted(glob(str(path), recursive=True)))
            found = [p for p in matches if p.is_file() and p.suffix.lower() in UPSCALE_SUFFIXES]
            if not found:
                problems.append(f"{argument}: matches no image and no video")
        else:
            found = []
            problems.append(f"{argument}: no such file or folder")
        for file in found:
            files.setdefault(file.resolve(), file)
    if problems:
        raise InputError(f"missing inputs:{listing(problems)}")
    return list(files.values())


def plan(sources: Sequence[Path], out: Path, scale: int, image_format: str | None, exist: str) -> list[Job]:
    """List the results to make, each with its input.

    Args:
        sources: The inputs.
        out: The folder of the results, such as `<stem>_x2.png`, or `<name>_x2.png` where two would be equal; for one
            input, the result itself if its name has the suffix of a format.
        scale: The factor, in the names of results.
        image_format: Suffix of image results, without a dot; None: as the input, or png if that cannot be written.
        exist: "skip" leaves out existing results, "error" refuses them, "overwrite" replaces them.

    Raises:
        InputError: Results share a name, a result is an input, a name is too long, or results exist and `exist` is
            "error".
    """
    if names_a_file(out):
        jobs = [single_job(sources, out, image_format)]
    else:
        endings = [f"_x{scale}{result_suffix(source, image_format)}" for source in sources]
        choices = [[name + end for name in possible_names(s)] for s, end in zip(sources, endings, strict=True)]
        jobs = [Job(source, out / name) for source, name in zip(sources, distinct(choices), strict=True)]
    given = {source.resolve() for source in sources}
    times = Counter(job.target for job in jobs)
    problems = [f"{job.source} -> {job.target}, as from another input" for job in jobs if times[job.target] > 1]
    problems += [f"{job.source} -> {job.target}, which is an input" for job in jobs if job.target.resolve() in given]
    too_long = [job for job in jobs if len(os.fsencode(job.target.name)) > MAX_NAME]
    problems += [f"{job.source}: its name is too long for one that ends in _x{scale}" for job in too_long]
    if problems:
        raise InputError(
            f"results would overwrite one another or an input, or have names of over {MAX_NAME} bytes; rename these "
            "inputs, or upscale them with different -o:" + listing(problems)
        )
    existing = {job.target for job in jobs if job.target.exists()}
    if existing and exist == "error":
        raise InputError(f"results exist; add --exist skip or --exist overwrite:{listing(sorted(existing))}")
    return [job for job in jobs if job.target not in existing] if exist == "skip" else jobs


def check_output(sources: Sequence[Path], out: Path, image_format: str | None) -> None:
    """Check that results can be written to `out`, before anything is computed.

    Raises:
        InputError: Names the folder or the file name that is in the way.
    """
    if names_a_file(out):
        single_job(sources, out, image_format)
    elif out.exists() and not out.is_dir():
        raise InputError(f"-o {out}: this is a file; give a folder")
    folder = out.parent if names_a_file(out) else out
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise InputError(f"-o {folder}: {existing} is a file; give a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"-o {folder}: no permission to write into {existing}; give another folder")


def names_a_file(out: Path) -> bool:
    """Return True if `-o` names the result itself, not a folder."""
    return not out.is_dir() and out.suffix.lower() in (*WRITABLE_IMAGE_SUFFIXES, *UPSCALE_SUFFIXES)


def single_job(sources: Sequence[Path], out: Path, image_format: str | None) -> Job:
    """Return the job of one input with a named result.

    Raises:
        InputError: Several inputs, or a name that does not suit the input.
    """
    if len(sources) > 1:
        raise InputError(f"-o {out}: {len(sources)} inputs cannot become one file; give a folder")
    suffix = out.suffix.lower()
    canonical = {".jpeg": ".jpg", ".tiff": ".tif"}.get(suffix, suffix)
    if image_format and canonical != f".{image_format}":
        raise InputError(f"-o {out} and --format {image_format} name different formats; leave one out")
    possible = WRITABLE_VIDEO_SUFFIXES if is_video(sources[0]) else WRITABLE_IMAGE_SUFFIXES
    if suffix not in possible:
        raise InputError(f"-o {out}: the suffix of the result of {sources[0]} must be one of {' '.join(possible)}")
    return Job(sources[0], out)


def is_video(path: Path) -> bool:
    """Return True if the suffix is that of a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def result_suffix(source: Path, image_format: str | None) -> str:
    """Return the suffix of a result, with a dot; the input's, in the same case, if its format can be written."""
    if is_video(source):
        return source.suffix if source.suffix.lower() in WRITABLE_VIDEO_SUFFIXES else ".mkv"
    if image_format is not None:
        return f".{image_format}"
    return source.suffix if source.suffix.lower() in IMAGE_SUFFIXES else ".png"
