"""The LightningModule that trains a network on a pixel loss."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from sr_lightning.errors import InputError
from sr_lightning.inference import to_channels
from sr_lightning.losses import WeightedSum
from sr_lightning.metrics.per_image import Score
from sr_lightning.metrics.protocol import Protocol


class SRModule(pl.LightningModule):
    """One network, one pixel loss, one optimizer. A step is a batch.

    Args:
        network: Takes lr (N, C, h, w) in [0, 1] and gives sr; has `scale` and `num_channels`. In training mode sr
            may lack a border (SRCNN's unpadded convolutions): the loss is then taken on the centre of hr.
        loss: Takes (sr, hr), both (N, C, H, W) float32, gives a scalar.
        optimizer: Partial; finished with the network's parameters. None for a network without any.
        scheduler: Partial; finished with the optimizer, stepped once per batch.
        lr_factors: Learning rate of some parameters relative to the others', by the beginning of their names, such
            as `{conv3: 0.1}`. The first that matches counts; one that matches nothing is an error.
        channels_last: Memory format of weights and images.
        log_every: Batches between two logged training losses.
        protocol: How validation is scored.
        ema: Decay per batch of an exponential moving average of the network, which is then what is validated and what
            checkpoints give; the first batches weigh more, (1 + k) / (10 + k) at batch k. None: no average.
        warm_start: Where the network's first weights come from, if not from its own initialisation. It is noted
            here and loaded by whoever builds the run, once: a resumed run has its weights already.
    """

    monitor: str | None = "val/psnr"  # what makes a checkpoint the best; None: that it is the latest

    def __init__(
        self,
        network: nn.Module,
        loss: nn.Module | None = None,
        optimizer: Callable[..., Optimizer] | None = None,
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        *,
        lr_factors: dict[str, float] | None = None,
        channels_last: bool = True,
        log_every: int = 50,
        protocol: Protocol | None = None,
        ema: float | None = None,
        warm_start: str | None = None,
    ) -> None:
        super().__init__()
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.network = network.to(memory_format=self.memory_format)
        self.loss = loss
        self.optimizer, self.scheduler = optimizer, scheduler
        self.lr_factors = lr_factors or {}
        self.log_every = log_every
        self.protocol = protocol or Protocol()
        if ema is not None and not 0 < ema < 1:
            raise InputError(f"model.ema={ema}: the decay per batch is above 0 and below 1, such as 0.999; null: none")
        self.ema, self.averaged = ema, None
        self.warm_start = warm_start
        self.latest: dict[str, float] = {}  # what was logged last, for the progress bar
        self.recorded: dict[str, Tensor | float] = {}  # sums over the batches since the last were logged
        self._count = 0

    def forward(self, lr: Tensor) -> Tensor:
        """Lr (N, 1 or 3, h, w) in [0, 1] -> the network's sr: luma for a one-channel network.

        In evaluation mode the averaged network's, where there is one.
        """
        network = self.network if self.training or self.averaged is None else self.averaged
        return network(to_channels(lr, network.num_channels).contiguous(memory_format=self.memory_format))

    def setup(self, stage: str) -> None:
        if self.ema is not None and self.averaged is None:
            self.averaged = copy.deepcopy(self.network).requires_grad_(False)

    def __setattr__(self, name: str, value: Any) -> None:
        """As any module; but Lightning notes the hook it is in some forty times a step, which needs no registering."""
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def loss_of(self, batch: dict[str, Tensor]) -> Tensor:
        """The loss of a batch: lr (N, 3, h, w) and hr (N, 3, H, W), float32 in [0, 1]."""
        return self.image_loss(*self.enlarge(batch["lr"], batch["hr"]))

    def enlarge(self, lr: Tensor, hr: Tensor) -> tuple[Tensor, Tensor]:
        """The network's sr, float32, and the part of hr, in its channels, that it is to be."""
        sr = self(lr).float()
        return sr, center_crop(to_channels(hr, self.network.num_channels), *sr.shape[-2:])

    def image_loss(self, sr: Tensor, hr: Tensor, share: float = 1.0) -> Tensor:
        """The loss between images, recorded as train/loss; a weighted sum's terms by their names as well."""
        if isinstance(self.loss, WeightedSum):
            terms = self.loss.terms(sr, hr)
            self.record({f"train/{name}": term for name, term in terms.items()}, share)
            loss = sum(terms.values())
        else:
            loss = self.loss(sr, hr)
        self.record({"train/loss": loss}, share)
        return loss

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.loss_of(batch)
        self.end_of_step(batch_idx)
        return loss

    def record(self, values: dict[str, Tensor], share: float = 1.0) -> None:
        """Add to what is logged as means over the batches of `log_every`.

        Args:
            values: Scalars by the name they are logged under.
            share: Of the batch that they stand for.
        """
        for name, value in values.items():
            self.recorded[name] = self.recorded.get(name, 0.0) + share * value.detach()

    def end_of_step(self, batch_idx: int) -> None:
        """Log the recorded means when it is time; `self.log` on every step would cost more than a small network."""
        self._count += 1
        if (batch_idx + 1) % self.log_every:
            return
        metrics = {name: total / self._count for name, total in self._recorded_by_all().items()}
        self.recorded, self._count = {}, 0
        if wrong := [f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value)]:
            raise FloatingPointError(f"{', '.join(wrong)} at step {batch_idx + 1}: try a smaller learning rate")
        self.log_scalars(metrics | self.learning_rates(), batch_idx + 1)

    def learning_rates(self) -> dict[str, float]:
        """Present learning rates by the name they are logged under."""
        return {"train/learning_rate": self.trainer.optimizers[0].param_groups[0]["lr"]}

    def log_scalars(self, metrics: dict[str, float], step: int) -> None:
        """Hand numbers to every logger. `step` is the number of batches done, in every kind of training."""
        self.latest |= metrics
        for logger in self.loggers:
            logger.log_metrics(metrics, step=step)

    def on_validation_epoch_start(self) -> None:
        if self.trainer.world_size > 1:  # each process has updated batch norm's statistics by its own part of a batch
            for buffer in self.buffers():
                torch.distributed.broadcast(buffer, src=0)
        num_images = len(self.trainer.val_dataloaders.dataset)
        self.score = Score(num_images, self.network.scale, self.protocol).to(self.device)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        with torch.autocast(self.device.type, enabled=False):  # scores are made in float32
            sr = self(batch["lr"])
        self.score.update(sr, batch["hr"], batch["index"])
        return sr

    def on_validation_epoch_end(self) -> None:
        metrics = {f"val/{name}": value.item() for name, value in self.score.compute().items()}
        self.log_dict(metrics, logger=False)  # for the callbacks that monitor
        self.log_scalars(metrics, self.batches_done)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.update_average()

    @torch.no_grad()
    def update_average(self) -> None:
        """One step of the moving average, if there is one: parameters are averaged, buffers copied."""
        if self.averaged is None:
            return
        done = self.batches_done
        decay = min(self.ema, (1 + done) / (10 + done))
        torch._foreach_lerp_(list(self.averaged.parameters()), list(self.network.parameters()), 1 - decay)
        for averaged, buffer in zip(self.averaged.buffers(), self.network.buffers(), strict=True):
            averaged.copy_(buffer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to write weights that are no numbers over good ones."""
        if not torch.nn.utils.get_total_norm(self.parameters()).isfinite():
            raise FloatingPointError(
                f"the weights are not finite after {self.batches_done} batches and are not saved: the checkpoints of "
                "before are kept. Try a smaller learning rate"
            )
        checkpoint["recorded"] = {"count": self._count, "sums": self._recorded_by_all()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._count, self.recorded = checkpoint["recorded"]["count"], checkpoint["recorded"]["sums"]

    def _recorded_by_all(self) -> dict[str, float]:
        """Each sum that was recorded, the mean over processes."""
        if not self.recorded:
            return {}
        sums = self.trainer.strategy.reduce(torch.stack(list(self.recorded.values())), reduce_op="mean")
        return dict(zip(self.recorded, sums.tolist(), strict=True))

    @property
    def batches_done(self) -> int:
        """Batches trained so far, over all resumed parts of the run, whatever the number of optimizers."""
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.processed

    def configure_optimizers(self) -> Any:
        return with_scheduler(self.optimizer(self._parameter_groups()), self.scheduler)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """One group of parameters per learning rate."""
        groups: dict[str, list[nn.Parameter]] = {"": [], **{prefix: [] for prefix in self.lr_factors}}
        for name, parameter in self.network.named_parameters():
            groups[next(filter(name.startswith, self.lr_factors), "")].append(parameter)
        if unmatched := [prefix for prefix in self.lr_factors if not groups[prefix]]:
            names = ", ".join(name for name, _ in self.network.named_parameters())
            raise InputError(f"lr_factors: no parameter's name begins with {unmatched}; there are {names}")
        base = self.optimizer.keywords.get("lr") if self.lr_factors else None
        if self.lr_factors and base is None:
            raise InputError("lr_factors are relative to model.optimizer.lr: set that as well")
        return [
            {"params": parameters} | ({"lr": base * self.lr_factors[prefix]} if prefix else {})
            for prefix, parameters in groups.items()
            if parameters
        ]


def with_scheduler(optimizer: Optimizer, scheduler: Callable[[Optimizer], LRScheduler] | None) -> dict[str, Any]:
    """An optimizer and its schedule, stepped once per batch, as Lightning takes them."""
    if scheduler is None:
        return {"optimizer": optimizer}
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler(optimizer), "interval": "step"}}


def center_crop(image: Tensor, height: int, width: int) -> Tensor:
    """(..., H, W) -> (..., height, width), the same border left out on opposite sides.

    Raises:
        ValueError: `image` is smaller, or its border cannot be equal on opposite sides.
    """
    top, left = image.shape[-2] - height, image.shape[-1] - width
    if top < 0 or left < 0 or top % 2 or left % 2:
        raise ValueError(f"cannot take the centre {height}x{width} of {image.shape[-2]}x{image.shape[-1]}")
    return image[..., top // 2 : top // 2 + height, left // 2 : left // 2 + width]
