"""Atomic writing of files, and locks for work that one process does at a time."""

import errno
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from sr_lightning.errors import InputError

try:
    import fcntl
except ImportError:  # Windows: temporary files of killed processes stay
    fcntl = None

log = logging.getLogger(__name__)

guards: dict[Path, Callable[[], None]] = {}  # by folder that this process holds: called before a file in it is written

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it replaces `path` when the block ends without an error.

    The content is flushed to the disk before the rename, so a killed process leaves the old file or the new one. The
    temporary file has a short name in the same folder, and is locked: the first write to that folder by another process
    removes those of killed writers. A link keeps pointing to the file that is replaced.

    Raises:
        InputError: The file cannot be written: a full or read-only disk, a folder that was removed, a name that is too
            long. The earlier file is unchanged. Other errors of the block propagate.
    """
    given, temporary, inside = Path(path), None, False
    try:
        path = Path(os.path.realpath(given)) if given.is_symlink() else given
        if path.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        check_guards(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path.parent.absolute())
        temporary, descriptor = _create_locked(path.parent)
        inside = True
        yield temporary
        inside = False
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        check_guards(path)
        temporary.replace(path)
    except InputError:
        raise
    except Exception as error:
        problem = _problem_of_disk(temporary, error) if inside else getattr(error, "strerror", None)
        if problem is None:
            raise
        raise InputError(
            f"{given} cannot be written: {problem}. Solve that or choose another place, then run again"
        ) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            os.close(descriptor)


def check_writable(folder: Path, given: str) -> None:
    """Check that files can be written into a folder; it and its parents may be missing, as `replacing` creates them.

    Args:
        folder: Of the files.
        given: What the user has named it by, such as "-o big/photo.png".

    Raises:
        InputError: Names the file that is in the way, or the folder without permission; or no folder can have this
            name.
    """
    try:
        existing = next(parent for parent in (folder, *folder.absolute().parents) if _is_found(parent))
    except OSError as error:  # a name that is too long, a link to itself
        raise InputError(f"{given}: {error.strerror}; give another folder") from error
    if not existing.is_dir():
        raise InputError(f"{given}: {existing} is a file; give a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"{given}: no permission to write into {existing}; give another folder")


def _is_found(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):  # the last one: of a folder that contains it
        return False
    return True


def check_guards(path: Path) -> None:
    """Call the guard of the folder that this process holds and that contains a file."""
    for folder, guard in list(guards.items()):
        if path.resolve().is_relative_to(folder):
            guard()


def delete(path: Path) -> None:
    """Delete a folder or file, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, complete or not at all; bytes of names that are no text are escaped.

    Raises:
        InputError: As of `replacing`.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextmanager
def locked_temporary(folder: Path) -> Iterator[Path]:
    """Yield an empty temporary file for the block; one of a killed process is removed as those of `replacing`."""
    folder.mkdir(parents=True, exist_ok=True)
    path, descriptor = _create_locked(folder)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _create_locked(folder: Path) -> tuple[Path, int]:
    """Create a temporary file, locked as long as its descriptor is open; return both."""
    while True:
        temporary = folder / f".sr_lightning-{secrets.token_hex(4)}.tmp"
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        if fcntl is None:
            return temporary, descriptor
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return temporary, descriptor
        os.close(descriptor)  # `remove_abandoned` of another process came before the lock


@cache
def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files of `replacing` whose writers were killed; once per process and folder."""
    for path in folder.glob(".sr_lightning-*.tmp") if fcntl is not None else ():
        with suppress(OSError):  # locked by its writer, renamed or removed meanwhile, not ours to remove
            descriptor = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(descriptor)


def _problem_of_disk(temporary: Path, error: Exception) -> str | None:
    """Return the reason why a file could not be written; None if that is not why the writer failed.

    Encoders and torch report a full disk by errors of their own, so some bytes are written to see whether it is one.
    """
    if isinstance(error, OSError) and error.errno in FULL:
        return os.strerror(error.errno)
    try:
        with temporary.open("ab") as file:
            file.write(bytes(2**16))
            file.flush()
            os.fsync(file.fileno())
    except OSError as problem:
        return problem.strerror
    return None


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
