"""What happens around training."""

from sr_lightning.callbacks.alarms import Alarms
from sr_lightning.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from sr_lightning.callbacks.pictures import ValidationPictures
from sr_lightning.callbacks.progress import Progress

__all__ = ["Alarms", "BestCheckpoint", "LastCheckpoint", "Progress", "ValidationPictures"]
