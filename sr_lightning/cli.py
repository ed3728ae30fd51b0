"""What both entry points share: Hydra's resolvers, and errors the user can mend without a traceback.

Imported before Hydra runs, so it must stay light: torch is imported by the tasks, and `--help` answers at once.
"""

import atexit
import functools
import logging
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from sr_lightning.errors import InputError
from sr_lightning.sweeps.cells import cell_name
from sr_lightning.sweeps.devices import visible_devices
from sr_lightning.sweeps.processes import end_with_parent, is_cell
from sr_lightning.sweeps.record import record_failure
from sr_lightning.sweeps.run import CellFailed

log = logging.getLogger(__name__)

OmegaConf.register_new_resolver("if_none", lambda value, then, otherwise: then if value is None else otherwise)
OmegaConf.register_new_resolver("product", lambda a, b: a * b)
OmegaConf.register_new_resolver(
    "if_sweep", lambda mode, then, otherwise: then if mode == RunMode.MULTIRUN else otherwise
)
OmegaConf.register_new_resolver("kept", lambda dry_run, directory: scratch() if dry_run else directory)
OmegaConf.register_new_resolver("cell_name", lambda _root_: cell_name(_root_))
OmegaConf.register_new_resolver("num_devices", lambda: max(1, len(visible_devices())))


@functools.cache
def scratch() -> str:
    """A directory that goes with this process: a dry run leaves nothing."""
    folder = tempfile.TemporaryDirectory(prefix="sr_lightning_")
    atexit.register(folder.cleanup)
    return folder.name


def in_sweep() -> bool:
    """Whether this is a job of Hydra's multirun."""
    return HydraConfig.get().mode == RunMode.MULTIRUN


def task(function: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Write errors into the job's log; end the process with a plain message where the user can mend the input."""

    @functools.wraps(function)
    def wrapper(cfg: DictConfig) -> Any:
        if is_cell():
            end_with_parent()
        try:
            return function(cfg)
        except CellFailed:
            raise
        except Exception as error:
            mendable = find_input_error(error)
            if mendable is None:
                log.exception("failed")
            else:
                log.error("error: %s", mendable)
            if is_cell():
                record_failure(cfg, str(mendable or f"{type(error).__name__}: {error}"))
            if is_cell() or (mendable is not None and not in_sweep()):  # in a sweep the other jobs go on
                sys.exit(1)
            raise

    return wrapper


def find_input_error(error: BaseException | None) -> InputError | None:
    """The InputError behind an exception; Hydra wraps what a constructor raises."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error
