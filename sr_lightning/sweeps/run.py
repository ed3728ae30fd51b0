"""What a sweep does for each cell: find out what is left to do, wait for devices, train in a process of its own."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from sr_lightning.errors import InputError
from sr_lightning.runs.fingerprint import changed_settings
from sr_lightning.runs.result import FAILED, FINISHED, PRUNED, RESULT, read_result, write_result
from sr_lightning.sweeps.devices import devices_wanted, lent
from sr_lightning.sweeps.invocation import Call, relative
from sr_lightning.sweeps.processes import PARENT, stop
from sr_lightning.utils.atomic_files import one_at_a_time

log = logging.getLogger(__name__)


class CellFailed(CompactHydraException):
    """A cell that came to nothing. What there is to say has been said: Hydra prints no traceback of it."""


def in_sweep() -> bool:
    """True in a job of Hydra's multirun."""
    return HydraConfig.get().mode == RunMode.MULTIRUN


def run_cell(cfg: DictConfig) -> float:
    """The task of a sweep's job: train one cell, or what is left of it.

    Returns:
        The cell's `psnr`, of this call or an earlier one.

    Raises:
        CellFailed: It raised, was killed, or has settings that cannot be.
    """
    hydra = HydraConfig.get()
    call, cell = Call.current(), Path(hydra.runtime.output_dir)
    report = Reporter(call, hydra.job.num, cell.name, list(hydra.overrides.task))
    call.end_with_it()
    try:
        if cfg.resume is not None:
            raise InputError("resume goes on with one run: leave -m out. A sweep goes on by its own command")
        report("waiting")
        locks = call.sweep_dir / ".sweep" / "cells"
        locks.mkdir(exist_ok=True)
        with one_at_a_time(locks / f"{cell.name}.lock", str(relative(cell))):
            return train_cell(cfg, call, cell, report)
    except CellFailed:
        raise
    except InputError as error:
        report("failed", error=str(error))
        log.error("%s: error: %s", cell.name, error)
        raise CellFailed(f"{cell.name}: {error}") from None
    except Exception as error:
        report("failed", error=f"{type(error).__name__}: {error}")
        log.exception("%s: failed", cell.name)
        raise CellFailed(f"{cell.name}: {type(error).__name__}: {error}") from error


class Reporter:
    """Writes down what becomes of one cell.

    Args:
        call: The call.
        number: The job's.
        cell: Its name.
        words: Of the job's command.
    """

    def __init__(self, call: Call, number: int, cell: str, words: Sequence[str]) -> None:
        self.call, self.number, self.facts = call, number, {"cell": cell, "words": words}

    def __call__(self, status: str, **facts: Any) -> None:
        """Report a status and whatever else is known."""
        self.call.report(self.number, **self.facts, status=status, **facts)


def train_cell(cfg: DictConfig, call: Call, cell: Path, report: Reporter) -> float:
    """`run_cell`, once no other process works on the cell.

    Raises:
        InputError: The directory holds a run with other settings, or the devices asked for do not exist.
        CellFailed: The training ended without a result.
    """
    config = cell / "config.yaml"
    if config.exists() and (changed := changed_settings(OmegaConf.load(config), cfg)):
        lines = "".join(f"\n  {line}" for line in changed)
        raise InputError(f"{relative(cell)} holds a run with other settings; move it away:{lines}")
    result = read_result(cell)
    if result and (result["status"] == FINISHED or (result["status"] == PRUNED and cfg.prune_after is not None)):
        log.info("%s: %s before, %.2f dB", cell.name, result["status"], result["psnr"])
        report("skipped", **numbers(result))
        return result["psnr"]
    resume = (cell / "checkpoints" / "last.ckpt").is_file()
    there = call.facts["devices"]
    count = 0 if there is None else devices_wanted(cfg.trainer, there)
    with lent(count, there or []) as devices:
        report("running", devices=devices, started=time.time())
        place = f" on {'GPU' if count == 1 else 'GPUs'} {', '.join(devices)}" if devices else ""
        log.info("%s: %s%s", cell.name, "resumed" if resume else "started", place)
        code = train_apart(cfg, call, cell, devices, resume)
        ended = time.time()
    result = read_result(cell)
    if result is None or result["status"] == FAILED:
        error = result["error"] if result else how_it_ended(code)
        if result is None:
            write_result(cell, FAILED, cfg, error=error)
        report("failed", error=error, ended=ended)
        tail = "" if shares_terminal() else "".join(f"\n  | {line}" for line in last_lines(cell / "train.log"))
        print(f"{cell.name}: FAILED, {error}\n  see {relative(cell / 'train.log')}{tail}", file=sys.stderr, flush=True)
        raise CellFailed(f"{cell.name}: {error}")
    status = "resumed" if resume and result["status"] == FINISHED else result["status"]
    report(status, **numbers(result), ended=ended)
    log.info("%s: %s, %.2f dB", cell.name, result["status"], result["psnr"])
    return result["psnr"]


def numbers(result: dict[str, Any]) -> dict[str, Any]:
    """What a report takes over from a result."""
    return {key: result[key] for key in ("psnr", "steps", "seconds")}


def train_apart(cfg: DictConfig, call: Call, cell: Path, devices: Sequence[str], resume: bool) -> int:
    """Train a cell in a process of its own, and wait for it.

    Args:
        cfg: The cell's config.
        call: Which program to run.
        cell: Its directory.
        devices: Those it is to see; none leaves the environment as it is.
        resume: Go on from its last checkpoint.

    Returns:
        The exit code, negative for a signal.
    """
    hydra = HydraConfig.get()
    flags = [f"--config-dir={s.path}" for s in hydra.runtime.config_sources if s.provider == "command-line"]
    flags += [f"--config-name={hydra.job.config_name}"]
    words = [*hydra.overrides.task, "hydra.mode=RUN", f"hydra.run.dir={quoted(cell)}"]
    words += [f"sweep={quoted(cfg.sweep or call.sweep_dir.name)}"]
    words += [f"resume={quoted(cell)}"] if resume else []
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}  # one process
    environment |= {PARENT: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
    if devices:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    if call.abandoned():  # while this job waited for devices
        os._exit(1)
    (cell / RESULT).unlink(missing_ok=True)  # of a failure before
    with open(cell / "train.log", "ab") as file:
        if shares_terminal():
            streams = {}
        else:
            streams = {"stdout": file, "stderr": subprocess.STDOUT}
            words += ["hydra.job_logging.root.handlers=[console]"]  # which goes to the file
        process = subprocess.Popen(
            [sys.executable, call.facts["command"][0], *flags, *words],
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            **streams,
        )
    try:
        return process.wait()
    finally:
        stop(process)


def shares_terminal() -> bool:
    """Whether cells write to the sweep's own output: under the launcher that runs one after the other."""
    return HydraConfig.get().launcher._target_.endswith("BasicLauncher")


def how_it_ended(code: int) -> str:
    """What can be said of a process that left no result."""
    if code >= 0:
        return f"ended with exit code {code} and without a result"
    name = signal.Signals(-code).name
    return f"killed by signal {-code} ({name}){': out of memory?' if name == 'SIGKILL' else ''}"


def last_lines(path: Path, count: int = 8) -> list[str]:
    """The last lines of a text file."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 8192))
        return file.read().decode(errors="replace").splitlines()[-count:]


def quoted(value: object) -> str:
    """A value as Hydra's command line takes it, whatever characters it has."""
    return "'" + str(value).replace("'", r"\'") + "'"
