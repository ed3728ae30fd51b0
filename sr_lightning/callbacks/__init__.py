"""What happens around training."""

from sr_lightning.callbacks.last_checkpoint import LastCheckpoint
from sr_lightning.callbacks.progress import Progress

__all__ = ["LastCheckpoint", "Progress"]
