"""The LightningModules: how a network is trained."""

from sr_lightning.modules.sr import SRModule

__all__ = ["SRModule"]
