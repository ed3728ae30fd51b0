"""Upscaling of many files: reading and writing run in threads while the network computes."""

import logging
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from sr_lightning.errors import InputError
from sr_lightning.images.formats import PNG_COMPRESSION
from sr_lightning.images.photo import DeepPhoto, Photo, check_fits, read_photo, write_photo
from sr_lightning.upscale.plan import Job, is_video
from sr_lightning.upscale.upscaler import Upscaler
from sr_lightning.utils.signals import Interrupted
from sr_lightning.utils.threads import THREADS

log = logging.getLogger("sr_lightning.upscale")

MAX_PENDING_PIXELS = 64_000_000  # of results that wait for a writer while the next one is computed
MIN_REPORTED_SECONDS = 5  # of the processor, below which nobody needs to know what took them
BAR = "{percentage:3.0f}% |{bar}| {n:.1f} of {total} [{elapsed}<{remaining}]"


def upscale_all(net: Upscaler, jobs: Sequence[Job], quality: int, png_compression: int) -> list[str]:
    """Run all jobs, images first; a failure of one does not stop the others.

    Returns:
        One line per failure.
    """
    bar = tqdm(total=len(jobs), bar_format=BAR, dynamic_ncols=True, disable=not sys.stderr.isatty())
    with bar, logging_redirect_tqdm():
        return [
            *upscale_images(net, [job for job in jobs if not is_video(job.source)], quality, png_compression, bar),
            *upscale_videos(net, [job for job in jobs if is_video(job.source)], bar),
        ]


def upscale_images(net: Upscaler, jobs: Sequence[Job], quality: int, png_compression: int, bar: tqdm) -> list[str]:
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
            check_fits(job.target, photo, net.scale)
        return photo

    def write(job: Job, photo: Photo) -> None:
        with timed(seconds["encoding"]):
            write_photo(job.target, photo, quality, png_compression)
        log.info("%s -> %s, %dx%d", job.source, job.target, *photo.size)

    def compute(job: Job, photo: Photo, done: int) -> None:
        progress = progress_until(bar, done)
        if isinstance(photo, DeepPhoto):
            result = DeepPhoto(net.upscale(photo.pixels, progress), photo.info)
        else:
            result = net.upscale(photo, progress)
        pending.append((math.prod(result.size), job, writers.submit(write, job, result)))

    def wait(pixels: int) -> None:
        """Wait until at most this many pixels are pending."""
        while sum(size for size, _, _ in pending) > pixels:
            _, job, writing = pending.popleft()
            with collecting_failures(failures, job):
                writing.result()

    with ThreadPoolExecutor(1) as readers, ThreadPoolExecutor(THREADS) as writers:
        try:
            for done, (job, reading) in enumerate(prefetch(readers, read, jobs), start=1):
                with collecting_failures(failures, job):
                    compute(job, reading.result(), done)
                bar.update(done - bar.n)
                wait(MAX_PENDING_PIXELS)
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


def upscale_videos(net: Upscaler, jobs: Sequence[Job], bar: tqdm) -> list[str]:
    """Upscale videos, one at a time, since the codecs have threads of their own.

    Returns:
        One line per failure.
    """
    from sr_lightning.upscale.video import upscale_video

    failures: list[str] = []
    before = bar.n
    for done, job in enumerate(jobs, start=1):
        with collecting_failures(failures, job):
            size = upscale_video(net.upscale, net.scale, job.source, job.target, progress_until(bar, before + done))
            log.info("%s -> %s, %dx%d", job.source, job.target, *size)
        bar.update(before + done - bar.n)
    return failures


def progress_until(bar: tqdm, most: int) -> Callable[[float], Any]:
    """Return a callback that advances a bar by shares of one file, up to `most` files in total."""
    return lambda share: bar.update(min(share, most - bar.n))


@contextmanager
def collecting_failures(failures: list[str], job: Job) -> Iterator[None]:
    """Append errors of user input and of the system to a list; other exceptions are bugs and propagate."""
    try:
        yield
    except (InputError, OSError, MemoryError) as error:
        problem = str(error) or "not enough memory"
        names_a_file = any(str(path) in problem for path in job)
        failures.append(problem if names_a_file else f"{job.source}: {problem}")
