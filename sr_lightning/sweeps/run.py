"""Task of a sweep's jobs: skip, resume or start a cell, wait for devices, train in a subprocess."""

import logging
import os
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from sr_lightning.configs import CONF
from sr_lightning.errors import InputError
from sr_lightning.runs.fingerprint import changed_settings
from sr_lightning.runs.folder import RunFolder, remove_failed_start
from sr_lightning.runs.result import FAILED, FINISHED, PRUNED, read_result, write_result
from sr_lightning.runs.saved_config import read_config
from sr_lightning.runs.wandb_record import AGENT
from sr_lightning.sweeps.devices import acquire_devices, devices_wanted
from sr_lightning.sweeps.invocation import SweepInvocation, relative
from sr_lightning.sweeps.processes import IN_USE, start_command, stop
from sr_lightning.utils.atomic_files import one_at_a_time
from sr_lightning.utils.cores import SHARE, usable_cores
from sr_lightning.utils.held_folder import PAUSE, holder
from sr_lightning.utils.signals import ENDING, Interrupted

log = logging.getLogger(__name__)

PREEMPTED = 600.0  # seconds that SLURM has to end a job whose cell it has terminated


class CellFailed(CompactHydraException):
    """A cell failed. Its error is already logged, so Hydra prints no traceback."""


def in_sweep() -> bool:
    """Return True in a job of Hydra's multirun."""
    return HydraConfig.get().mode == RunMode.MULTIRUN


def run_cell(cfg: DictConfig) -> float:
    """Train one cell of a sweep, or the rest of it.

    Returns:
        The cell's `psnr`, from this invocation or an earlier one.

    Raises:
        CellFailed: The training raised or was killed, or the settings are invalid.
    """
    hydra = HydraConfig.get()
    invocation, cell = SweepInvocation.current(), Path(hydra.runtime.output_dir)
    report = Reporter(invocation, hydra.job.num, cell.name, list(hydra.overrides.task))
    invocation.exit_with_invocation()
    try:
        if cfg.resume is not None:
            raise InputError("resume continues a single run: leave -m out. A sweep is resumed by its own command")
        report("waiting")
        locks = invocation.sweep_dir / ".sweep" / "cells"
        locks.mkdir(exist_ok=True)
        with one_at_a_time(locks / f"{cell.name}.lock", str(relative(cell))):
            wait_for_holder(cell)
            try:
                return train_cell(cfg, invocation, cell, report)
            finally:
                remove_failed_start(cell)
    except CellFailed:
        raise
    except (Interrupted, KeyboardInterrupt):  # the second of Ray, which cancels the job
        report("interrupted")
        raise
    except SystemExit:  # of submitit, which has queued the job again
        report("waiting")
        raise
    except InputError as error:
        report("failed", error=str(error))
        raise CellFailed(f"{cell.name}: {error}") from None
    except Exception as error:
        report("failed", error=f"{type(error).__name__}: {error}")
        log.exception("%s: failed", cell.name)
        raise CellFailed(f"{cell.name}: {type(error).__name__}: {error}") from error


class Reporter:
    """Write the status of one cell to its job's file.

    Args:
        invocation: The sweep's invocation.
        number: The job's number.
        cell: The cell's name.
        overrides: The job's overrides, "key=value"; in the file they are called "words".
    """

    def __init__(self, invocation: SweepInvocation, number: int, cell: str, overrides: Sequence[str]) -> None:
        self.invocation, self.number, self.facts = invocation, number, {"cell": cell, "words": overrides}

    def __call__(self, status: str, **facts: Any) -> None:
        """Report a status and further facts."""
        self.invocation.report(self.number, **self.facts, status=status, **facts)


def train_cell(cfg: DictConfig, invocation: SweepInvocation, cell: Path, report: Reporter) -> float:
    """Train a cell that no other process is training.

    Raises:
        InputError: The directory contains a run with other settings, or the requested devices do not exist.
        CellFailed: The training ended without a result.
    """
    if result := earlier_result(cfg, cell):
        report("skipped", **numbers(result))
        return result["psnr"]
    resume = RunFolder(cell).last.is_file()
    available = invocation.facts["devices"]
    count = 0 if available is None else devices_wanted(cfg.trainer, available)
    with acquire_devices(count, available or []) as devices:
        report("running", devices=devices, started=time.time())
        code = run_in_subprocess(cfg, invocation, cell, devices, resume, report)
        ended = time.time()
    if code == IN_USE:  # another process was faster
        wait_for_holder(cell)
        return train_cell(cfg, invocation, cell, report)
    result = read_result(cell)
    if result is None and code - 128 in ENDING:
        report("interrupted", ended=ended)
        if available is None:  # a job that is preempted must not end by itself, or SLURM does not queue it again
            time.sleep(PREEMPTED)
        raise CellFailed(f"{cell.name}: {Interrupted(code - 128)}")
    if result is None or result["status"] == FAILED:
        error = result["error"] if result else exit_reason(code)
        if result is None:
            write_result(cell, FAILED, cfg, error=error)
        report("failed", error=error, ended=ended)
        raise CellFailed(f"{cell.name}: {error}")
    status = "resumed" if resume and result["status"] == FINISHED else result["status"]
    report(status, **numbers(result), ended=ended)
    return result["psnr"]


def wait_for_holder(cell: Path) -> None:
    """Wait while a process trains a cell that no lock of this machine reaches."""
    if other := holder(cell):
        log.info("%s is in use by %s: waiting until it ends", relative(cell), other)
    while holder(cell):
        time.sleep(PAUSE)


def earlier_result(cfg: DictConfig, cell: Path) -> dict[str, Any] | None:
    """Return the result of a cell that an earlier invocation has finished or pruned; None if it must be trained.

    Raises:
        InputError: The directory contains a run with other settings.
    """
    config = RunFolder(cell).config
    if config.exists() and (changed := changed_settings(read_config(config), cfg)):
        lines = "".join(f"\n  {line}" for line in changed)
        raise InputError(f"{relative(cell)} contains a run with other settings; move it away:{lines}")
    result = undamaged_result(cell)
    ended = result and (result["status"] == FINISHED or (result["status"] == PRUNED and cfg.prune_after is not None))
    return result if ended else None


def undamaged_result(cell: Path) -> dict[str, Any] | None:
    """Read result.json of a cell; None, with a line in the log, if it is damaged: the cell's run then rewrites it."""
    try:
        return read_result(cell)
    except InputError as error:
        log.warning("%s; it is written again", error)
        return None


def numbers(result: dict[str, Any]) -> dict[str, Any]:
    """Select the fields of a result that a report repeats."""
    numbers = {key: result.get(key) for key in ("psnr", "bicubic", "steps", "seconds")}  # earlier ones lack bicubic
    return numbers | ({"stopped_early": result["stopped_early"]} if "stopped_early" in result else {})


def run_in_subprocess(
    cfg: DictConfig, invocation: SweepInvocation, cell: Path, devices: Sequence[str], resume: bool, report: Reporter
) -> int:
    """Train a cell in a subprocess, and wait for it.

    Args:
        cfg: The cell's config.
        invocation: Names the program to run.
        cell: The cell's directory.
        devices: The only devices visible to it; if empty, CUDA_VISIBLE_DEVICES is not changed.
        resume: Continue from its last checkpoint.
        report: Told the number of the process.

    Returns:
        The exit code, negative for a signal.
    """
    hydra = HydraConfig.get()
    flags = [f"--config-dir={s.path}" for s in hydra.runtime.config_sources if s.provider == "command-line"]
    flags += [f"--config-name={hydra.job.config_name}"]
    overrides = [*hydra.overrides.task, "hydra.mode=RUN", f"hydra.run.dir={quoted(cell)}"]
    overrides += [f"sweep={quoted(cfg.sweep or invocation.sweep_dir.name)}"]
    overrides += [f"resume={quoted(cell)}"] if resume else []
    overrides += pictures_left_out(cfg, hydra.overrides.task)
    environment = cell_environment() | {"PYTHONUNBUFFERED": "1", SHARE: str(share_of_cores())}
    if devices:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    if invocation.abandoned():  # while this job waited for devices
        os._exit(1)
    RunFolder(cell).result.unlink(missing_ok=True)  # of an earlier failure
    overrides += ["hydra.job_logging.root.handlers=[console]"]  # redirected to the file
    process = start_command([invocation.facts["command"][0], *flags, *overrides], environment, RunFolder(cell).log)
    try:
        report("running", process=process.pid)
        while process.exitcode is None:
            process.join(PAUSE)  # Ray can interrupt Python only between two calls
        return process.exitcode
    finally:
        stop(process)


def cell_environment() -> dict[str, str]:
    """Return the environment without what makes a process one of SLURM's, or the one run of an agent of W&B."""
    return {key: value for key, value in os.environ.items() if not key.startswith("SLURM_") and key not in AGENT}


def pictures_left_out(cfg: DictConfig, overrides: Sequence[str]) -> list[str]:
    """Return overrides that leave out pictures and report, unless the sweep or its recipe sets their number."""
    usual = OmegaConf.load(CONF / "train.yaml").num_comparisons
    keys = ("num_comparisons", "report_images")
    chosen = any(override.lstrip("+").startswith(f"{key}=") for override in overrides for key in keys)
    return [] if chosen or any(cfg[key] != usual for key in keys) else [f"{key}=0" for key in keys]


def share_of_cores() -> int:
    """Return the number of cores for one of the cells that this machine trains at the same time."""
    cores = usable_cores()
    launcher = HydraConfig.get().launcher
    if "num_cpus" in launcher:  # of Ray
        return launcher.num_cpus
    jobs = launcher.get("n_jobs", 1)  # -1 in joblib: as many as there are cores
    return max(1, cores // (jobs if jobs > 0 else cores))


def exit_reason(code: int) -> str:
    """Describe the exit of a process that left no result."""
    if code >= 0:
        return f"ended with exit code {code} and without a result"
    name = signal.Signals(-code).name
    return f"killed by signal {-code} ({name}){': out of memory?' if name == 'SIGKILL' else ''}"


def quoted(value: object) -> str:
    r"""Quote a value for Hydra's command line.

    Backslashes are doubled only before a quotation mark, as Hydra reads them.

    >>> print(quoted("it's"), quoted("C:\\"))
    'it\'s' 'C:\\'
    """
    return "'" + re.sub(r"(\\*)('|\Z)", lambda end: 2 * end[1] + (r"\'" if end[2] else ""), str(value)) + "'"


def unquoted(text: str) -> str:
    """Return the value of a text on Hydra's command line, which may be quoted."""
    mark = text[:1]
    if mark not in ("'", '"') or len(text) < 2 or text[-1] != mark:
        return text
    return re.sub(rf"((?:\\\\)*)(\\{mark}|\Z)", lambda end: end[1][::2] + end[2][1:], text[1:-1])


def hydra_value(text: str) -> str:
    """Quote a text for Hydra's command line where necessary."""
    return text if re.fullmatch(r"[\w./-]+", text, re.ASCII) else quoted(text)
