"""LightningModules: train a network on a pixel loss, or against a discriminator."""

from sr_lightning.modules.gan import GANModule
from sr_lightning.modules.sr import SRModule

__all__ = ["GANModule", "SRModule"]
