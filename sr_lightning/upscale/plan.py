"""Inputs of the upscale command and the names of its results. Imports neither torch nor Pillow."""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from glob import glob, has_magic
from itertools import takewhile
from pathlib import Path, PurePath
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
from sr_lightning.images.streams import Stdin, Stdout
from sr_lightning.utils.atomic_files import check_writable
from sr_lightning.utils.messages import listing

log = logging.getLogger("sr_lightning.upscale")
MAX_NAME = 255  # bytes of a file name, on most file systems
STDOUT = Path("-")


# Stems of results: of the network's factor or another one, or of a size
RESULT = re.compile(r"(.+)_(?:x\d+(?:\.\d+)?|\d+x\d*)")

Source = Path | Stdin
Target = Path | Stdout


class Job(NamedTuple):
    """One file to make from another."""

    source: Source
    target: Target


def find_inputs(inputs: Iterable[str], out: Path | None = None, *, recursive: bool = False) -> dict[Source, Path]:
    """List the files that arguments name, each once, in order.

    Args:
        inputs: Files, folders, patterns, and - for standard input.
        out: The folder of results; if it is below a folder that is searched, it is left out.
        recursive: Search the subfolders of folders.

    Returns:
        Each file, and the subfolder of its result.

    Raises:
        InputError: Names all arguments without a file.
    """
    files: dict[Source, tuple[Source, Path]] = {}
    problems = []
    for argument in inputs:
        path = Path(argument).expanduser()
        found: dict[Source, Path] = {}
        if not argument:  # an unset variable of the shell, which would be the working directory
            problems.append("'': an empty name; the working directory is .")
        elif argument == "-":
            stdin = Stdin.read()
            files[stdin] = stdin, Path()
        elif path.is_dir():
            inside = list(_files_in(path, out, recursive))
            found = {file: file.parent.relative_to(path) for file in inside if _is_readable(file)}
            if not found:
                places = "this folder or below" if recursive else "this folder; -r searches subfolders"
                problems.append(f"{argument}: no image and no video in {places}")
            elif len(found) < len(inside):
                log.info("%s: %d other files ignored", argument, len(inside) - len(found))
        elif path.exists():
            found = {path: Path()}
        elif has_magic(argument):
            root = Path(*takewhile(lambda part: not has_magic(part), path.parts))
            matches = (Path(name) for name in sorted(glob(str(path), recursive=True)))
            found = {p: Path() for p in matches if p.is_file() and _is_readable(p) and not _is_result(p, out, root)}
            if not found:
                problems.append(f"{argument}: matches no image and no video")
        else:
            problems.append(f"{argument}: no such file or folder")
        for file, subfolder in found.items():
            files.setdefault(file.resolve(), (file, subfolder))
    if problems:
        raise InputError(f"missing inputs:{listing(problems)}")
    return dict(files.values())


def _files_in(folder: Path, out: Path | None, recursive: bool) -> Iterator[Path]:
    """Yield the files of a folder by name, without hidden ones and results; links to folders are not followed."""

    def fail(error: OSError) -> None:
        raise error

    for parent, folders, names in os.walk(folder, onerror=fail):
        below = sorted(Path(parent, name) for name in folders if recursive and not name.startswith("."))
        folders[:] = [path.name for path in below if not _is_result(path, out, folder)]
        paths = (Path(parent, name) for name in sorted(names) if not name.startswith("."))
        yield from (path for path in paths if path.is_file())


def _is_readable(path: Path) -> bool:
    return path.suffix.lower() in UPSCALE_SUFFIXES


def _is_result(path: Path, out: Path | None, root: Path) -> bool:
    """Return True if a path is the folder of results or in it, and that folder is below the one that is searched."""
    if out is None or root.resolve() not in out.resolve().parents:
        return False
    return path.resolve().is_relative_to(out.resolve())


def without_results(sources: Mapping[Source, Path], suffix: str) -> dict[Source, Path]:
    """Leave out the results of others of the sources, as their names say: photo_x3.png beside photo.png.

    Results beside their inputs would be upscaled by the same command a second time.

    Args:
        sources: Of `find_inputs`.
        suffix: Of the results of this command.
    """
    names = {(source.parent, name) for source in sources for name in (source.stem, source.name)}

    def is_result(source: Source) -> bool:
        match = RESULT.fullmatch(source.stem)
        bases = {match[1] if match else None, source.stem.removesuffix(suffix)} - {None, source.stem}
        return any((source.parent, base) in names for base in bases)

    results = [source for source in sources if is_result(source)]
    if results:
        log.info(
            "%d of %d inputs left out, as their names are those of results, such as %s; to upscale them, name them "
            "without the originals",
            *(len(results), len(sources), results[0]),
        )
    return {source: subfolder for source, subfolder in sources.items() if source not in results}


def plan(
    sources: Mapping[Source, Path], out: Path | None, suffix: str, image_format: str | None, exist: str
) -> list[Job]:
    """List the results to make, each with its input.

    Args:
        sources: The inputs, and the subfolders of their results.
        out: The folder of the results, such as `<stem>_x2.png`, or `<name>_x2.png` where two would be equal; for one
            input, the result itself if its name has the suffix of a format, or "-"; None: the folder of each input.
        suffix: Ends the names of results, before that of the format.
        image_format: Suffix of image results, without a dot; None: as the input, or png if that cannot be written.
        exist: "skip" leaves out existing results, "error" refuses them, "overwrite" replaces them.

    Raises:
        InputError: Results share a name, a result is an input, a name is too long, or results exist and `exist` is
            "error".
    """
    if names_a_file(out):
        jobs = [single_job(sources, out, image_format)]
        if isinstance(jobs[0].target, Stdout):
            return jobs
    else:
        folders = [source.parent if out is None else out / sub for source, sub in sources.items()]
        endings = [f"{suffix}{result_suffix(source, image_format)}" for source in sources]
        choices = [
            [str(folder / (name + end)) for name in possible_names(source)]
            for source, folder, end in zip(sources, folders, endings, strict=True)
        ]
        jobs = [Job(source, Path(name)) for source, name in zip(sources, distinct(choices), strict=True)]
    given = {source.resolve() for source in sources if isinstance(source, Path)}
    times = Counter(job.target for job in jobs)
    problems = [f"{job.source} -> {job.target}, as from another input" for job in jobs if times[job.target] > 1]
    problems += [f"{job.source} -> {job.target}, which is an input" for job in jobs if job.target.resolve() in given]
    too_long = [job for job in jobs if len(os.fsencode(job.target.name)) > MAX_NAME]
    problems += [f"{job.source}: its name is too long for one that ends in {suffix}" for job in too_long]
    if problems:
        raise InputError(
            f"results would overwrite one another or an input, or have names of over {MAX_NAME} bytes; rename these "
            "inputs, or upscale them with different -o:" + listing(problems)
        )
    existing = {job.target for job in jobs if job.target.exists()}
    if existing and exist == "error":
        raise InputError(f"results exist; add --exist skip or --exist overwrite:{listing(sorted(existing))}")
    return [job for job in jobs if job.target not in existing] if exist == "skip" else jobs


def check_output(sources: Mapping[Source, Path], out: Path | None, image_format: str | None) -> None:
    """Check that results can be written to `out`, before anything is computed.

    Raises:
        InputError: Names the folder or the file name that is in the way.
    """
    if names_a_file(out):
        target = single_job(sources, out, image_format).target
        folders = set() if isinstance(target, Stdout) else {target.parent}
    elif out is None:
        folders = {source.parent for source in sources}
    elif out.exists() and not out.is_dir():
        raise InputError(f"-o {out}: this is a file; give a folder")
    else:
        folders = {out}
    for folder in sorted(folders):
        check_writable(folder, f"-o {folder}")


def check_suffix(suffix: str | None, out: Path | None) -> None:
    """Check the end of the names of results.

    Raises:
        InputError: It is no part of a name, or results would replace their inputs.
    """
    if suffix is not None and ("/" in suffix or os.sep in suffix or not suffix.isprintable()):
        raise InputError(f"--suffix {suffix}: give a part of a file's name, such as _big")
    if suffix == "" and out is None:
        raise InputError("--suffix '': results beside their inputs would replace them; give -o FOLDER")


def names_a_file(out: Path | None) -> bool:
    """Return True if `-o` names the result itself, not a folder."""
    if out is None or out.is_dir():
        return False
    return out == STDOUT or out.suffix.lower() in (*WRITABLE_IMAGE_SUFFIXES, *UPSCALE_SUFFIXES)


def single_job(sources: Mapping[Source, Path], out: Path, image_format: str | None) -> Job:
    """Return the job of one input with a named result.

    Raises:
        InputError: Several inputs, or a name that does not suit the input.
    """
    if len(sources) > 1:
        raise InputError(f"-o {out}: {len(sources)} inputs cannot become one file; give a folder")
    (source,) = sources
    if out == STDOUT:
        if is_video(source):
            raise InputError(f"-o -: {source} is a video, and only images are written to standard output; give a file")
        Stdout.check()
        return Job(source, Stdout(f"stdout{result_suffix(source, image_format)}"))
    suffix = out.suffix.lower()
    canonical = {".jpeg": ".jpg", ".tiff": ".tif"}.get(suffix, suffix)
    if image_format and canonical != f".{image_format}":
        raise InputError(f"-o {out} and --format {image_format} name different formats; leave one out")
    possible = WRITABLE_VIDEO_SUFFIXES if is_video(source) else WRITABLE_IMAGE_SUFFIXES
    if suffix not in possible:
        raise InputError(f"-o {out}: the suffix of the result of {source} must be one of {' '.join(possible)}")
    return Job(source, out)


def is_video(path: PurePath) -> bool:
    """Return True if the suffix is that of a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def result_suffix(source: PurePath, image_format: str | None) -> str:
    """Return the suffix of a result, with a dot; the input's, in the same case, if its format can be written."""
    if is_video(source):
        return source.suffix if source.suffix.lower() in WRITABLE_VIDEO_SUFFIXES else ".mkv"
    if image_format is not None:
        return f".{image_format}"
    return source.suffix if source.suffix.lower() in IMAGE_SUFFIXES else ".png"
