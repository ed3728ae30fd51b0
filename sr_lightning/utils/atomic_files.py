"""Atomic writing of files, and locks for work that one process does at a time."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it replaces `path` when the block ends without an error.

    The content is flushed to the disk before the rename, so a killed process leaves the old file or the new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def one_at_a_time(lock_file: str | Path, what: str) -> Iterator[None]:
    """Let only one process at a time run the block; others log that they wait for `what`.

    The lock is released when its process ends, even if it is killed.
    """
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("another process is making %s: waiting for it", what)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
