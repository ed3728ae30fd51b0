"""Losses missing in torch: modules `loss(sr, hr)` -> scalar, and adversarial losses of logits."""

from sr_lightning.losses.adversarial import Adversarial, Hinge, LeastSquares, RelativisticAverage, Vanilla
from sr_lightning.losses.frequency import FrequencyL1
from sr_lightning.losses.pixel import Charbonnier, TotalVariation
from sr_lightning.losses.structure import LDL, MSSSIM
from sr_lightning.losses.vgg import VGGLoss
from sr_lightning.losses.weighted_sum import WeightedSum

__all__ = [
    "LDL",
    "MSSSIM",
    "Adversarial",
    "Charbonnier",
    "FrequencyL1",
    "Hinge",
    "LeastSquares",
    "RelativisticAverage",
    "TotalVariation",
    "VGGLoss",
    "Vanilla",
    "WeightedSum",
]
