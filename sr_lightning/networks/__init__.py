"""The networks: plain modules `network(lr) -> sr`, one paper, one file, one public class."""

from sr_lightning.networks.bicubic import Bicubic
from sr_lightning.networks.espcn import ESPCN
from sr_lightning.networks.srcnn import SRCNN

__all__ = ["ESPCN", "SRCNN", "Bicubic"]
