"""Hydra callback that prepares a sweep, in the process of the command."""

import atexit
import shutil
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict, read_write

from sr_lightning.errors import InputError
from sr_lightning.sweeps.devices import visible_devices
from sr_lightning.sweeps.invocation import FINAL_STATUSES, SweepInvocation, plan, summary
from sr_lightning.utils.signals import handle_signals


class Sweeps(Callback):
    """Prepare a sweep, and print its summary when the process exits: Hydra has no callback for failed jobs."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            prepare(config)
        except InputError as error:
            sys.exit(f"error: {error}")
        except Exception:  # Hydra would only warn
            traceback.print_exc()
            sys.exit(1)


def prepare(config: DictConfig) -> None:
    """Begin an invocation of a sweep.

    Args:
        config: The sweep's config; changed in place for a study or a dry run.

    Raises:
        InputError: The launcher or the sweeper cannot be used with these settings.
    """
    launcher, sweeper = config.hydra.launcher._target_, config.hydra.sweeper._target_
    if config.dry_run:  # in this process, one cell after the other, without writing to a study
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.launcher = {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}
            if "optuna" in sweeper:
                config.hydra.sweeper.storage = None
    by_scheduler = launcher.endswith("SlurmLauncher") and not config.dry_run
    if by_scheduler and shutil.which("srun") is None:
        raise InputError("launcher=slurm: there is no srun on this machine; start the sweep on the cluster")
    invocation = SweepInvocation.begin(Path(config.hydra.sweep.dir), None if by_scheduler else visible_devices())
    handle_signals(first=invocation.stop_cells)
    atexit.register(print_summary, invocation, config.dry_run, number_of_cells(config))
    if "submitit" in config.hydra.launcher._target_:  # its jobs write to files only
        threading.Thread(target=print_progress, args=(invocation,), daemon=True).start()
    if "optuna" in sweeper and not config.dry_run:
        from sr_lightning.sweeps.study import prepare_study

        prepare_study(config)


def number_of_cells(config: DictConfig) -> int | None:
    """Return the number of cells of a sweep over given values; None for a study, whose trials are not known."""
    sweeper = config.hydra.sweeper
    if not sweeper._target_.endswith("BasicSweeper"):
        return None
    params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    overrides = OverridesParser.create().parse_overrides([*params, *config.hydra.overrides.task])
    return sum(map(len, BasicSweeper.split_arguments(overrides, None)))


def print_summary(invocation: SweepInvocation, dry_run: bool, number: int | None) -> None:
    """Print a table of all cells: their results, or the estimates of a dry run; nothing without cells."""
    if reports := invocation.reports():
        print(f"\n{plan(reports) if dry_run else summary(invocation, number)}", flush=True)


def print_progress(invocation: SweepInvocation, pause: float = 1.0) -> None:
    """Print each change of a cell's status, until this process exits."""
    printed: dict[int, str] = {}
    while True:
        for report in invocation.reports():
            if report["status"] != printed.get(report["number"]) and report["status"] in (*FINAL_STATUSES, "running"):
                printed[report["number"]] = report["status"]
                print(f"{report['cell']}: {report['status']} {report.get('error', '')}".rstrip(), flush=True)
        time.sleep(pause)
