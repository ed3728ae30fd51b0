"""Optimizers and schedules missing in torch."""

from sr_lightning.optim.muon import Muon
from sr_lightning.optim.schedule import step_decay, warmup_cosine

__all__ = ["Muon", "step_decay", "warmup_cosine"]
