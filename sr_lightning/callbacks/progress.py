"""Progress of training: a bar on a terminal, lines in the log, and where the time went."""

import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from tqdm import tqdm

from sr_lightning.loggers.base import run_loggers
from sr_lightning.network_costs import peak_memory
from sr_lightning.utils.progress import QUIET
from sr_lightning.utils.stopwatch import OTHER, VALIDATION, Stopwatch

log = logging.getLogger(__name__)


class Progress(pl.Callback):
    """Show loss, PSNR, patches per second and time left; save the seconds of training so far in checkpoints.

    Loggers that show more than scalars receive speed and memory every `log_every` batches of the module.

    Validations are logged. Without a terminal, a line is logged every 30 seconds as well, also within a validation. At
    the end, log and send to the loggers the patches per second, and the shares of the time by phase (`Stopwatch`).

    Args:
        max_steps: Batches of the whole training.
        batch_size: Patches in a batch, over all processes.
        bicubic: Returns the PSNR of bicubic on the validation images in dB; called in the first validation.
    """

    def __init__(self, max_steps: int, batch_size: int, bicubic: Callable[[], float] | None = None) -> None:
        self.max_steps, self.batch_size, self.bicubic = max_steps, batch_size, bicubic
        self.bicubic_psnr: float | None = None
        self.best: float | None = None  # read once per validation: on a GPU, reading it waits for the device
        self.best_step: int | None = None  # unknown in checkpoints of earlier versions
        self.stopwatch = Stopwatch()
        self.last_line = time.monotonic()
        self._last_rate = (0, 0.0)  # batches, and seconds of training, when the speed was last sent

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.stopwatch = pl_module.stopwatch

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds of training and validation, over all resumed parts, and the step of the best score."""
        return {"seconds": self.stopwatch.total, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.stopwatch.earlier, self.best_step = state_dict["seconds"], state_dict.get("best_step")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.first = pl_module.batches_done
        self._last_rate = (self.first, 0.0)
        self.stopwatch.start()
        self.bar = tqdm(
            total=self.max_steps,
            initial=self.first,
            unit="step",
            dynamic_ncols=True,
            disable=not (trainer.is_global_zero and sys.stderr.isatty()),
        )

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        done = batch_idx + 1
        if not self.bar.disable:
            self.bar.set_postfix_str(self._summary(pl_module, done), refresh=False)
            self.bar.update(done - self.bar.n)
        elif self._is_quiet(trainer):
            self._log_step(pl_module, done)
        if done % pl_module.log_every == 0 and trainer.is_global_zero:
            self._send_resources(pl_module, done)

    def _send_resources(self, module: pl.LightningModule, done: int) -> None:
        """Send the patches per second since the last call, without validation, and the peaks of memory in GiB."""
        seconds = self.stopwatch.elapsed - self.stopwatch.seconds[VALIDATION]
        earlier, since = self._last_rate
        self._last_rate = (done, seconds)
        memory = {"host": torch.device("cpu")} | ({"device": module.device} if module.device.type == "cuda" else {})
        values = {f"memory/{name}": peak_memory(device) / 2**30 for name, device in memory.items()}
        values["time/patches_per_second"] = (done - earlier) * self.batch_size / (seconds - since)
        for logger in run_loggers(module.loggers):
            logger.log_resources(values, done)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stopwatch.enter(VALIDATION)
        if trainer.is_global_zero and self.bicubic_psnr is None and self.bicubic is not None:
            self.bicubic_psnr = self.bicubic()

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx: int, *_: Any) -> None:
        if not sys.stderr.isatty() and self._is_quiet(trainer):
            self._log("validating: %d of %d images", batch_idx + 1, int(sum(trainer.num_val_batches)))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stopwatch.enter(OTHER)
        psnr, done = pl_module.latest["val/psnr"], pl_module.batches_done
        if trainer.sanity_checking:
            if trainer.is_global_zero:
                self._log("step 0  val %.2f dB: the initial weights", psnr)
            return
        before = trainer.checkpoint_callback.best_model_score  # includes the part before a resume; None at first
        self.best = None if before is None else before.item()
        if self.best is None or psnr > self.best:
            self.best, self.best_step = psnr, done
        if trainer.is_global_zero:
            self._log_step(pl_module, done)

    def _is_quiet(self, trainer: pl.Trainer) -> bool:
        return trainer.is_global_zero and time.monotonic() - self.last_line > QUIET

    def _log_step(self, module: pl.LightningModule, done: int) -> None:
        left = self.stopwatch.elapsed / max(done - self.first, 1) * (self.max_steps - done)
        summary = self._summary(module, done)
        self._log("step %d/%d  %s  %s left", done, self.max_steps, summary, tqdm.format_interval(left))

    def _log(self, text: str, *values: Any) -> None:
        self.last_line = time.monotonic()
        with tqdm.external_write_mode():
            log.info(text, *values)

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
        """Format the latest values: loss, PSNR on the validation images beside that of bicubic and the best, speed."""
        parts = [f"loss {module.latest['train/loss']:.5f}"] if "train/loss" in module.latest else []
        if (psnr := module.latest.get("val/psnr")) is not None:
            place = "" if self.best_step is None else f" at {self.best_step}"
            others = [] if self.bicubic_psnr is None else [f"bicubic {self.bicubic_psnr:.2f}"]
            parts.append(f"val {psnr:.2f} dB ({', '.join([*others, f'best {self.best:.2f}{place}'])})")
        rate = (done - self.first) * self.batch_size / self.stopwatch.elapsed
        return "  ".join([*parts, f"{rate:,.0f} patches/s"])
