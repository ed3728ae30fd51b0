"""Progress of training: a bar on a terminal, a log line per validation, and where the time went."""

import logging
import sys

import pytorch_lightning as pl
from tqdm import tqdm

from sr_lightning.loggers.base import run_loggers
from sr_lightning.utils.stopwatch import OTHER, VALIDATION, Stopwatch

log = logging.getLogger(__name__)


class Progress(pl.Callback):
    """Show loss, PSNR, patches per second and time left; save the seconds of training so far in checkpoints.

    At the end, log and send to the loggers the patches per second, and the shares of the time by phase (`Stopwatch`).

    Args:
        max_steps: Batches of the whole training.
        batch_size: Patches in a batch, over all processes.
    """

    def __init__(self, max_steps: int, batch_size: int) -> None:
        self.max_steps, self.batch_size = max_steps, batch_size
        self.stopwatch = Stopwatch()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.stopwatch = pl_module.stopwatch

    def state_dict(self) -> dict[str, float]:
        """Return the seconds of training and validation so far, over all resumed parts."""
        return {"seconds": self.stopwatch.total}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.stopwatch.earlier = state_dict["seconds"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.first = pl_module.batches_done
        self.stopwatch.start()
        self.bar = tqdm(
            total=self.max_steps,
            initial=self.first,
            unit="step",
            dynamic_ncols=True,
            disable=not (trainer.is_global_zero and sys.stderr.isatty()),
        )

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        if not self.bar.disable:
            done = batch_idx + 1
            self.bar.set_postfix_str(self._summary(pl_module, done), refresh=False)
            self.bar.update(done - self.bar.n)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stopwatch.enter(VALIDATION)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stopwatch.enter(OTHER)
        psnr = pl_module.latest["val/psnr"]
        if trainer.sanity_checking:
            log.info("step 0  psnr %.2f dB: the initial weights", psnr)
            return
        before = trainer.checkpoint_callback.best_model_score  # includes the part before a resume; None at first
        best = psnr if before is None else max(psnr, before.item())
        done = pl_module.batches_done
        left = self.stopwatch.elapsed / max(done - self.first, 1) * (self.max_steps - done)
        if trainer.is_global_zero:
            with tqdm.external_write_mode():
                log.info(
                    "step %d/%d  %s  best %.2f dB  %s left",
                    *(done, self.max_steps, self._summary(pl_module, done), best, tqdm.format_interval(left)),
                )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.bar.close()
        if trainer.is_global_zero:
            self._log_shares(pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if hasattr(self, "bar"):
            self.bar.close()

    def _log_shares(self, module: pl.LightningModule) -> None:
        """Log where the time of this part of the run went."""
        seconds, steps = self.stopwatch.elapsed, module.batches_done - self.first
        shares = {phase: spent / seconds for phase, spent in self.stopwatch.seconds.items()}
        rate = steps * self.batch_size / seconds
        parts = ", ".join(f"{phase} {share:.0%}".replace("%", " %") for phase, share in shares.items())
        log.info("%d steps in %.1f s (%s patches/s): %s", steps, seconds, f"{rate:,.0f}", parts)
        summary = {f"time/{phase.replace(' ', '_')}": share for phase, share in shares.items()}
        for logger in run_loggers(module.loggers):
            logger.log_summary(summary | {"time/patches_per_second": rate})

    def _summary(self, module: pl.LightningModule, done: int) -> str:
        rate = (done - self.first) * self.batch_size / self.stopwatch.elapsed
        parts = [f"loss {module.latest['train/loss']:.5f}"] if "train/loss" in module.latest else []
        parts += [f"psnr {module.latest['val/psnr']:.2f} dB"] if "val/psnr" in module.latest else []
        return "  ".join([*parts, f"{rate:,.0f} patches/s"])
