"""The scoring protocol, and PSNR and SSIM under it."""

from sr_lightning.metrics.protocol import PerImage, Protocol, Score, score
from sr_lightning.metrics.psnr_ssim import psnr, ssim, ssim_daala

__all__ = ["PerImage", "Protocol", "Score", "psnr", "score", "ssim", "ssim_daala"]
