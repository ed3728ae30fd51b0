"""Overfitting of one batch, to see that network, loss and optimizer can learn at all."""

import logging

import pytorch_lightning as pl
import torch

from sr_lightning.metrics.psnr_ssim import psnr

log = logging.getLogger(__name__)


class Overfit(pl.Callback):
    """Train on the first batch at every step; log its PSNR as train/psnr in dB, and at the end whether it has risen.

    The PSNR is that of the network's output in evaluation mode.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data = trainer.datamodule
        batch = data.train_batches(trainer.global_rank, trainer.world_size, on_device=False)[0]
        self.batch = data.to_float(data.transfer_batch_to_device(batch, pl_module.device, 0))
        self.first = self.psnr(pl_module)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx: int) -> None:
        batch.update(self.batch)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        if (batch_idx + 1) % pl_module.log_every == 0:
            pl_module.log_scalars({"train/psnr": self.psnr(pl_module)}, batch_idx + 1)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        last = self.psnr(pl_module)
        if trainer.is_global_zero:
            rises = last > self.first
            text = "" if rises else ": it has not risen. Look at the learning rate, the loss and the network"
            log.log(
                logging.INFO if rises else logging.WARNING,
                *("overfit  PSNR of the batch: %.2f dB at first, %.2f dB at last%s", self.first, last, text),
            )

    @torch.no_grad()
    def psnr(self, module: pl.LightningModule) -> float:
        """Return the PSNR of all patches in dB, from their mean squared error: flat patches do not dominate it."""
        module.eval()
        sr, hr = module.sr_and_target(self.batch["lr"], self.batch["hr"])
        module.train()
        as_one = (image.flatten(0, 1)[None] for image in (sr, hr))  # (N, C, H, W) -> (1, N*C, H, W)
        return psnr(*as_one).item()
