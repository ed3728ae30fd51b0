"""Many runs from one command. Light: imported before Hydra runs, so torch is not."""

from sr_lightning.sweeps.callback import Sweeps
from sr_lightning.sweeps.processes import in_charge_of
from sr_lightning.sweeps.run import in_sweep, run_cell

__all__ = ["Sweeps", "in_charge_of", "in_sweep", "run_cell"]
