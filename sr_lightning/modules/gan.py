"""The LightningModule of adversarial training: generator and discriminator take turns."""

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from sr_lightning.errors import InputError
from sr_lightning.modules.sr import SRModule, with_scheduler


class GANModule(SRModule):
    """Any network as the generator against a discriminator: SRGAN (Ledig et al. 2017, arXiv 1609.04802) and its kin.

    In each batch the generator makes sr once, is stepped on the image loss plus the weighted adversarial loss, and the
    discriminator is stepped on the same sr and on hr. A step is a batch here as well: the trainer's global_step,
    schedules, checkpoints and logs count batches, not the steps of two optimizers.

    Checkpoints hold the latest weights, not those of the best PSNR: adversarial training lowers it.

    Args:
        network: The generator.
        loss: Between sr and hr: a `losses.WeightedSum`, or any loss.
        discriminator: Has `num_channels`, the network's; gives logits of any shape.
        adversarial: A loss of `losses`: `generator(sr_logits, hr_logits)`, `discriminator(sr_logits, hr_logits)`.
        adversarial_weight: Of the generator's adversarial loss beside `loss`.
        discriminator_optimizer: Partial; finished with the discriminator's parameters.
        discriminator_scheduler: Partial; finished with its optimizer, stepped once per batch.
        accumulate: Parts a batch is taken in, one after the other, to save memory; both optimizers are stepped once
            all the same. Batch normalisation and relativistic losses see a part; else it changes nothing.
        gradient_clip_val: Largest norm of the gradients of each of the two; None: any.
        alarms: A callback that watches the two, or None.
        **settings: Of SRModule.

    Logged beside SRModule's, each as a mean over `log_every` batches: the weighted terms by name and
    train/adversarial; train/discriminator_loss; train/d_hr and train/d_sr, how real the discriminator takes hr and sr,
    0 to 1; train/gradient and train/discriminator_gradient, the gradients' norms before clipping (0 for a step that
    fp16's scaling leaves out).
    """

    monitor = None

    def __init__(
        self,
        network: nn.Module,
        loss: nn.Module,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        *,
        discriminator: nn.Module,
        adversarial: nn.Module,
        adversarial_weight: float,
        discriminator_optimizer: Callable[..., Optimizer],
        discriminator_scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        accumulate: int = 1,
        gradient_clip_val: float | None = None,
        alarms: pl.Callback | None = None,
        **settings: Any,
    ) -> None:
        if next(network.parameters(), None) is None:
            raise InputError(f"{type(network).__name__} has nothing to train: choose another generator")
        if discriminator.num_channels != network.num_channels:
            raise InputError(
                f"model.discriminator.num_channels={discriminator.num_channels}, the network has "
                f"{network.num_channels}: they see the same images"
            )
        super().__init__(network, loss, optimizer, scheduler, **settings)
        self.automatic_optimization = False
        self.discriminator = discriminator.to(memory_format=self.memory_format)
        self.adversarial, self.adversarial_weight = adversarial, adversarial_weight
        self.discriminator_optimizer, self.discriminator_scheduler = discriminator_optimizer, discriminator_scheduler
        self.accumulate, self.gradient_clip_val, self.alarms = accumulate, gradient_clip_val, alarms

    def configure_callbacks(self) -> list[pl.Callback]:
        return [] if self.alarms is None else [self.alarms]

    def configure_optimizers(self) -> list[dict[str, Any]]:
        optimizer = self.discriminator_optimizer(self.discriminator.parameters())
        return [super().configure_optimizers(), with_scheduler(optimizer, self.discriminator_scheduler)]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        optimizer, discriminator_optimizer = self.optimizers()
        # Lightning would count the second optimizer's steps as steps of training
        discriminator_optimizer._on_before_step = discriminator_optimizer._on_after_step = lambda: None
        parts = list(zip(batch["lr"].chunk(self.accumulate), batch["hr"].chunk(self.accumulate), strict=True))

        self.toggle_optimizer(optimizer)
        images = []
        for lr, hr in parts:
            sr, hr = self.enlarge(lr, hr)
            share = len(lr) / len(batch["lr"])
            self.manual_backward(share * self.generator_loss(sr, hr, share))
            images.append((sr.detach(), hr, share))
        optimizer.step()
        optimizer.zero_grad()
        self.untoggle_optimizer(optimizer)

        self.toggle_optimizer(discriminator_optimizer)
        for sr, hr, share in images:
            self.manual_backward(share * self.discriminator_loss(sr, hr, share))
        discriminator_optimizer.step()
        discriminator_optimizer.zero_grad()
        self.untoggle_optimizer(discriminator_optimizer)

        self.update_average()
        for configured in self.trainer.lr_scheduler_configs:
            configured.scheduler.step()
        self.end_of_step(batch_idx)

    def loss_of(self, batch: dict[str, Tensor]) -> Tensor:
        """What both are stepped on, in one number. As SRModule's: lr (N, 3, h, w), hr (N, 3, H, W) in [0, 1]."""
        sr, hr = self.enlarge(batch["lr"], batch["hr"])
        return self.generator_loss(sr, hr) + self.discriminator_loss(sr.detach(), hr)

    def generator_loss(self, sr: Tensor, hr: Tensor, share: float = 1.0) -> Tensor:
        """What the generator is stepped on, for sr and hr (N, C, H, W) that are a share of the batch."""
        hr_logits = None
        if self.adversarial.generator_needs_hr:
            with torch.no_grad():
                hr_logits = self.discriminator(hr)
        adversarial = self.adversarial_weight * self.adversarial.generator(self.discriminator(sr), hr_logits)
        self.record({"train/adversarial": adversarial}, share)
        return self.image_loss(sr, hr, share) + adversarial

    def discriminator_loss(self, sr: Tensor, hr: Tensor, share: float = 1.0) -> Tensor:
        """What the discriminator is stepped on; sr without a gradient."""
        sr_logits, hr_logits = self.discriminator(sr), self.discriminator(hr)
        loss = self.adversarial.discriminator(sr_logits, hr_logits)
        beliefs = {"train/d_hr": self.adversarial.belief(hr_logits), "train/d_sr": self.adversarial.belief(sr_logits)}
        self.record({"train/discriminator_loss": loss, **beliefs}, share)
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Measure and clip the gradient; Lightning has taken off the scale of fp16 by now."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = get_total_norm([p.grad for p in parameters])
        if self.gradient_clip_val is not None:
            clip_grads_with_norm_(parameters, self.gradient_clip_val, norm)
        name = "gradient" if optimizer is self.trainer.optimizers[0] else "discriminator_gradient"
        self.record({f"train/{name}": norm.nan_to_num(0, 0, 0)})

    def learning_rates(self) -> dict[str, float]:
        discriminator = self.trainer.optimizers[1].param_groups[0]["lr"]
        return super().learning_rates() | {"train/discriminator_learning_rate": discriminator}
