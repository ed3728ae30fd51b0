"""Trainers as processes: one per run directory, gone with the sweep that started them."""

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

PARENT = "SR_LIGHTNING_PARENT"  # in a cell's environment: the process without which it is to end
PAUSE = 0.5  # seconds between two looks whether the parent lives


@contextmanager
def in_charge_of(run_dir: str | Path, patience: float = 5.0) -> Iterator[None]:
    """Only one training is in the block for a run directory; further ranks of the same training are let through.

    Args:
        run_dir: The directory.
        patience: Seconds to wait for a process that is about to end.

    Raises:
        InputError: Another process is in charge; names it.
    """
    rank = next((os.environ[name] for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if name in os.environ), "0")
    if rank != "0":
        yield
        return
    Path(run_dir).mkdir(parents=True, exist_ok=True)
    lock, owner = FileLock(Path(run_dir, ".lock")), Path(run_dir, ".owner")
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        other = owner.read_text() if owner.exists() else "another process"
        raise InputError(f"{run_dir} is in use by {other}: wait for it, or end it") from None
    try:
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M')}")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def is_cell() -> bool:
    """Whether this process trains a cell for a sweep."""
    return PARENT in os.environ


def end_with_parent() -> None:
    """Watch the process that started this one, and end with it, however it ends."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PAUSE)
        if os.getpgrp() == os.getpid():
            os.killpg(os.getpid(), signal.SIGKILL)  # with further ranks and loaders
        os._exit(1)

    parent = int(os.environ[PARENT])
    os.environ[PARENT] = str(os.getpid())  # further ranks are started by this process
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # SLURM tells every process of a job; the sweep's job answers
    threading.Thread(target=watch, daemon=True).start()


def stop(process: subprocess.Popen, grace: float = 3.0) -> None:
    """End a process that leads a group, and the group; at first politely."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
