"""Degradations: HR to LR."""

from sr_lightning.degradations.bicubic import Bicubic, crop_to_multiple, downscale, resize_strips, upscale
from sr_lightning.degradations.blur import Blur
from sr_lightning.degradations.jpeg import JPEG
from sr_lightning.degradations.noise import Noise
from sr_lightning.degradations.random_degradation import EitherOrder, RandomDegradation
from sr_lightning.degradations.resize import Resize
from sr_lightning.degradations.unsharp_mask import sharpen

__all__ = [
    "JPEG",
    "Bicubic",
    "Blur",
    "EitherOrder",
    "Noise",
    "RandomDegradation",
    "Resize",
    "crop_to_multiple",
    "downscale",
    "resize_strips",
    "sharpen",
    "upscale",
]
