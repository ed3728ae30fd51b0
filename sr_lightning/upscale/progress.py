"""Progress of the upscale command: a bar on a terminal, a line now and then elsewhere."""

import logging
import sys
import time
from collections.abc import Mapping
from types import TracebackType

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from sr_lightning.upscale.plan import Job, is_video
from sr_lightning.utils.messages import printable

log = logging.getLogger("sr_lightning.upscale")

BAR = "{desc} {percentage:3.0f}% |{bar}| {unit}"  # `unit` holds speed and time left, which are not tqdm's
MAX_NAME = 28  # characters of a file's name in the bar
LINE_EVERY = 30  # seconds, without a terminal


class Progress:
    """Share of the work that is done, weighted by pixels, with speed and time left.

    The first tile of all and the first frame of a video take longer than the others, so they are not counted in speeds.

    Args:
        work: Pixels that the network makes for each job, of all frames of a video; 0 if they are not known.
    """

    def __init__(self, work: Mapping[Job, float]) -> None:
        self.work, self.total, self.done, self.before = work, sum(work.values()), 0.0, 0.0
        self.name, self.unit, self.steps, self.pixels = "", "", 0, 0.0
        self.since = self.line = time.monotonic()
        self.bar = tqdm(
            total=1.0, bar_format=BAR, unit="", dynamic_ncols=True, leave=False, disable=not sys.stderr.isatty()
        )
        self._redirection = logging_redirect_tqdm()

    def __enter__(self) -> "Progress":
        self._redirection.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.bar.close()
        self._redirection.__exit__(kind, error, traceback)

    def begin(self, job: Job) -> None:
        """Begin a file."""
        unit = "frames/s" if is_video(job.source) else "MP/s"
        if unit != self.unit or unit == "frames/s":
            self.unit, self.steps, self.pixels = unit, 0, 0.0
        self.before = self.done
        self.note(job.source.name)

    def note(self, name: str) -> None:
        """Show the name of a file, or another short text."""
        self.name = printable(name)
        self.bar.set_description_str(
            self.name if len(self.name) <= MAX_NAME else f"{self.name[: MAX_NAME - 1]}…", refresh=True
        )

    def advance(self, job: Job, share: float) -> None:
        """Add a share of a file, a tile or frame."""
        pixels = self.work[job] * share
        self.done += pixels
        if self.steps == 0:
            self.since = time.monotonic()
        else:
            self.pixels += pixels
        self.steps += 1
        self.bar.unit = self.text()
        self.bar.update(self.share() - self.bar.n)
        if self.bar.disable and time.monotonic() - self.line > LINE_EVERY:
            self.line = time.monotonic()
            log.info("%s: %.0f %% of all, %s", self.name, 100 * self.share(), self.text())

    def end(self, job: Job) -> None:
        """End a file; what is left of it, if it failed, was no work."""
        self.total -= self.work[job] - (self.done - self.before)

    def share(self) -> float:
        """Return the share that is done."""
        return min(self.done / self.total, 1.0) if self.total > 0 else 0.0

    def text(self) -> str:
        """Return speed and time left; empty before the second tile or frame."""
        seconds = time.monotonic() - self.since
        if self.steps < 2 or seconds <= 0:
            return ""
        speed = (self.steps - 1 if self.unit == "frames/s" else self.pixels / 1e6) / seconds
        left = max(self.total - self.done, 0) / self.pixels * seconds if self.pixels > 0 else None
        return f"{speed:.1f} {self.unit}" + ("" if left is None else f", {tqdm.format_interval(left)} left")
