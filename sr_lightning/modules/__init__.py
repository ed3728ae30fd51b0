"""LightningModules: how a network is trained."""

from sr_lightning.modules.gan import GANModule
from sr_lightning.modules.sr import SRModule

__all__ = ["GANModule", "SRModule"]
