"""Training processes: one per run directory, and none outlives the sweep that started it."""

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from sr_lightning.errors import InputError

PARENT = "SR_LIGHTNING_PARENT"  # in a cell's environment: the process with which it exits
PAUSE = 0.5  # seconds between two checks that the parent is alive


@contextmanager
def run_lock(run_dir: str | Path, patience: float = 5.0) -> Iterator[None]:
    """Lock a run directory, so that only one training at a time uses it; further ranks of that training may enter.

    Args:
        run_dir: The run's directory.
        patience: Seconds to wait for a process that is about to end.

    Raises:
        InputError: Another process holds the lock; the message names it.
    """
    if process_rank() > 0:
        yield
        return
    Path(run_dir).mkdir(parents=True, exist_ok=True)
    lock, owner = FileLock(Path(run_dir, ".lock")), Path(run_dir, ".owner")
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        other = owner.read_text() if owner.exists() else "another process"
        raise InputError(f"{run_dir} is in use by {other}: wait until it ends, or end it") from None
    try:
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M')}")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def process_rank() -> int:
    """Return the number of this process among those of one training."""
    return int(next((os.environ[name] for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if name in os.environ), "0"))


def is_cell() -> bool:
    """Return True if this process trains a cell of a sweep."""
    return PARENT in os.environ


def exit_with_parent() -> None:
    """Exit with the process that started this one, even if that is killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PAUSE)
        if os.getpgrp() == os.getpid():
            os.killpg(os.getpid(), signal.SIGKILL)  # with further ranks and loaders
        os._exit(1)

    parent = int(os.environ[PARENT])
    os.environ[PARENT] = str(os.getpid())  # further ranks are started by this process
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # SLURM signals every process of a job; the sweep's job handles it
    threading.Thread(target=watch, daemon=True).start()


def stop(process: subprocess.Popen, grace: float = 3.0) -> None:
    """Terminate the leader of a process group, then kill the group."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
