"""What Hydra calls before a sweep, in the process that runs the command."""

import atexit
import sys
import threading
import time
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from sr_lightning.errors import InputError
from sr_lightning.sweeps.calls import ENDED, Call, summary
from sr_lightning.sweeps.devices import visible_devices


class Sweeps(Callback):
    """Prepares a sweep, and sums it up at the end of the process: Hydra calls nothing when a job has failed."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        launcher, sweeper = config.hydra.launcher._target_, config.hydra.sweeper._target_
        by_scheduler = launcher.endswith("SlurmLauncher")
        call = Call.begin(Path(config.hydra.sweep.dir), None if by_scheduler else visible_devices())
        atexit.register(lambda: print(f"\n{summary(call)}", flush=True))
        if "submitit" in launcher:  # whose jobs write to files alone
            threading.Thread(target=announce, args=(call,), daemon=True).start()
        if "optuna" in sweeper:
            from sr_lightning.sweeps.study import prepare_study

            try:
                prepare_study(config)
            except InputError as error:
                sys.exit(f"error: {error}")  # any other exception would be a warning of Hydra's


def announce(call: Call, pause: float = 1.0) -> None:
    """Print what becomes of a call's cells, as long as this process lives."""
    said: dict[int, str] = {}
    while True:
        for report in call.reports():
            if report["status"] != said.get(report["number"]) and report["status"] in (*ENDED, "running"):
                said[report["number"]] = report["status"]
                print(f"{report['cell']}: {report['status']} {report.get('error', '')}".rstrip(), flush=True)
        time.sleep(pause)
