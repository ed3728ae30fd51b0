"""Progress of long loops: a bar on a terminal, lines in a log file."""

import logging
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

log = logging.getLogger(__name__)

T = TypeVar("T")
tqdm.set_lock(threading.RLock())  # its own is shared by forked processes, and not released by one that is killed
QUIET = 30  # seconds without a line, after which one is logged if there is no bar


def tracked(items: Iterable[T], total: int, task: str) -> Iterator[T]:
    """Yield the items of a long loop, and show how many are done and the time left.

    Args:
        items: Any number up to `total`.
        total: Of the estimate.
        task: Its name, such as "scoring Set5 x2".
    """
    on_terminal = sys.stderr.isatty()
    started = last = time.monotonic()
    bar = tqdm(items, task, total, dynamic_ncols=True, leave=False, disable=not on_terminal)
    for done, item in enumerate(bar, start=1):
        yield item
        now = time.monotonic()
        if not on_terminal and now - last > QUIET:
            last = now
            left = tqdm.format_interval((now - started) / done * max(total - done, 0))
            log.info("%s: %d of %d, %s left", task, done, total, left)
