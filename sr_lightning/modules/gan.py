"""LightningModule for adversarial training: alternating steps of generator and discriminator."""

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from sr_lightning.errors import InputError
from sr_lightning.losses import Adversarial
from sr_lightning.modules.recorded_step import average_over_processes, parameters_of
from sr_lightning.modules.sr import SRModule, settings_of, with_scheduler
from sr_lightning.utils.stopwatch import FORWARD_AND_BACKWARD, OPTIMIZER


class GANModule(SRModule):
    """A network as generator trained against a discriminator, as in SRGAN (Ledig et al. 2017, arXiv 1609.04802).

    For each batch the generator computes sr once and takes a step on the image loss plus the weighted adversarial loss;
    then the discriminator takes a step on the same sr and on hr (on hr before sharpening, if the data module sharpens).
    The trainer's global_step, schedules, checkpoints and logs count batches, not the steps of the two optimizers.

    Checkpoints hold the latest weights, not those with the best PSNR, because adversarial training lowers the PSNR.

    Logged in addition to SRModule's values, as means over `log_every` batches: the weighted terms of the loss by name;
    train/adversarial; train/discriminator_loss; train/d_hr and train/d_sr, the realness of hr and sr according to the
    discriminator, 0 to 1; train/gradient and train/discriminator_gradient, the gradient norms before clipping (0 for a
    step that fp16 loss scaling skips).

    Args:
        network: Generator.
        loss: Image loss between sr and hr: a `losses.WeightedSum`, or any loss.
        discriminator: `discriminator(images) -> logits` of any shape, with the network's `num_channels`.
        adversarial: A `losses.Adversarial`.
        adversarial_weight: Weight of the generator's adversarial loss relative to `loss`.
        discriminator_optimizer: Partial, called with the discriminator's parameters.
        discriminator_scheduler: Partial, called with its optimizer; stepped once per batch.
        accumulate: Number of parts that a batch is split into, to save memory; each optimizer still takes one step.
            Batch normalisation and relativistic losses see one part at a time; otherwise the result is the same.
        gradient_clip_val: Maximum gradient norm, of the generator and of the discriminator; None for no clipping.
        alarms: Callback that monitors the training, or None.
        **settings: Further arguments of SRModule.

    Raises:
        InputError: The network has no parameters, or another number of channels than the discriminator.
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
        adversarial: Adversarial,
        adversarial_weight: float,
        discriminator_optimizer: Callable[..., Optimizer],
        discriminator_scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        accumulate: int = 1,
        gradient_clip_val: float | None = None,
        alarms: pl.Callback | None = None,
        **settings: Any,
    ) -> None:
        if next(network.parameters(), None) is None:
            raise InputError(f"{type(network).__name__} has no parameters to train: choose another generator")
        if discriminator.num_channels != network.num_channels:
            raise InputError(
                f"model.discriminator.num_channels={discriminator.num_channels} differs from the network's "
                f"{network.num_channels}: both must see the same images, so set both to one value"
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
        with settings_of("model.discriminator_optimizer"):
            optimizer = self.discriminator_optimizer(self.discriminator.parameters())
        generators = super().configure_optimizers()
        with settings_of("model.discriminator_scheduler"):
            return [generators, with_scheduler(optimizer, self.discriminator_scheduler)]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.stopwatch.enter(FORWARD_AND_BACKWARD)
        optimizer, discriminator_optimizer = self.optimizers()
        if self.record is not None:
            self.replay_both(batch, batch_idx)
            return
        self.keep_buffers()
        # Otherwise Lightning adds the second optimizer's steps to global_step.
        discriminator_optimizer._on_before_step = discriminator_optimizer._on_after_step = lambda: None
        chunks = zip(*(images.chunk(self.accumulate) for images in batch.values()), strict=True)
        parts = [dict(zip(batch, chunk, strict=True)) for chunk in chunks]

        self.toggle_optimizer(optimizer)
        images = []
        for part in parts:
            sr, hr, real = self.sr_target_and_real(part)
            share = len(sr) / len(batch["lr"])
            loss = self.generator_loss(sr, hr, real, part["lr"], share)
            self.manual_backward(share * self.with_teacher(loss, sr, part["lr"], batch_idx, share))
            images.append((sr.detach(), real, share))
        optimizer.step()
        optimizer.zero_grad()
        self.untoggle_optimizer(optimizer)

        self.stopwatch.enter(FORWARD_AND_BACKWARD)
        self.toggle_optimizer(discriminator_optimizer)
        for sr, real, share in images:
            self.manual_backward(share * self.discriminator_loss(sr, real, share))
        discriminator_optimizer.step()
        discriminator_optimizer.zero_grad()
        self.untoggle_optimizer(discriminator_optimizer)

        self.end_of_both_steps(batch_idx)

    def end_of_both_steps(self, batch_idx: int) -> None:
        """Finish a batch after the steps of both optimizers."""
        self.end_of_optimizer_step()
        for configured in self.trainer.lr_scheduler_configs:
            configured.scheduler.step()
        self.end_of_step(batch_idx)

    def replay_both(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Take the steps of both networks as they were recorded at the first batch."""
        generator_optimizer = self.optimizers()[0]
        generator_optimizer._on_before_step()  # as its step does, by which Lightning counts batches
        self.replayed(batch)
        generator_optimizer._on_after_step()
        self.end_of_both_steps(batch_idx)

    def losses_of(self, batch: dict[str, Tensor], step: Tensor) -> list[Callable[[], Tensor]]:
        images: list[Tensor] = []

        def generator() -> Tensor:
            self.discriminator.requires_grad_(False)
            sr, hr, real = self.sr_target_and_real(batch)
            images[:] = sr.detach(), real
            return self.with_teacher(self.generator_loss(sr, hr, real, batch["lr"]), sr, batch["lr"], step)

        def discriminator() -> Tensor:
            self.discriminator.requires_grad_(True)
            return self.discriminator_loss(*images)

        return [generator, discriminator]

    def finish_gradients(self, optimizer: Optimizer) -> Tensor:
        average_over_processes(optimizer)
        norm = get_total_norm([p.grad for p in parameters_of(optimizer) if p.grad is not None])
        self.clip_and_record(optimizer, norm)
        return norm[None]

    def loss_of(self, batch: dict[str, Tensor], step: int | Tensor = 0) -> Tensor:
        """Compute the generator's plus the discriminator's loss: lr (N, 3, h, w), hr (N, 3, H, W) in [0, 1]."""
        sr, hr, real = self.sr_target_and_real(batch)
        generator_loss = self.with_teacher(self.generator_loss(sr, hr, real, batch["lr"]), sr, batch["lr"], step)
        return generator_loss + self.discriminator_loss(sr.detach(), real)

    def sr_target_and_real(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return sr and hr as `sr_and_target` does, and hr before sharpening, which is hr without sharpening."""
        sr, hr = self.sr_and_target(batch["lr"], batch["hr"])
        return sr, hr, self.matching(batch["real"], sr) if "real" in batch else hr

    def generator_loss(self, sr: Tensor, hr: Tensor, real: Tensor, lr: Tensor, share: float = 1.0) -> Tensor:
        """Compute image loss plus adversarial loss of sr, hr and real (N, C, H, W), which are a share of the batch."""
        hr_logits = None
        if self.adversarial.generator_needs_hr:
            with torch.no_grad():
                hr_logits = self.discriminator(real)
        adversarial = self.adversarial_weight * self.adversarial.generator(self.discriminator(sr), hr_logits)
        self.running_means.add({"train/adversarial": adversarial}, share)
        return self.image_loss(sr, hr, lr, share) + adversarial

    def discriminator_loss(self, sr: Tensor, real: Tensor, share: float = 1.0) -> Tensor:
        """Compute the discriminator loss of sr (detached) and real (N, C, H, W), which are a share of the batch."""
        sr_logits, hr_logits = self.discriminator(sr), self.discriminator(real)
        loss = self.adversarial.discriminator(sr_logits, hr_logits)
        realness = {
            "train/d_hr": self.adversarial.realness(hr_logits),
            "train/d_sr": self.adversarial.realness(sr_logits),
        }
        self.running_means.add({"train/discriminator_loss": loss, **realness}, share)
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Record and clip the gradient norm, after Lightning has removed the fp16 loss scale."""
        self.stopwatch.enter(OPTIMIZER)
        norm = get_total_norm([p.grad for p in parameters_of(optimizer) if p.grad is not None])
        self.judge_gradients(optimizer, norm)
        self.clip_and_record(optimizer, norm)

    def clip_and_record(self, optimizer: Optimizer, norm: Tensor) -> None:
        """Clip the gradients of an optimizer, which have a total norm of (), and record it."""
        if self.gradient_clip_val is not None:
            clip_grads_with_norm_(parameters_of(optimizer), self.gradient_clip_val, norm)
        name = "gradient" if optimizer is self.trainer.optimizers[0] else "discriminator_gradient"
        self.running_means.add({f"train/{name}": norm.nan_to_num(0, 0, 0)})

    def learning_rates(self) -> dict[str, float]:
        discriminator = self.trainer.optimizers[1].param_groups[0]["lr"]
        return super().learning_rates() | {"train/discriminator_learning_rate": discriminator}
