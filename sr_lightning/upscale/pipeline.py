"""Upscaling of many files: reading and writing run in threads while the network computes."""

import logging
import math
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from sr_lightning.errors import InputError
from sr_lightning.images.files import image_size
from sr_lightning.images.formats import PNG_COMPRESSION
from sr_lightning.images.photo import DeepPhoto, Photo, check_fits, read_photo, write_photo
from sr_lightning.images.streams import Stdout
from sr_lightning.upscale.plan import Job, is_video
from sr_lightning.upscale.progress import Progress
from sr_lightning.upscale.size import SizeOf, passes
from sr_lightning.upscale.upscaler import Upscaler
from sr_lightning.utils.signals import Interrupted
from sr_lightning.utils.threads import THREADS

log = logging.getLogger("sr_lightning.upscale")

MAX_PENDING_PIXELS = 64_000_000  # of results that wait for a writer while the next one is computed
MIN_REPORTED_SECONDS = 5  # of the processor, below which nobody needs to know what took them


def upscale_all(
    net: Upscaler, jobs: Sequence[Job], size_of: SizeOf | None, quality: int, png_compression: int
) -> list[str]:
    """Run all jobs, images first; a failure of one does not stop the others.

    Args:
        net: The network.
        jobs: Inputs and results.
        size_of: Size of results; None: the network's scale.
        quality: Of JPEG and WebP.
        png_compression: Of PNG.

    Returns:
        One line per failure.
    """
    sized = size_of or (lambda width, height: (width * net.scale, height * net.scale))
    images, videos = ([job for job in jobs if is_video(job.source) is video] for video in (False, True))
    with Progress({job: work(job, sized, net.scale) for job in jobs}) as progress:
        return [
            *upscale_images(net, images, sized, quality, png_compression, progress),
            *upscale_videos(net, videos, sized if size_of is None else even(sized), progress),
        ]


def work(job: Job, size_of: SizeOf, scale: int) -> float:
    """Return the pixels that a network of this scale makes for a job; 0 if its file does not tell."""
    try:
        if is_video(job.source):
            from sr_lightning.upscale.video import size_and_frames

            size, frames = size_and_frames(job.source)
        else:
            size, frames = image_size(job.source)[::-1], 1
        return math.prod(size) * scale ** (2 * passes(size, size_of(*size), scale)) * frames
    except (InputError, OSError):  # reported when it is read
        return 0.0


def even(size_of: SizeOf) -> SizeOf:
    """Round sizes up to even ones, which all players of videos show."""

    def rounded(width: int, height: int) -> tuple[int, int]:
        width, height = size_of(width, height)
        return width + width % 2, height + height % 2

    return rounded


def description(size: tuple[int, int], new_size: tuple[int, int], scale: int) -> str:
    """Return the size of a result; if it is not that of the network's scale, also the way to it."""
    text, count = "{}x{}".format(*new_size), passes(size, new_size, scale)
    large = tuple(side * scale**count for side in size)
    times = "" if count == 1 else f"{count} passes of x{scale}, "
    if large == new_size:
        return text + (f" ({count} passes of x{scale})" if count > 1 else "")
    return f"{text} ({times}bicubic down from {large[0]}x{large[1]})"


def upscale_images(
    net: Upscaler, jobs: Sequence[Job], size_of: SizeOf, quality: int, png_compression: int, progress: Progress
) -> list[str]:
    """Upscale image files; decoders and encoders release Python's global lock, so they run in threads.

    If decoding or encoding takes most of the processor time, the log says so.

    Returns:
        One line per failure.
    """
    failures: list[str] = []
    pending: deque[tuple[int, Job, Future]] = deque()  # pixels of results that are being written
    seconds: dict[str, list[float]] = {"decoding": [], "encoding": []}  # of the processor
    start = time.process_time()

    def read(job: Job) -> Photo:
        with timed(seconds["decoding"]):
            photo = read_photo(job.source)
            check_fits(job.target, photo, size_of(*photo.size))
        return photo

    def write(job: Job, photo: Photo, size: tuple[int, int]) -> None:
        with timed(seconds["encoding"]):
            if isinstance(job.target, Stdout):
                with tempfile.TemporaryDirectory(prefix="sr_lightning_") as folder:
                    file = Path(folder, job.target.name)
                    write_photo(file, photo, quality, png_compression)
                    job.target.write(file)
            else:
                write_photo(job.target, photo, quality, png_compression)
        log.info("%s -> %s, %s", job.source, job.target, description(size, photo.size, net.scale))

    def compute(job: Job, photo: Photo) -> None:
        size = size_of(*photo.size)
        result = enlarge(net, photo, partial(progress.advance, job), size)
        pending.append((math.prod(result.size), job, writers.submit(write, job, result, photo.size)))

    def wait(pixels: int) -> None:
        """Wait until at most this many pixels are pending."""
        while sum(size for size, _, _ in pending) > pixels:
            _, job, writing = pending.popleft()
            with collecting_failures(failures, job):
                writing.result()

    with ThreadPoolExecutor(1) as readers, ThreadPoolExecutor(THREADS) as writers:
        try:
            for job, reading in prefetch(readers, read, jobs):
                progress.begin(job)
                with collecting_failures(failures, job):
                    compute(job, reading.result())
                progress.end(job)
                wait(MAX_PENDING_PIXELS)
            progress.note("writing")
            wait(0)
        except (KeyboardInterrupt, Interrupted):
            if unfinished := sum(not writing.done() for _, _, writing in pending):
                log.warning("interrupted: %d results are still being written", unfinished)
            raise
        finally:
            for pool in (readers, writers):
                pool.shutdown(wait=False, cancel_futures=True)
    shares = {part: sum(times) for part, times in seconds.items()}
    writes_png = any(job.target.suffix.lower() == ".png" for job in jobs)
    log_slowest(shares, time.process_time() - start, png_compression if writes_png else 0)
    return failures


def enlarge(net: Upscaler, photo: Photo, advance: Callable[[float], object], size: tuple[int, int]) -> Photo:
    """Upscale a result of `read_photo` as `Upscaler.upscale` does, with depth and metadata."""
    if isinstance(photo, DeepPhoto):
        return DeepPhoto(net.upscale(photo.pixels, advance, size), photo.info)
    return net.upscale(photo, advance, size)


def log_slowest(seconds: dict[str, float], total: float, png_compression: int) -> None:
    """Log the part that takes most of the processor time, unless it is the network or the time is short.

    Args:
        seconds: Of the processor, by part: decoding, encoding.
        total: Of these and the network.
        png_compression: 0 if no PNG is written.
    """
    part = max(seconds, key=seconds.__getitem__)
    if total < MIN_REPORTED_SECONDS or seconds[part] <= total / 2:
        return
    slow = part == "encoding" and png_compression > PNG_COMPRESSION
    advice = f"; --png-compression {PNG_COMPRESSION} is faster" if slow else ""
    log.info("%s took %.0f %% of the processor time%s", part, 100 * seconds[part] / total, advice)


@contextmanager
def timed(seconds: list[float]) -> Iterator[None]:
    """Append the processor time that this thread spends in the block."""
    start = time.thread_time()
    try:
        yield
    finally:
        seconds.append(time.thread_time() - start)


def prefetch(
    pool: ThreadPoolExecutor, function: Callable[[Job], Any], jobs: Iterable[Job]
) -> Iterator[tuple[Job, Future]]:
    """Yield each job with the future of its result, while the next one is computed."""
    jobs = iter(jobs)
    begun = deque((job, pool.submit(function, job)) for job in islice(jobs, 1))
    while begun:
        begun.extend((job, pool.submit(function, job)) for job in islice(jobs, 1))
        yield begun.popleft()


def upscale_videos(net: Upscaler, jobs: Sequence[Job], size_of: SizeOf, progress: Progress) -> list[str]:
    """Upscale videos, one at a time, since the codecs have threads of their own; a GPU computes beside them.

    Returns:
        One line per failure.
    """
    from sr_lightning.upscale.video import upscale_video

    failures: list[str] = []

    def enlarge(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        return net.upscale(frame, size=size)

    with ThreadPoolExecutor(1) as pool:
        beside = pool if net.device.type == "cuda" else None
        for job in jobs:
            progress.begin(job)
            with collecting_failures(failures, job):
                advance = partial(progress.advance, job)
                size, new_size = upscale_video(enlarge, size_of, job.source, job.target, advance, beside)
                log.info("%s -> %s, %s", job.source, job.target, description(size, new_size, net.scale))
            progress.end(job)
    return failures


@contextmanager
def collecting_failures(failures: list[str], job: Job) -> Iterator[None]:
    """Append errors of user input and of the system to a list; other exceptions are bugs and propagate."""
    try:
        yield
    except (InputError, OSError, MemoryError) as error:
        problem = str(error) or "not enough memory"
        names_a_file = any(str(path) in problem for path in job)
        failures.append(problem if names_a_file else f"{job.source}: {problem}")
