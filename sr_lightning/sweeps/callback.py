"""Hydra callbacks of a command: they check the directory of a run, and prepare a sweep."""

import atexit
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from sr_lightning.errors import InputError
from sr_lightning.runs.wandb_record import has_record, not_uploaded, sync_command_of_sweep
from sr_lightning.sweeps.cell_lines import CellLines
from sr_lightning.sweeps.devices import visible_devices
from sr_lightning.sweeps.invocation import SweepInvocation, plan, relative, summary
from sr_lightning.utils.atomic_files import check_writable
from sr_lightning.utils.messages import show
from sr_lightning.utils.signals import handle_signals


class Sweeps(Callback):
    """Prepare a sweep, and print its summary when the process exits: Hydra has no callback for failed jobs."""

    lines: CellLines | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {}  # launchers send a copy to their workers, and `lines` has a lock

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            self.lines = prepare(config)
        except InputError as error:
            sys.exit(f"error: {error}")
        except Exception:  # Hydra would only warn
            traceback.print_exc()
            sys.exit(1)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Draw the study of a search, after its last trial."""
        if self.lines is None or "optuna" not in config.hydra.sweeper._target_:
            return
        from sr_lightning.sweeps.study import picture_study

        try:
            self.lines.closing = picture_study(config)
        except InputError as error:
            self.lines.closing = f"warning: {error}"


class RunDirectory(Callback):
    """Hydra callback that ends a command with one line if Hydra cannot create the directory of its run."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        hydra = HydraConfig.instance()
        before, hydra.cfg = hydra.cfg, config  # as Hydra does next: the name of the directory refers to it
        try:
            folder = config.hydra.run.dir
            check_writable(Path(folder), f"the run's directory {folder}")
        except InputError as error:
            sys.exit(f"error: {error}")
        finally:
            hydra.cfg = before


def prepare(config: DictConfig) -> CellLines | None:
    """Begin an invocation of a sweep.

    Args:
        config: The sweep's config; changed in place for a study or a dry run.

    Returns:
        Printer of the cells that end, which has started; None for a dry run.

    Raises:
        InputError: The launcher or the sweeper cannot be used with these settings.
    """
    launcher, sweeper = config.hydra.launcher._target_, config.hydra.sweeper._target_
    if config.dry_run:  # in this process, one cell after the other, without writing to a study
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.launcher = {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}
            if "optuna" in sweeper:
                config.hydra.sweeper.storage = None
    check_waiting(config.sweep_wait, launcher, sweeper)
    by_scheduler = launcher.endswith("SlurmLauncher") and not config.dry_run
    if by_scheduler:
        if absent := [name for name in ("sbatch", "srun", "squeue") if shutil.which(name) is None]:
            raise InputError(f"launcher=slurm: there is no {absent[0]} on this machine; start the sweep on the cluster")
        from sr_lightning.sweeps.slurm import SlurmLauncher

        SlurmLauncher.replace_submitit()
    cells, done, facts = number_of_cells(config), None, {}
    by_ray = launcher.endswith("RayLauncher") and not config.dry_run
    if by_ray:
        from sr_lightning.sweeps.ray_launcher import cells_of_nodes, connect

        facts["ray"] = connect(config.hydra.launcher)
        if "optuna" in sweeper and OmegaConf.is_interpolation(config.hydra.sweeper, "n_jobs"):
            with read_write(config.hydra):
                _, config.hydra.sweeper.n_jobs = cells_of_nodes(config)
    if "optuna" in sweeper and not config.dry_run:
        from sr_lightning.sweeps.study import prepare_study

        done = prepare_study(config)
        cells = done + config.hydra.sweeper.n_trials
    devices = None if by_scheduler else [] if by_ray else visible_devices()
    check_writable(Path(config.hydra.sweep.dir), f"the sweep's directory {config.hydra.sweep.dir}")
    invocation = SweepInvocation.begin(Path(config.hydra.sweep.dir), devices, cells=cells, done=done, **facts)
    handle_signals(first=None if by_ray else invocation.stop_cells)
    if config.dry_run:
        atexit.register(print_plan, invocation)
        return None
    lines = CellLines(invocation)
    atexit.register(print_summary, lines, number_of_cells(config))
    lines.start()
    return lines


def check_waiting(wait: Any, launcher: str, sweeper: str) -> None:
    """Check that jobs for which the command does not wait can go on without it.

    Raises:
        InputError: The value is neither true nor false, or the launcher or the sweeper needs the command.
    """
    if wait is None or wait is True:
        return
    if wait is not False:
        raise InputError(f"sweep_wait={wait}: choose true or false")
    if "optuna" in sweeper:
        raise InputError("sweep_wait=false: search=optuna needs the score of each trial; leave one of them out")
    if not launcher.endswith("SlurmLauncher"):
        raise InputError("sweep_wait=false: only SLURM's jobs go on without this command; add launcher=slurm")


def number_of_cells(config: DictConfig) -> int | None:
    """Return the number of cells of a sweep over given values; None for a study, whose trials are not known."""
    sweeper = config.hydra.sweeper
    if not sweeper._target_.endswith("BasicSweeper"):
        return None
    params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    overrides = OverridesParser.create().parse_overrides([*params, *config.hydra.overrides.task])
    return sum(map(len, BasicSweeper.split_arguments(overrides, None)))


def print_plan(invocation: SweepInvocation) -> None:
    """Print the estimates of a dry run; nothing without cells."""
    if reports := invocation.reports():
        show(f"\n{plan(reports)}")


def print_summary(lines: CellLines, number: int | None) -> None:
    """Print the cells that have just ended, a table of all unless there are none, and the closing line."""
    lines.update()
    if lines.invocation.reports():
        show(f"\n{summary(lines.invocation, number)}{upload_hint(lines.invocation)}")
    if lines.closing:
        show(lines.closing)


def upload_hint(invocation: SweepInvocation) -> str:
    """Name the command that uploads the cells which Weights & Biases has recorded offline; empty without any."""
    cells = [invocation.sweep_dir / report["cell"] for report in invocation.reports()]
    if not any(has_record(cell) and not_uploaded(cell) for cell in cells):
        return ""
    return f"\nWeights & Biases, to upload the sweep: {sync_command_of_sweep(relative(invocation.sweep_dir))}"
