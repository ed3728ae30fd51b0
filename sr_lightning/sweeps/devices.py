"""Device queue: each GPU of a machine trains one cell at a time, first come, first served.

Devices are held by file locks, which the operating system releases when the process ends, even if it is killed.
"""

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from omegaconf import DictConfig

from sr_lightning.errors import InputError
from sr_lightning.utils.atomic_files import replacing

PAUSE = 0.1  # seconds between two attempts to lock a device


def visible_devices() -> list[str]:
    """List the devices that child processes may use: CUDA_VISIBLE_DEVICES, or all that nvidia-smi lists."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return re.findall(r"^GPU (\d+):", listed.stdout, re.MULTILINE) if listed.returncode == 0 else []


def devices_wanted(trainer: DictConfig, available: Sequence[str]) -> int:
    """Number of devices that a cell trains on; 0 on the CPU.

    Args:
        trainer: The config's trainer.
        available: Names of the devices.

    Raises:
        InputError: More devices than available, or a list of certain devices.
    """
    if trainer.accelerator == "cpu" or not available:
        return 0
    wanted = str(trainer.devices)
    if wanted in ("-1", "auto"):
        return len(available)
    if not wanted.isdigit() or not 1 <= int(wanted) <= len(available):
        raise InputError(
            f"trainer.devices={wanted}: in a sweep give the number of devices of each cell, from 1 to {len(available)} "
            f"(available: {', '.join(available)}), or -1 for all"
        )
    return int(wanted)


@contextmanager
def acquire_devices(count: int, devices: Sequence[str], folder: Path | None = None) -> Iterator[list[str]]:
    """Wait for free devices and hold them during the block.

    Requests for the same devices are served in the order of arrival, whatever their size.

    Args:
        count: Number of devices.
        devices: Names to choose from.
        folder: Folder of the locks; None: one per user and machine.
    """
    if count == 0:
        yield []
        return
    folder = folder or Path(tempfile.gettempdir(), f"sr_lightning_{os.getuid()}", "devices")
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        mine: list[str] = []
        with _queue_turn(devices, folder):
            while len(mine) < count:
                for name in devices:
                    if name not in mine and len(mine) < count:
                        lock = FileLock(folder / f"device_{re.sub('[^A-Za-z0-9-]', '-', name)}.lock")
                        try:
                            lock.acquire(timeout=0)
                        except Timeout:
                            continue
                        held.callback(lock.release)
                        mine.append(name)
                if len(mine) < count:
                    time.sleep(PAUSE)
        yield [name for name in devices if name in mine]


@contextmanager
def _queue_turn(devices: Sequence[str], folder: Path) -> Iterator[None]:
    """Wait for the first place in the queue of all processes that want some of these devices.

    Each process takes a number and locks the file of that number; it waits until the files of lower numbers are
    unlocked.
    """
    with FileLock(folder / "numbers.lock"):
        numbers = {int(path.stem): json.loads(path.read_text()) for path in folder.glob("*.wants")}
        number = max(numbers, default=0) + 1
        mine = FileLock(folder / f"{number}.lock")
        mine.acquire()
        with replacing(folder / f"{number}.wants") as temporary:
            temporary.write_text(json.dumps(list(devices)))
    try:
        for earlier in sorted(number for number, wants in numbers.items() if set(wants) & set(devices)):
            FileLock(folder / f"{earlier}.lock").acquire(poll_interval=PAUSE).lock.release()
            _leave_queue(earlier, folder)  # its process has its devices, or was killed
        yield
    finally:
        _leave_queue(number, folder)
        mine.release()


def _leave_queue(number: int, folder: Path) -> None:
    for suffix in ("wants", "lock"):
        (folder / f"{number}.{suffix}").unlink(missing_ok=True)
