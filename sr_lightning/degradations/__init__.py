"""hr -> lr."""

from sr_lightning.degradations.bicubic import Bicubic, crop_to_multiple, downscale, upscale

__all__ = ["Bicubic", "crop_to_multiple", "downscale", "upscale"]
