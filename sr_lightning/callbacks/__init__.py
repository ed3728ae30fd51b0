"""What happens around training."""

from sr_lightning.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from sr_lightning.callbacks.progress import Progress

__all__ = ["BestCheckpoint", "LastCheckpoint", "Progress"]
