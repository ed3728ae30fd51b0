"""Enlarge pictures and videos with a trained network: python -m sr_lightning.upscale photo.jpg -c best.ckpt -o big."""

import argparse
import logging
import os
import signal
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from glob import glob, has_magic
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sr_lightning.errors import InputError

if TYPE_CHECKING:
    from PIL import Image
    from tqdm import tqdm

    from sr_lightning.upscale.upscaler import Upscaler

log = logging.getLogger("sr_lightning.upscale")  # not __main__

FORMATS = ("png", "jpg", "webp", "tif", "bmp")
PICTURES = (*(f".{name}" for name in FORMATS), ".jpeg", ".tiff")
VIDEOS = (
    *(".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"),
    *(".mts", ".ogv", ".ts", ".webm", ".wmv"),
)
KEPT_VIDEOS = (".m4v", ".mkv", ".mov", ".mp4", ".webm")  # containers that are written; others become .mkv
WAITING = 64_000_000  # pixels of results that may wait to be written while the next is computed
BAR = "{percentage:3.0f}% |{bar}| {n:.1f} of {total} [{elapsed}<{remaining}]"

DESCRIPTION = """Enlarge pictures (PNG, JPEG, WebP, TIFF, BMP) and videos with a trained network.

photo.jpg becomes OUT/photo_x4.jpg, for a network of scale 4. What is kept and what is not: docs/upscale.md."""
EXAMPLE = """example:
  python -m sr_lightning.upscale photo.jpg -c outputs/RUN -o big
  python -m sr_lightning.upscale scans/ 'more/**/*.png' clip.mp4 -c best.ckpt -o big --exist skip"""


class Job(NamedTuple):
    """One file to be made of another."""

    source: Path
    target: Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code: 0, or 1 if anything went wrong.
    """
    options = parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("sr_lightning").setLevel(logging.INFO)
    try:
        failed = run(options)
    except InputError as error:
        log.error("error: %s", error)
        return 1
    except OSError as error:  # a folder that may not be looked into, a name that is too long
        log.error("error: %s", f"{error.filename}: {error.strerror}" if error.filename else error)
        return 1
    except KeyboardInterrupt:
        log.error("interrupted; what is written is complete, --exist skip goes on from there")
        return 130
    return 1 if failed else 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m sr_lightning.upscale",
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="files, folders (without subfolders), patterns")
    parser.add_argument("-c", "--ckpt", required=True, help="checkpoint, or the directory of a run (its best one)")
    parser.add_argument("-o", "--out", required=True, type=_path, help="folder; or, for one input, a file to write")
    parser.add_argument("--format", choices=FORMATS, help="of pictures (default: as the input)")
    parser.add_argument("--quality", type=int, default=95, help="of JPEG and WebP; 100: WebP lossless (default: 95)")
    parser.add_argument(
        "--exist",
        choices=["error", "skip", "overwrite"],
        default="error",
        help="when a result is there already (default: error, before anything is computed)",
    )
    parser.add_argument(
        "--self-ensemble", action="store_true", help="average over 8 flips and rotations, in 8x the time"
    )
    parser.add_argument(
        "--tile",
        type=_tile,
        default="auto",
        metavar="auto|N|0",
        help="side of tiles in input pixels, 0: the whole image at once (default: auto, fast and small); "
        "the result is the same",
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="(default: auto)")
    parser.add_argument(
        "--precision",
        choices=["float32", "bfloat16", "auto"],
        default="float32",
        help="bfloat16 is faster where the processor has it, and off by a grey level; "
        "auto takes it where that costs next to no PSNR (default: float32)",
    )
    return parser


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _tile(text: str) -> int | str:
    return int(text) if text.isdecimal() else text  # the Upscaler says what it may be


def run(options: argparse.Namespace) -> list[str]:
    """Do what the options say.

    Returns:
        What went wrong with single files, a line each.

    Raises:
        InputError: Nothing was computed: an input, the checkpoint, an option, or the names of the results.
    """
    if not 1 <= options.quality <= 100:
        raise InputError(f"--quality {options.quality}: from 1 to 100")
    sources = find_inputs(options.inputs)
    from sr_lightning.upscale.upscaler import Upscaler
    from sr_lightning.utils.malloc import keep_freed_memory

    keep_freed_memory()
    net = Upscaler.load(
        options.ckpt,
        device=options.device,
        precision=options.precision,
        tile=options.tile,
        self_ensemble=options.self_ensemble,
    )
    jobs = plan(sources, options.out, net.scale, options.format, options.exist)
    log.info("%s", net)
    if net.global_:
        log.info(
            "every pixel depends on the whole image: %s",
            f"tiles of {options.tile} give another result" if net.tile else "it is not cut into tiles",
        )
    if skipped := len(sources) - len(jobs):
        log.info("%d of %d skipped: their results are there already", skipped, len(sources))
    failed = upscale_all(net, jobs, options.quality)
    log.info("%d of %d written to %s", len(jobs) - len(failed), len(jobs), options.out)
    if failed:
        from sr_lightning.images.files import listing

        log.error("error: %d failed:%s", len(failed), listing(failed))
    return failed


def find_inputs(inputs: Iterable[str]) -> list[Path]:
    """The files that the words of a command line mean, each once, in their order.

    Raises:
        InputError: Words that mean no file, all of them.
    """
    from sr_lightning.images.files import SUFFIXES

    known = (*SUFFIXES, ".gif", *VIDEOS)
    files: dict[Path, Path] = {}
    problems = []
    for word in inputs:
        path = Path(word).expanduser()
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
            found = [p for p in inside if p.suffix.lower() in known]
            if not found:
                problems.append(f"{word}: no picture and no video in this folder; subfolders are not looked into")
            elif len(found) < len(inside):
                log.info("%s: %d other files left alone", word, len(inside) - len(found))
        elif path.exists():
            found = [path]
        elif has_magic(word):
            matches = (Path(name) for name in sorted(glob(str(path), recursive=True)))
            found = [p for p in matches if p.is_file() and p.suffix.lower() in known]
            if not found:
                problems.append(f"{word}: matches no picture and no video")
        else:
            found = []
            problems.append(f"{word}: no such file or folder")
        for file in found:
            files.setdefault(file.resolve(), file)
    if problems:
        raise InputError(_several("inputs that are not there:", problems))
    return list(files.values())


def plan(sources: Sequence[Path], out: Path, scale: int, suffix: str | None, exist: str) -> list[Job]:
    """Which file is to be made of which.

    Args:
        sources: The inputs.
        out: The folder of the results; for one input, the result itself if its name has the suffix of a format.
        scale: In the names.
        suffix: Of pictures' results, without a dot; None: as the input, or png if Pillow cannot write that.
        exist: "skip" leaves out what is there already, "error" refuses, "overwrite" takes its place.

    Raises:
        InputError: Several results of one name, one that is an input, or that is there already with "error".
    """
    from sr_lightning.images.files import SUFFIXES

    if not out.is_dir() and out.suffix.lower() in (*PICTURES, *SUFFIXES, ".gif", *VIDEOS):
        jobs = [single_job(sources, out, suffix)]
    elif out.exists() and not out.is_dir():
        raise InputError(f"-o {out}: a file is there; give a folder")
    else:
        jobs = [Job(source, out / f"{source.stem}_x{scale}{result_suffix(source, suffix)}") for source in sources]
    if jobs:
        check_writable(jobs[0].target.parent)
    given = {source.resolve() for source in sources}
    times = Counter(job.target for job in jobs)
    problems = [f"{job.source} -> {job.target}, as of another input" for job in jobs if times[job.target] > 1]
    problems += [f"{job.source} -> {job.target}, which is an input" for job in jobs if job.target.resolve() in given]
    if problems:
        raise InputError(
            _several(
                "results would overwrite one another or an input; rename those, or give each kind an -o of its own:",
                problems,
            )
        )
    there = {job.target for job in jobs if job.target.exists()}
    if there and exist == "error":
        raise InputError(_several("there already; --exist skip or --exist overwrite:", sorted(map(str, there))))
    return [job for job in jobs if job.target not in there] if exist == "skip" else jobs


def check_writable(folder: Path) -> None:
    """Refuse a folder for the results that cannot be made or written into.

    Raises:
        InputError: Names the folder that is in the way.
    """
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not there.is_dir():
        raise InputError(f"-o {folder}: {there} is a file; give a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"-o {folder}: no permission to write into {there}")


def single_job(sources: Sequence[Path], out: Path, suffix: str | None) -> Job:
    """The one input, and the file that the user names as its result.

    Raises:
        InputError: There are more inputs, or the name does not suit this one.
    """
    if len(sources) > 1:
        raise InputError(f"-o {out}: {len(sources)} inputs cannot become one file; give a folder")
    spelt = {".jpeg": ".jpg", ".tiff": ".tif"}.get(out.suffix.lower(), out.suffix.lower())
    if suffix and spelt != f".{suffix}":
        raise InputError(f"-o {out} and --format {suffix} say different formats; leave one out")
    possible = KEPT_VIDEOS if is_video(sources[0]) else PICTURES
    if out.suffix.lower() not in possible:
        raise InputError(f"-o {out}: {sources[0]} becomes one of {' '.join(possible)}")
    return Job(sources[0], out)


def _several(problem: str, offenders: Sequence[str]) -> str:
    from sr_lightning.images.files import listing

    return problem + listing(offenders)


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEOS


def result_suffix(source: Path, suffix: str | None) -> str:
    """With a dot, and spelled as the input's where it stays."""
    if is_video(source):
        return source.suffix if source.suffix.lower() in KEPT_VIDEOS else ".mkv"
    if suffix is not None:
        return f".{suffix}"
    from sr_lightning.images.files import SUFFIXES

    return source.suffix if source.suffix.lower() in SUFFIXES else ".png"


def upscale_all(net: "Upscaler", jobs: Sequence[Job], quality: int) -> list[str]:
    """Do all jobs, pictures first; what goes wrong with one does not keep the others from being done.

    Returns:
        What went wrong, a line each.
    """
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    bar = tqdm(total=len(jobs), bar_format=BAR, dynamic_ncols=True, disable=not sys.stderr.isatty())
    with bar, logging_redirect_tqdm():
        return [
            *upscale_pictures(net, [job for job in jobs if not is_video(job.source)], quality, bar),
            *upscale_videos(net, [job for job in jobs if is_video(job.source)], bar),
        ]


def upscale_pictures(net: "Upscaler", jobs: Sequence[Job], quality: int, bar: "tqdm") -> list[str]:
    """Read and write in threads, which decoders and encoders let run, while the network computes.

    Returns:
        What went wrong, a line each.
    """
    from sr_lightning.images.files import THREADS
    from sr_lightning.images.photo import check_fits, read_photo, write_photo

    failed: list[str] = []
    waiting: deque[tuple[int, Job, Future]] = deque()  # pixels of results, being written

    def read(job: Job) -> "Image.Image":
        photo = read_photo(job.source)
        check_fits(job.target, photo, net.scale)
        return photo

    def write(job: Job, photo: "Image.Image") -> None:
        write_photo(job.target, photo, quality)
        log.info("%s -> %s, %dx%d", job.source, job.target, *photo.size)

    def compute(job: Job, photo: "Image.Image", done: int) -> None:
        result = net.upscale(photo, up_to(bar, done))
        waiting.append((result.width * result.height, job, writers.submit(write, job, result)))

    def finish(pixels: int) -> None:
        """Wait until at most so many pixels are waiting."""
        while sum(size for size, _, _ in waiting) > pixels:
            _, job, writing = waiting.popleft()
            with failures_to(failed, job):
                writing.result()

    with ThreadPoolExecutor(1) as readers, ThreadPoolExecutor(THREADS) as writers:
        try:
            for done, (job, reading) in enumerate(ahead(readers, read, jobs), start=1):
                with failures_to(failed, job):
                    compute(job, reading.result(), done)
                bar.update(done - bar.n)
                finish(WAITING)
            finish(0)
        except KeyboardInterrupt:
            if unfinished := sum(not writing.done() for _, _, writing in waiting):
                log.warning("interrupted: %d results are still being written", unfinished)
            raise
        finally:
            for pool in (readers, writers):
                pool.shutdown(wait=False, cancel_futures=True)
    return failed


def ahead(
    pool: ThreadPoolExecutor, function: Callable[[Job], Any], jobs: Iterable[Job]
) -> Iterator[tuple[Job, Future]]:
    """Each job with the result of a function, of which one more is always begun."""
    jobs = iter(jobs)
    begun = deque((job, pool.submit(function, job)) for job in islice(jobs, 1))
    while begun:
        begun.extend((job, pool.submit(function, job)) for job in islice(jobs, 1))
        yield begun.popleft()


def upscale_videos(net: "Upscaler", jobs: Sequence[Job], bar: "tqdm") -> list[str]:
    """One after the other, since the codecs have threads of their own.

    Returns:
        What went wrong, a line each.
    """
    from sr_lightning.upscale.video import upscale_video

    failed: list[str] = []
    before = bar.n
    for done, job in enumerate(jobs, start=1):
        with failures_to(failed, job):
            size = upscale_video(net.upscale, net.scale, job.source, job.target, up_to(bar, before + done))
            log.info("%s -> %s, %dx%d", job.source, job.target, *size)
        bar.update(before + done - bar.n)
    return failed


def up_to(bar: "tqdm", most: int) -> Callable[[float], Any]:
    """Advances a bar by shares that add up to one file, or a little more."""
    return lambda share: bar.update(min(share, most - bar.n))


@contextmanager
def failures_to(failed: list[str], job: Job) -> Iterator[None]:
    """Note what the user or the system is to blame for; anything else is a fault of this project, and raised."""
    try:
        yield
    except (InputError, OSError, MemoryError) as error:
        problem = str(error) or "not enough memory"
        about_a_file = any(str(path) in problem for path in job)
        failed.append(problem if about_a_file else f"{job.source}: {problem}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leaves no half-written file either
    sys.exit(main())
