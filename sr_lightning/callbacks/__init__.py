"""Lightning callbacks."""

from sr_lightning.callbacks.alarms import Alarms
from sr_lightning.callbacks.checkpoints import BestCheckpoint, LastCheckpoint, TopCheckpoints
from sr_lightning.callbacks.early_stopping import EarlyStopping
from sr_lightning.callbacks.overfit import Overfit
from sr_lightning.callbacks.pictures import ValidationPictures
from sr_lightning.callbacks.progress import Progress
from sr_lightning.callbacks.pruning import Pruning

__all__ = [
    "Alarms",
    "BestCheckpoint",
    "EarlyStopping",
    "LastCheckpoint",
    "Overfit",
    "Progress",
    "Pruning",
    "TopCheckpoints",
    "ValidationPictures",
]
