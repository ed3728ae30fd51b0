"""Training processes: one per run directory, and none outlives the sweep that started it."""

import atexit
import json
import multiprocessing
import os
import re
import runpy
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from sr_lightning.errors import InputError
from sr_lightning.utils.held_folder import held
from sr_lightning.utils.signals import ENDING

PARENT = "SR_LIGHTNING_PARENT"  # in the environment of a cell, or of a run of Python's: the process with which it exits
CELL = "SR_LIGHTNING_CELL"  # in a cell's environment
ANSWER = "SR_LIGHTNING_ANSWER"  # in the environment of a run of Python's: the file that has what `tell_caller` writes
FIRST = "SR_LIGHTNING_FIRST_PROCESS"  # in the environment of a run's further processes: its first one
PRELOADED = {"train.py": ["sr_lightning.training.preloaded"]}  # modules that a sweep imports once for all of its cells
PAUSE = 0.5  # seconds between two checks that the parent is alive
IN_USE = 75  # exit code of a cell whose directory another process holds
OF_JOBS = {*ENDING, signal.SIGUSR2}  # which SLURM sends to every process of a job
GRACE = 30.0  # seconds in which a terminated training can take its step to the end and save


@contextmanager
def run_lock(run_dir: str | Path, patience: float = 5.0) -> Iterator[None]:
    """Lock a run directory, so that only one training at a time uses it; further ranks of that training may enter.

    Args:
        run_dir: The run's directory.
        patience: Seconds to wait for a process that is about to end.

    Raises:
        FolderInUseError: Another process holds the directory; the message names it.
    """
    with nullcontext() if process_rank() > 0 else held(Path(run_dir), patience):
        yield


def process_rank() -> int:
    """Return 0 in the first process of a training, and a positive number in all others, also on other machines.

    torchrun sets RANK, srun SLURM_PROCID; where Lightning starts the processes of a machine, they have LOCAL_RANK, and
    machines NODE_RANK.

    Raises:
        InputError: Such a variable is not a whole number.
    """
    for name in ("RANK", "SLURM_PROCID"):
        if name in os.environ:
            return number_in_environment(name)
    return number_in_environment("NODE_RANK", 0) + number_in_environment("LOCAL_RANK", 0)


def number_in_environment(name: str, default: int | None = None) -> int:
    """Return a whole number of the environment.

    Raises:
        InputError: It is missing and has no default, or is not a whole number.
    """
    value = os.environ.get(name, default)
    if not re.fullmatch(r"\d+", str(value)):
        problem = "is missing" if value is None else f"is {value!r}, not a whole number of at least 0"
        raise InputError(f"the environment variable {name} {problem}")
    return int(str(value))


def srun_started() -> bool:
    """Return True if srun has started this process, as Lightning judges it."""
    return "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def is_further_process() -> bool:
    """Return True if the first process of this machine has started this one, for another device."""
    return os.environ.get(FIRST, str(os.getpid())) != str(os.getpid())


def has_parent() -> bool:
    """Return True if this process exits with the one that started it."""
    return PARENT in os.environ


def is_cell() -> bool:
    """Return True if this process trains a cell of a sweep."""
    return CELL in os.environ


def tell_caller(**facts: Any) -> None:
    """Write the file for which a caller in Python waits, if there is one."""
    if ANSWER in os.environ and process_rank() == 0:
        Path(os.environ[ANSWER]).write_text(json.dumps(facts), encoding="utf-8")


def exit_with_first_process() -> None:
    """Let the further processes of a run exit with the first one, which starts them; killed, it cannot end them.

    In a step they would notice it, but not while they wait for it at their start.
    """

    def watch() -> None:
        while os.getppid() == first:
            time.sleep(PAUSE)
        os._exit(1)

    if process_rank() == 0 or not {FIRST, "RANK", "SLURM_PROCID"} & os.environ.keys():  # of this machine
        os.environ[FIRST] = str(os.getpid())
    else:
        first = int(os.environ.get(FIRST, os.getppid()))
        threading.Thread(target=watch, daemon=True).start()


def exit_with_parent() -> None:
    """Exit with the process that started this one, even if that is killed."""

    def watch() -> None:
        while os.getppid() == parent and (sweep is None or sweep.is_alive()):
            time.sleep(PAUSE)
        if signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:  # a second one would end it before it has saved
            os.kill(os.getpid(), signal.SIGTERM)  # saves at the step reached
        time.sleep(GRACE)
        if os.getpgrp() == os.getpid():
            os.killpg(os.getpid(), signal.SIGKILL)  # with further ranks and loaders
        os._exit(1)

    sweep = multiprocessing.parent_process()  # not its parent in the system, if it was forked from a server
    parent = int(os.environ[PARENT])
    os.environ[PARENT] = str(os.getpid())  # further ranks are started by this process
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # SLURM signals every process of a job; the sweep's job handles it
    threading.Thread(target=watch, daemon=True).start()


def start_command(words: Sequence[str], environment: Mapping[str, str], log: Path) -> BaseProcess:
    """Start `python WORDS` as the leader of a process group that exits with this process.

    On Linux it is forked from a server process that has imported torch and Lightning once for all commands.

    Args:
        words: The program and its arguments.
        environment: All variables of the process.
        log: File to which standard output and error are appended.
    """
    method = "forkserver" if sys.platform == "linux" else "spawn"
    multiprocessing.set_start_method(method, force=True)  # joblib's workers have one that the new process does not know
    context = multiprocessing.get_context(method)
    context.set_forkserver_preload(PRELOADED.get(Path(words[0]).name, []))
    log.touch()
    process = context.Process(target=_run_command, args=(list(words), dict(environment), log))
    resource_tracker.ensure_running()  # whose start changes the mask
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, OF_JOBS)
    try:
        process.start()  # the server, if it is started now, keeps the mask: it lives on to tell the exit code
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return process


def _run_command(words: list[str], environment: dict[str, str], log: Path) -> None:
    """Run `python WORDS` in this process, as if it had been started from a shell."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, OF_JOBS)
    os.setsid()
    os.environ.clear()
    os.environ.update(environment | {PARENT: str(os.getppid()), CELL: "1"})
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    except FileNotFoundError:  # the job was stopped meanwhile, and has removed the directory
        sys.exit(1)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv, sys.path[0] = words, str(Path(words[0]).parent)
    try:
        runpy.run_path(words[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # noqa: SLF001  multiprocessing leaves them out


def stop(process: BaseProcess, grace: float = GRACE) -> None:
    """Terminate the leader of a process group, which saves its run, then kill the group."""
    if process.is_alive():
        process.terminate()
        process.join(grace)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
