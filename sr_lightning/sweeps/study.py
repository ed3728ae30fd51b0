"""Resume interrupted Optuna studies: Hydra's sweeper restarts its count and forgets running trials."""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, read_write

from sr_lightning.errors import InputError
from sr_lightning.runs.fingerprint import fingerprint
from sr_lightning.sweeps.invocation import relative
from sr_lightning.sweeps.study_plot import draw_study, no_value

if TYPE_CHECKING:
    from optuna import Study

log = logging.getLogger(__name__)

PICTURE = "study.png"
INTERRUPTED = "interrupted"  # attribute of a trial that ended with its sweep; its settings are tried again

_locks: list[FileLock] = []  # held until this process ends


def prepare_study(config: DictConfig) -> int:
    """Prepare a study for its next invocation, before Hydra's Optuna sweeper opens it.

    Trials that were running are tried again with the same settings, which resumes their cells, and n_trials becomes
    the number of missing trials.

    Args:
        config: The sweep's config; changed in place.

    Returns:
        The number of trials that have ended.

    Raises:
        InputError: Another process is searching the study, or Hydra's own settings are used.
    """
    import optuna

    settings = config.hydra.sweeper
    if settings.storage is None or "minimize" in str(settings.direction):
        raise InputError("hydra/sweeper=optuna alone keeps no study and minimises PSNR; use search=optuna")
    if str(settings.direction).rpartition(".")[2] != "maximize":
        raise InputError(f"hydra.sweeper.direction={settings.direction}: the search is for the highest PSNR, maximize")
    if settings.n_jobs < 1:
        raise InputError(f"hydra.sweeper.n_jobs={settings.n_jobs}: at least 1 trial must run at a time")
    lock = FileLock(Path(config.hydra.sweep.dir, ".sweep", "study.lock"))
    Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(timeout=5)
    except Timeout:
        raise InputError(f"{config.hydra.sweep.dir}: another process is searching this study") from None
    _locks.append(lock)
    HydraConfig.instance().set_config(config)  # as in a job: the settings refer to it
    with read_write(config.hydra):
        settings.study_name = settings.study_name or fingerprint(config)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=settings.study_name, storage=settings.storage, direction=settings.direction, load_if_exists=True
    )
    trials = study.get_trials(deepcopy=False)
    for trial in trials:
        if trial.state == optuna.trial.TrialState.RUNNING:
            study.enqueue_trial(trial.params)
            study._storage.set_trial_user_attr(trial._trial_id, INTERRUPTED, True)
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    trials = [trial for trial in study.get_trials(deepcopy=False) if INTERRUPTED not in trial.user_attrs]
    ended = sum(trial.state.is_finished() for trial in trials)
    if trials:
        log.info("study %s: %d of %d trials already done", settings.study_name, ended, settings.n_trials)
    with read_write(config.hydra):
        settings.n_trials = max(0, settings.n_trials - ended)
        if settings.sampler.get("seed") is not None:
            settings.sampler.seed += len(trials)  # otherwise the first trials would be drawn again
    _explain_errors(study)
    return ended


def _explain_errors(study: "Study") -> None:
    """End in one line if a range is wrong, or if no trial has a value: Hydra's sweeper asks for the best one."""
    from hydra_plugins.hydra_optuna_sweeper.optuna_sweeper import OptunaSweeper

    sweep = OptunaSweeper.sweep

    def explained(self: Any, arguments: Any) -> Any:
        try:
            return sweep(self, arguments)
        except ValueError as error:
            trials = study.get_trials(deepcopy=False)
            no_best = str(error) in ("Record does not exist.", "No trials are completed yet.")  # of SQL, of Redis
            sys.exit(f"error: {no_value(len(trials)) if no_best else f'search=optuna: {error}'}")

    OptunaSweeper.sweep = explained


def picture_study(config: DictConfig) -> str:
    """Draw the study of a sweep that has ended into its folder; return a line on the picture.

    Raises:
        InputError: The picture cannot be written.
    """
    import optuna

    settings = config.hydra.sweeper
    study = optuna.load_study(study_name=settings.study_name, storage=settings.storage)
    return draw_study(relative(Path(config.hydra.sweep.dir).absolute()) / PICTURE, study)
