"""Sweeps: many runs from one command. Imported before Hydra runs, so it must not import torch."""

from sr_lightning.errors import require_training_packages

require_training_packages(__name__)

from sr_lightning.sweeps.agents import agent_devices
from sr_lightning.sweeps.callback import RunDirectory, Sweeps
from sr_lightning.sweeps.processes import run_lock
from sr_lightning.sweeps.run import in_sweep, run_cell

__all__ = ["RunDirectory", "Sweeps", "agent_devices", "in_sweep", "run_cell", "run_lock"]
