"""Folders that one process at a time holds, also where several machines share them.

`.lock` is locked by the operating system, which frees it when the process ends. Not all file systems take that lock to
other machines, so `.owner` names the process, and its time of modification is a heartbeat. A process of another machine
is judged by the heartbeat's age alone, on the file system's clock.
"""

import hashlib
import logging
import os
import secrets
import shlex
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from sr_lightning.errors import InputError
from sr_lightning.utils.atomic_files import guards, locked_temporary, replacing

if sys.platform != "win32":
    import fcntl

log = logging.getLogger(__name__)

BEAT = 5.0  # seconds between two heartbeats
STALE = 120.0  # seconds without one after which another machine may take the folder; NFS shows files up to 60 s late
PAUSE = 1.0  # seconds between two looks at a folder in use


class FolderInUseError(InputError):
    """Another process holds the folder."""


@dataclass(frozen=True)
class Owner:
    """Content of `.owner`.

    Attributes:
        content: The whole text; a random word makes it unique.
    """

    content: str

    @classmethod
    def this_process(cls) -> "Owner":
        since = time.strftime("%Y-%m-%d %H:%M")
        who = f"process {os.getpid()} on {socket.gethostname()}, since {since}"
        return cls(f"{who}\n{this_kernel()} {secrets.token_hex(8)}\n")

    @property
    def who(self) -> str:
        """Process, machine and start."""
        return self.content.partition("\n")[0] or "another process"

    @property
    def is_judged_by_lock(self) -> bool:
        """Return True if the lock of this machine reaches the process: of this kernel, or of an earlier version."""
        _, _, details = self.content.partition("\n")
        return details.split(" ")[0] == this_kernel() if details else self.content.startswith("process ")

    @property
    def patience(self) -> float:
        """Seconds without a heartbeat after which the process has ended; without content, killed in its claim."""
        return STALE if self.content else BEAT


def this_kernel() -> str:
    """Return what the processes have in common that one system locks files for: its start, or the host's name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


@contextmanager
def held(folder: Path, patience: float, vital: bool = True) -> Iterator[None]:
    """Hold a folder during the block.

    The process ends at once, and writes no more file into the folder by `atomic_files.replacing`, if it loses the
    folder: suspended for longer than `STALE`, or because somebody has removed `.owner`.

    Args:
        folder: Is made if it is missing.
        patience: Seconds to wait for a process that is about to end.
        vital: False for work that two processes may do at the same time; it goes on if the folder is lost.

    Raises:
        FolderInUseError: Another process holds it; the message names it, and the way out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        raise FolderInUseError(in_use(folder, read_owner(folder))) from None
    except (OSError, NotImplementedError):
        locks = False  # a file system without locks
    else:
        locks = True
    try:
        owner, stopped = _claim(folder, locks), threading.Event()
        beat = threading.Thread(target=_beat, args=[folder, owner, stopped, vital], daemon=True)
        beat.start()
        if vital:
            guards[folder.resolve()] = lambda: end_if_lost(folder, owner)
        try:
            yield
        finally:
            stopped.set()
            beat.join()  # it would take the folder that is released for lost
            if vital:
                release(folder)
            elif read_owner(folder) == owner:
                (folder / ".owner").unlink(missing_ok=True)
    finally:
        lock.release()


def release(folder: Path) -> None:
    """Let other machines take a folder that this process holds."""
    if (guard := guards.pop(folder.resolve(), None)) is not None:
        guard()
        (folder / ".owner").unlink(missing_ok=True)


def holder(folder: Path) -> str | None:
    """Return which process holds a folder, None without one.

    Nothing is written, so that the age of a heartbeat is that of this machine's clock.
    """
    owner, locked = read_owner(folder), is_locked(folder / ".lock")
    if locked:
        return owner.who if owner else "another process"
    beat = _modified(folder / ".owner")
    if owner is None or beat is None or (locked is False and owner.is_judged_by_lock):
        return None
    return owner.who if time.time() - beat / 1e9 < owner.patience else None


def is_locked(path: Path) -> bool | None:
    """Return True if a process holds a lock file, which is opened for reading; None on a file system without locks."""
    try:
        with path.open("rb") as file:
            if sys.platform != "win32":
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return sys.platform == "win32"  # there a lock file is removed when it is released
    except FileNotFoundError:
        return False
    except (BlockingIOError, PermissionError):
        return True
    except OSError:
        return None


def read_owner(folder: Path) -> Owner | None:
    """Read `.owner`; None if it is missing."""
    try:
        return Owner((folder / ".owner").read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return None


def in_use(folder: Path, owner: Owner | None) -> str:
    """Return the message for a folder that another process holds."""
    return f"{folder} is in use by {owner.who if owner else 'another process'}: wait until it ends, or end it"


def _claim(folder: Path, locks: bool) -> Owner:
    """Write `.owner` once no other process holds the folder; of several that try, one succeeds.

    Args:
        folder: The folder.
        locks: True if this process holds the lock, so that no other one of this machine lives.
    """
    path, mine, beat = folder / ".owner", Owner.this_process(), None
    advice = f". If it cannot be reached: rm {shlex.quote(str(path))}, which ends it"
    while True:
        if _created(path, mine):
            return mine
        other, before, beat = read_owner(folder), beat, _modified(path)
        if other is None or beat is None:
            continue
        silent = _silence(folder, beat)
        if (locks and other.is_judged_by_lock) or silent > other.patience:
            if _replace(folder, other, mine):
                return mine
            raise FolderInUseError(f"{in_use(folder, read_owner(folder))}{advice}")
        if before is None:
            seconds = other.patience - silent
            log.info("%s: waiting for a sign of life of %s, for up to %.0f s", folder, other.who, seconds)
        elif before != beat:
            raise FolderInUseError(f"{in_use(folder, other)}{advice}")
        time.sleep(PAUSE)


def _created(path: Path, mine: Owner) -> bool:
    """Write a new `.owner`; False if there is one.

    Raises:
        InputError: The folder cannot be written to.
    """
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(mine.content)
    except FileExistsError:
        return False
    except OSError as error:
        with suppress(OSError):
            path.unlink()  # of a full disk; of another process, it would exist
        raise InputError(f"{path} cannot be written: {error.strerror}. Solve that, then run again") from error
    return True


def _replace(folder: Path, other: Owner, mine: Owner) -> bool:
    """Replace the stale owner of a folder; False if another process is doing that.

    A file that only one process can create decides, named after the content that is replaced: a process that comes
    late finds other content.
    """
    claim = folder / f".owner.{hashlib.sha256(other.content.encode()).hexdigest()[:16]}"
    try:
        claim.open("x").close()
    except FileExistsError:
        return False
    try:
        if read_owner(folder) != other:
            return False
        with replacing(folder / ".owner") as temporary:
            temporary.write_text(mine.content, encoding="utf-8")
        return True
    finally:
        claim.unlink()


def _modified(path: Path) -> int | None:
    """Return the time of modification in ns, None without a file; opened, since NFS then asks its server."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def _silence(folder: Path, beat: int) -> float:
    """Return the seconds since a heartbeat, by the clock of the file system, which is that of no machine."""
    with locked_temporary(folder) as now:
        os.utime(now)
        return (now.stat().st_mtime_ns - beat) / 1e9


def _beat(folder: Path, owner: Owner, stopped: threading.Event, vital: bool) -> None:
    """Give signs of life; once the folder is lost, end the process, or, if it is not vital, give none."""
    while not stopped.wait(BEAT):
        with suppress(OSError):  # a server that does not answer: the next beat tells
            if vital:
                end_if_lost(folder, owner)
            elif read_owner(folder) != owner:
                return
            os.utime(folder / ".owner")


def end_if_lost(folder: Path, owner: Owner) -> None:
    """End this process if it does not hold the folder any more."""
    if (now := read_owner(folder)) == owner:
        return
    try:
        reason = f"{now.who} has taken it" if now else ".owner was removed"
        log.error("error: %s is not held by this process any more, %s: the process ends", folder, reason)
    finally:
        os._exit(1)
