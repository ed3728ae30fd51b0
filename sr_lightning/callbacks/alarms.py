"""Early detection of common failures of GAN training: saturated or blind discriminator, falling PSNR."""

import logging
from typing import Any

import pytorch_lightning as pl

from sr_lightning.errors import InputError

log = logging.getLogger(__name__)


class Alarms(pl.Callback):
    """Monitor a GANModule; warn, or stop the run and keep the earlier checkpoints.

    - saturated: the discriminator separates hr from sr perfectly, so the generator's gradient vanishes.
    - blind: it separates them no better than by chance, which is good only if sr is perfect.
    - degraded: val/psnr is too far below that of the warm start, which is validated before the first step.

    NaN or infinite losses and weights end every run (`SRModule`); earlier checkpoints are then kept as well.

    Args:
        saturated: train/d_hr minus train/d_sr above which the discriminator counts as saturated.
        blind: Absolute difference of the two below which it counts as blind.
        patience: Consecutive logged values before either alarm fires.
        psnr_drop: Loss of val/psnr since the warm start above which it counts as degraded, in dB. Adversarial training
            always lowers it: SRGAN's published PSNR on Set5 is 2.65 dB below SRResNet's.
        action: "warn": log a warning; "stop": raise InputError before the step's checkpoint is written.

    Raises:
        InputError: Another action, or thresholds that are not 0 <= blind < saturated <= 1.
    """

    def __init__(
        self,
        saturated: float = 0.99,
        blind: float = 0.01,
        patience: int = 10,
        psnr_drop: float = 5.0,
        action: str = "warn",
    ) -> None:
        if action not in ("warn", "stop"):
            raise InputError(f"model.alarms.action={action}: choose warn or stop")
        if not 0 <= blind < saturated <= 1:
            raise InputError(f"model.alarms: blind={blind}, saturated={saturated}: set 0 <= blind < saturated <= 1")
        self.limits = {"saturated": saturated, "blind": blind}
        self.patience, self.psnr_drop, self.action = patience, psnr_drop, action
        self.in_a_row = {"saturated": 0, "blind": 0}
        self.reference: float | None = None  # the warm start's val/psnr

    def state_dict(self) -> dict[str, Any]:
        return {"in_a_row": dict(self.in_a_row), "reference": self.reference}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.in_a_row, self.reference = state_dict["in_a_row"], state_dict["reference"]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if pl_module.warm_start is None and trainer.is_global_zero:
            log.warning(
                "the generator starts from random weights: adversarial training from random weights usually fails. "
                "Train it on a pixel loss first and give model.warm_start=RUN_DIR"
            )

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        if (batch_idx + 1) % pl_module.log_every:
            if batch_idx == 0 and trainer.is_global_zero:
                terms = ", ".join(
                    f"{k.removeprefix('train/')} {v:.3g}" for k, v in pl_module.running_means.sums.items()
                )
                log.info("losses at the first step: %s", terms)
            return
        if "train/d_hr" not in pl_module.latest:  # all batches so far were skipped
            return
        d_hr, d_sr = pl_module.latest["train/d_hr"], pl_module.latest["train/d_sr"]
        found = {
            "saturated": d_hr - d_sr > self.limits["saturated"],
            "blind": abs(d_hr - d_sr) < self.limits["blind"],
        }
        for name, fires in found.items():
            self.in_a_row[name] = self.in_a_row[name] + 1 if fires else 0
            if self.in_a_row[name] == self.patience:
                size = "smaller" if name == "saturated" else "larger"
                self.alarm(
                    f"the discriminator is {name}: D(HR) = {d_hr:.3f} and D(SR) = {d_sr:.3f}, for "
                    f"{self.patience} logged values in a row; try a {size} model.discriminator_optimizer.lr",
                    batch_idx + 1,
                )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        psnr = pl_module.latest["val/psnr"]
        if trainer.sanity_checking:
            self.reference = psnr
        elif self.reference is not None and self.reference - psnr > self.psnr_drop:
            self.alarm(
                f"validation PSNR has fallen from the warm start's {self.reference:.2f} dB to {psnr:.2f} dB, more than "
                f"model.alarms.psnr_drop={self.psnr_drop}; try a smaller model.adversarial_weight or learning rate",
                pl_module.batches_done,
            )

    def alarm(self, message: str, step: int) -> None:
        """Warn, or stop before this step's checkpoint is written."""
        if self.action == "warn":
            log.warning("step %d: %s", step, message)
        else:
            raise InputError(f"stopped at step {step}: {message}. Earlier checkpoints are kept")
