"""Progress of training: a bar on a terminal, and a log line per validation."""

import logging
import sys
import time

import pytorch_lightning as pl
from tqdm import tqdm

log = logging.getLogger(__name__)


class Progress(pl.Callback):
    """Show loss, PSNR, patches per second and time left; save the seconds of training so far in checkpoints.

    Args:
        max_steps: Batches of the whole training.
        batch_size: Patches in a batch, over all processes.
        refresh: Batches between two updates of the bar.
    """

    def __init__(self, max_steps: int, batch_size: int, refresh: int = 20) -> None:
        self.max_steps, self.batch_size, self.refresh = max_steps, batch_size, refresh
        self.seconds_before, self.start = 0.0, None

    def state_dict(self) -> dict[str, float]:
        """Return the seconds of training and validation so far, over all resumed parts."""
        return {"seconds": self.seconds_before + (0.0 if self.start is None else time.monotonic() - self.start)}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.seconds_before = state_dict["seconds"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start, self.first = time.monotonic(), pl_module.batches_done
        self.bar = tqdm(
            total=self.max_steps,
            initial=self.first,
            unit="step",
            dynamic_ncols=True,
            disable=not (trainer.is_global_zero and sys.stderr.isatty()),
        )

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        done = batch_idx + 1
        if done % self.refresh == 0 or done == self.max_steps:
            self.bar.set_postfix_str(self._summary(pl_module, done), refresh=False)
            self.bar.update(done - self.bar.n)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        psnr = pl_module.latest["val/psnr"]
        if trainer.sanity_checking:
            log.info("step 0  psnr %.2f dB: the initial weights", psnr)
            return
        before = trainer.checkpoint_callback.best_model_score  # includes the part before a resume; None at first
        best = psnr if before is None else max(psnr, before.item())
        done = pl_module.batches_done
        elapsed = time.monotonic() - self.start
        left = elapsed / max(done - self.first, 1) * (self.max_steps - done)
        if trainer.is_global_zero:
            with tqdm.external_write_mode():
                log.info(
                    "step %d/%d  %s  best %.2f dB  %s left",
                    *(done, self.max_steps, self._summary(pl_module, done), best, tqdm.format_interval(left)),
                )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.bar.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if hasattr(self, "bar"):
            self.bar.close()

    def _summary(self, module: pl.LightningModule, done: int) -> str:
        rate = (done - self.first) * self.batch_size / (time.monotonic() - self.start)
        parts = [f"loss {module.latest['train/loss']:.5f}"] if "train/loss" in module.latest else []
        parts += [f"psnr {module.latest['val/psnr']:.2f} dB"] if "val/psnr" in module.latest else []
        return "  ".join([*parts, f"{rate:,.0f} patches/s"])
