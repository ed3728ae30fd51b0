"""Comparison pictures of fixed crops of the validation images, drawn during training."""

from pathlib import Path

import pytorch_lightning as pl
from torch import Tensor

from sr_lightning.evaluation.comparison import save_comparison
from sr_lightning.images.files import write_image
from sr_lightning.images.folder import short_name
from sr_lightning.inference import in_colour
from sr_lightning.loggers import log_pictures
from sr_lightning.networks import Bicubic


class ValidationPictures(pl.Callback):
    """Draw LR, bicubic, SR and HR side by side, at the crop where bicubic differs most from HR, and SR alone; log both.

    With several processes only the images of process 0 are drawn.

    Args:
        folder: Contains a folder per image, with two files per step.
        every: Batches between two pictures; validations at other steps draw none.
        count: Number of images; the first ones are drawn.
    """

    def __init__(self, folder: str | Path, every: int, count: int) -> None:
        self.folder, self.every, self.count = Path(folder), every, count

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Tensor, batch, batch_idx, dataloader_idx=0
    ) -> None:
        index, step = int(batch["index"]), pl_module.batches_done
        if step % self.every or index >= self.count or not trainer.is_global_zero:
            return
        sr, lr, hr = outputs, batch["lr"], batch["hr"]
        scale = pl_module.network.scale
        colour = in_colour(sr, lr, scale)
        bicubic = Bicubic(scale=scale).to(lr.device)(lr)
        name = trainer.datamodule.val_store.names[index]
        path = self.folder / short_name(name) / f"step_{step:07d}.png"
        *_, crop, _ = save_comparison(path, lr[0], {"bicubic": bicubic[0], f"step {step}": colour[0]}, hr[0])
        alone = path.with_name(f"sr_{step:07d}.png")
        write_image(alone, crop)
        log_pictures(pl_module.loggers, {f"val/{name}": path, f"sr/{name}": alone}, step)
