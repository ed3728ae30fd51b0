"""What Hydra calls before a sweep, in the process that runs the command."""

import atexit
import shutil
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict, read_write

from sr_lightning.errors import InputError
from sr_lightning.sweeps.devices import visible_devices
from sr_lightning.sweeps.invocation import ENDED, Call, plan, summary


class Sweeps(Callback):
    """Prepares a sweep, and sums it up at the end of the process: Hydra calls nothing when a job has failed."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            prepare(config)
        except InputError as error:
            sys.exit(f"error: {error}")
        except Exception:  # of which Hydra would make a warning
            traceback.print_exc()
            sys.exit(1)


def prepare(config: DictConfig) -> None:
    """Begin a call of a sweep.

    Args:
        config: Of the sweep; a study's is changed in place.

    Raises:
        InputError: The launcher or the sweeper cannot be used like this.
    """
    launcher, sweeper = config.hydra.launcher._target_, config.hydra.sweeper._target_
    if config.dry_run:  # in this process, one cell after the other, and without a trace in a study
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.launcher = {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}
            if "optuna" in sweeper:
                config.hydra.sweeper.storage = None
    by_scheduler = launcher.endswith("SlurmLauncher") and not config.dry_run
    if by_scheduler and shutil.which("srun") is None:
        raise InputError("launcher=slurm: there is no srun on this machine; start the sweep on one of the cluster's")
    call = Call.begin(Path(config.hydra.sweep.dir), None if by_scheduler else visible_devices())
    atexit.register(print_summary, call, config.dry_run)
    if "submitit" in config.hydra.launcher._target_:  # whose jobs write to files alone
        threading.Thread(target=announce, args=(call,), daemon=True).start()
    if "optuna" in sweeper and not config.dry_run:
        from sr_lightning.sweeps.study import prepare_study

        prepare_study(config)


def print_summary(call: Call, dry_run: bool) -> None:
    """What became of each cell, or would be needed for it, if a call has come to any."""
    if reports := call.reports():
        print(f"\n{plan(reports) if dry_run else summary(call)}", flush=True)


def announce(call: Call, pause: float = 1.0) -> None:
    """Print what becomes of a call's cells, as long as this process lives."""
    said: dict[int, str] = {}
    while True:
        for report in call.reports():
            if report["status"] != said.get(report["number"]) and report["status"] in (*ENDED, "running"):
                said[report["number"]] = report["status"]
                print(f"{report['cell']}: {report['status']} {report.get('error', '')}".rstrip(), flush=True)
        time.sleep(pause)
