"""LightningModule that trains a network on a pixel loss."""

import copy
import inspect
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from sr_lightning.checkpoints.checkpoint import Allow
from sr_lightning.errors import DivergedError, InputError
from sr_lightning.inference import to_channels
from sr_lightning.losses import WeightedSum
from sr_lightning.losses.weighted_sum import needs_average
from sr_lightning.metrics.per_image import Score
from sr_lightning.metrics.protocol import Protocol, report_left_out
from sr_lightning.modules.recorded_step import RecordedStep, Recorder, average_over_processes, parameters_of
from sr_lightning.modules.running_means import RunningMeans
from sr_lightning.modules.teacher import Teacher
from sr_lightning.utils.exact_float32 import exact_float32
from sr_lightning.utils.stopwatch import FORWARD_AND_BACKWARD, OPTIMIZER, OTHER, Stopwatch

_log = logging.getLogger(__name__)


class SRModule(pl.LightningModule):
    """One network, one pixel loss, one optimizer. A step is a batch.

    Logged every `log_every` batches, as means over them: train/loss and, of a `WeightedSum`, its terms by name; with a
    teacher, train/teacher, the weighted loss to its SR, which is not part of train/loss; as mean
    over the optimizer's steps since the last log, train/gradient, the norm of the gradient before clipping (0 for a
    step that fp16 loss scaling skips).

    Args:
        network: `network(lr) -> sr` with attributes `scale` and `num_channels`; lr (N, C, h, w) in [0, 1]. In training
            mode sr may lack a border (SRCNN's unpadded convolutions); the loss then uses the centre of hr.
        loss: `loss(sr, hr)` -> scalar, both (N, C, H, W) float32.
        optimizer: Partial, called with the parameter groups. None for a network without parameters.
        scheduler: Partial, called with the optimizer; stepped once per batch.
        lr_factors: Relative learning rates by prefix of the parameter name, such as `{conv3: 0.1}`. The first matching
            prefix applies; a prefix without a match is an error.
        channels_last: Store weights and images channels last, not contiguous.
        log_every: Number of batches between two logged training losses.
        protocol: Protocol of the validation scores.
        ema: Decay per batch of an exponential moving average of the network, or None for no average. The average is
            validated and used from checkpoints. Its decay is at most (1 + k) / (10 + k) at batch k.
        warm_start: Run or checkpoint with the initial weights. Only stored here: `training.train` loads them, unless
            the run is resumed.
        max_skipped_batches: Number of batches with NaN or infinite gradients that the run may skip, without an update
            of weights, average, buffers and optimizer; the run stops at the next one. None or 0: at the first. Costs a
            GPU a wait for each step that is not recorded. With fp16 loss scaling, the scaler skips such steps, without
            a limit.
        teacher: Run, checkpoint or file of another project with a network whose SR is a target beside hr, or None.
        teacher_weight: Weight of the loss to that SR; None: 1.
        teacher_steps: Number of steps over which this weight falls linearly to 0; None: it stays the same.
        teacher_allow: Packages besides this project, or classes, that the teacher's checkpoint may name as its network.

    Attributes:
        stopwatch: Seconds of training so far, by phase; `callbacks.Progress` starts it.
        skipped_batches: Numbers of the batches skipped so far, from 1; saved in checkpoints.
        provenance: The parts of the run, as of `runs.provenance`; saved in checkpoints.

    Raises:
        InputError: `ema` is not between 0 and 1, or None for a loss that needs the average; `max_skipped_batches` is
            not a number of batches; or the teacher cannot be used.
    """

    monitor: str | None = "val/psnr"  # best.ckpt maximises this value; None: it is the latest checkpoint

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
        max_skipped_batches: int | None = None,
        teacher: str | None = None,
        teacher_weight: float | None = None,
        teacher_steps: int | None = None,
        teacher_allow: Allow = None,
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
            raise InputError(
                f"model.ema={ema} is not between 0 and 1: give a decay per batch such as 0.999, or null for no average"
            )
        if ema is None and needs_average(loss):
            raise InputError(
                "this loss compares SR with that of the averaged network (refined=true of LDL): set model.ema, such as "
                "0.999, or refined=false"
            )
        self.ema, self.averaged = ema, None
        self.warm_start = warm_start
        if max_skipped_batches is not None and not (isinstance(max_skipped_batches, int) and max_skipped_batches >= 0):
            raise InputError(
                f"model.max_skipped_batches={max_skipped_batches} is not a number of batches: give one such as 10, or "
                "null to stop at the first batch whose gradients are NaN or infinite"
            )
        self.max_skipped_batches = max_skipped_batches or 0
        if teacher is None and not (teacher_weight is None and teacher_steps is None):
            raise InputError("model.teacher_weight and model.teacher_steps need model.teacher, the file of a network")
        given = (network, teacher_weight, teacher_steps, teacher_allow)
        self.teacher = None if teacher is None else Teacher.load(teacher, *given)
        self.skipped_batches: list[int] = []
        self.provenance: list[dict[str, Any]] = []
        self._buffers_before: list[Tensor] | None = None  # buffers after the last optimizer step
        self.compiled: Callable[[Tensor], Tensor] | None = None
        self.record: Recorder | None = None  # set: steps are recorded at the first batch, and replayed
        self.recorded: RecordedStep | None = None
        self.latest: dict[str, float] = {}  # the values logged last, for the progress bar
        self.score: Score | None = None
        self.running_means, self.gradient_norms = RunningMeans(), RunningMeans()
        self.stopwatch = Stopwatch()
        self.diverged_at: Tensor | None = None  # first batch whose gradients are not finite; 0: none

    def forward(self, lr: Tensor) -> Tensor:
        """Upscale lr (N, 1 or 3, h, w) in [0, 1]; a network with one channel gets luma and returns luma.

        In evaluation mode the averaged network is used, if there is one.
        """
        network = self.network if self.training or self.averaged is None else self.averaged
        upscale = self.compiled if self.training and self.compiled is not None else network
        return upscale(to_channels(lr, network.num_channels).contiguous(memory_format=self.memory_format))

    def compile_training(self) -> None:
        """Compile the network's forward and backward pass in training mode; images of evaluation differ in size."""
        self.compiled = torch.compile(self.network.forward, dynamic=False)

    def setup(self, stage: str) -> None:
        if self.ema is not None and self.averaged is None:
            self.averaged = copy.deepcopy(self.network).requires_grad_(False)

    def __setattr__(self, name: str, value: Any) -> None:
        """Skip nn.Module's slow path for an attribute that Lightning sets about 40 times per step."""
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the recorded step, which replays with the tensors of this module only."""
        return super().__getstate__() | {"recorded": None}

    def _apply(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Move the teacher, which is no submodule, to the same device."""
        if self.teacher is not None:
            self.teacher.network._apply(*args, **kwargs)
        return super()._apply(*args, **kwargs)

    def loss_of(self, batch: dict[str, Tensor], step: int | Tensor = 0) -> Tensor:
        """Compute the loss of a batch: lr (N, 3, h, w), hr (N, 3, H, W) in [0, 1]; `step` is the number before it."""
        sr, hr = self.sr_and_target(batch["lr"], batch["hr"])
        return self.with_teacher(self.image_loss(sr, hr, batch["lr"]), sr, batch["lr"], step)

    def sr_and_target(self, lr: Tensor, hr: Tensor) -> tuple[Tensor, Tensor]:
        """Return the network's sr as float32, and hr cropped and converted to match it."""
        sr = self(lr).float()
        return sr, self.matching(hr, sr)

    def matching(self, hr: Tensor, sr: Tensor) -> Tensor:
        """Crop and convert hr to sr's size and channels."""
        return center_crop(to_channels(hr, self.network.num_channels), *sr.shape[-2:])

    def image_loss(self, sr: Tensor, hr: Tensor, lr: Tensor, share: float = 1.0) -> Tensor:
        """Compute the loss and record it as train/loss, and the terms of a `WeightedSum` by their names."""
        averaged = (self.averaged_sr(lr, sr),) if needs_average(self.loss) else ()
        if isinstance(self.loss, WeightedSum):
            terms = self.loss.terms(sr, hr, *averaged)
            self.running_means.add({f"train/{name}": term for name, term in terms.items()}, share)
            loss = sum(terms.values())
        else:
            loss = self.loss(sr, hr, *averaged)
        self.running_means.add({"train/loss": loss}, share)
        return loss

    @torch.no_grad()
    def averaged_sr(self, lr: Tensor, sr: Tensor) -> Tensor | None:
        """Return the averaged network's SR of lr (N, 3, h, w) in the form of sr; None before training has begun."""
        if self.averaged is None:
            return None
        lr = to_channels(lr, self.network.num_channels).contiguous(memory_format=self.memory_format)
        return self.matching(self.averaged.eval()(lr).float(), sr)

    def with_teacher(self, loss: Tensor, sr: Tensor, lr: Tensor, step: int | Tensor, share: float = 1.0) -> Tensor:
        """Add the weighted loss to the teacher's SR, if there is a teacher, and record it as train/teacher."""
        if self.teacher is None:
            return loss
        weight = self.teacher.weight_at(step)
        if isinstance(weight, Tensor) or weight:
            term = weight * self.loss(sr, center_crop(self.teacher(lr), *sr.shape[-2:]))
        else:
            term = torch.zeros_like(loss)
        self.running_means.add({"train/teacher": term}, share)
        return loss + term

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.stopwatch.enter(FORWARD_AND_BACKWARD)
        if self.record is not None:
            return self.replay(batch, batch_idx)
        self.keep_buffers()
        loss = self.loss_of(batch, batch_idx)
        self.end_of_step(batch_idx)
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if self.record is None:  # else the recorded step, in `training_step`
            super().backward(loss, *args, **kwargs)

    def replay(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Take the step of a batch, optimizer and average included, as recorded at the first batch; return its loss."""
        recorded = self.replayed(batch)
        self.end_of_step(batch_idx)
        self.gradient_norms.add(recorded.gradients)
        self.gradient_norms.end_batch(counted=recorded.counted)
        return recorded.losses["train/loss"]

    def replayed(self, batch: dict[str, Tensor]) -> RecordedStep:
        """Take the recorded step of a batch, add its losses to the running means, and return it."""
        if self.recorded is None:
            self.recorded = RecordedStep(self, self.trainer.optimizers, batch, self.finish_gradients, self.record)
        self.recorded(batch, self.batches_done)
        self.running_means.add(self.recorded.losses)
        return self.recorded

    def losses_of(self, batch: dict[str, Tensor], step: Tensor) -> list[Callable[[], Tensor]]:
        """Return functions that compute the losses of a batch for the step of each optimizer, called in turn.

        Later calls compute those of other batches if lr and hr (N, 3, h, w) and `step`, as in `loss_of`, are changed.
        """
        return [partial(self.loss_of, batch, step)]

    def finish_gradients(self, optimizer: Optimizer) -> Tensor:
        """Average the gradients of an optimizer over processes and clip them; return all norms before that, (K,)."""
        average_over_processes(optimizer)
        norms = self.noted_norms_of(optimizer)
        limit = self.trainer.gradient_clip_val, self.trainer.gradient_clip_algorithm
        self.configure_gradient_clipping(optimizer, *limit)
        return norms

    def end_of_step(self, batch_idx: int) -> None:
        """Log the running means every `log_every` batches; `self.log` at each step costs more than a small network.

        Raises:
            DivergedError: A mean is NaN or infinite.
        """
        if self.recorded is None:
            self.running_means.end_batch(only_finite=self.may_skip())
        else:
            self.running_means.end_batch(counted=self.recorded.counted)
        if (batch_idx + 1) % self.log_every:
            return
        self.check_gradients()
        metrics = self.running_means.take(self._of_all_processes) | self.gradient_norms.take(self._of_all_processes)
        if wrong := [f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value)]:
            raise DivergedError(f"{', '.join(wrong)} at step {batch_idx + 1}: try a smaller learning rate")
        self.log_scalars(metrics | self.learning_rates(), batch_idx + 1)

    def learning_rates(self) -> dict[str, float]:
        """Return the current learning rates by logged name."""
        return {"train/learning_rate": self.trainer.optimizers[0].param_groups[0]["lr"]}

    def log_scalars(self, metrics: dict[str, float], step: int) -> None:
        """Send values and the seconds of training to every logger; `step`: batches done, also with two optimizers."""
        metrics = metrics | {"seconds": round(self.stopwatch.total, 3)}
        self.latest |= metrics
        for logger in self.loggers:
            logger.log_metrics(metrics, step=step)

    def on_fit_start(self) -> None:
        self.recorded = None  # of an earlier training, whose optimizers have ended

    def on_train_start(self) -> None:
        """Set the learning rates of the next batch: those in a checkpoint are of the schedule before an extension."""
        for configured in self.trainer.lr_scheduler_configs:
            schedule = configured.scheduler
            if isinstance(schedule, LambdaLR):
                rates = zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
                schedule._last_lr = [base * share(schedule.last_epoch) for base, share in rates]  # noqa: SLF001
                for group, rate in zip(schedule.optimizer.param_groups, schedule.get_last_lr(), strict=True):
                    group["lr"] = rate

    def on_validation_epoch_start(self) -> None:
        if self.trainer.world_size > 1:  # batch norm statistics differ: each process saw its own part
            for buffer in self.buffers():
                torch.distributed.broadcast(buffer, src=0)
        if self.score is None:
            num_images = len(self.trainer.val_dataloaders.dataset)
            self.score = Score(num_images, self.network.scale, self.protocol).to(self.device)
        self.score.reset()

    @exact_float32()
    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        with torch.autocast(self.device.type, enabled=False):  # score in float32
            sr = self(batch["lr"])
        self.score.update(sr, batch["hr"], batch["index"])
        return sr

    def on_validation_epoch_end(self) -> None:
        metrics = {f"val/{name}": value.item() for name, value in self.score.compute().items()}
        if left_out := self.score.images_left_out():
            names = self.trainer.val_dataloaders.dataset.store.names
            report_left_out("held-out", tuple(names[i] for i in left_out), len(names))
        self.log_dict(metrics, logger=False)  # for callbacks that monitor a metric
        self.log_scalars(metrics, self.batches_done)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        self.stopwatch.enter(OPTIMIZER)
        norms = self.gradient_norms_of(optimizer)
        self.judge_gradients(optimizer, norms.sum())
        if self.batches_done + 1 not in self.skipped_batches:
            self.note_norm(norms)
            self.gradient_norms.end_batch()

    def gradient_norms_of(self, optimizer: Optimizer) -> Tensor:
        """Return the norm of the gradient of each parameter that has one, (K,)."""
        return torch.stack(torch._foreach_norm([p.grad for p in parameters_of(optimizer) if p.grad is not None]))

    def noted_norms_of(self, optimizer: Optimizer) -> Tensor:
        """Return the norm of the gradient of each parameter, (K,), and note that of all as train/gradient."""
        norms = self.gradient_norms_of(optimizer)
        self.note_norm(norms)
        return norms

    def note_norm(self, norms: Tensor) -> None:
        self.gradient_norms.add({"train/gradient": norms.norm().nan_to_num(0, 0, 0)})

    def keep_buffers(self) -> None:
        """Keep a copy of the buffers: the next optimizer step may be skipped."""
        if self.max_skipped_batches and self._buffers_before is None:
            self._buffers_before = [buffer.clone() for buffer in self.buffers()]

    def judge_gradients(self, optimizer: Optimizer, norm: Tensor) -> None:
        """Skip the batch, or stop the run, if the norm of its gradients is NaN or infinite.

        Raises:
            DivergedError: The norm is not finite, and no further batch may be skipped.
        """
        if self.trainer.scaler is not None:  # fp16 loss scaling skips steps with infinite gradients
            return
        step = self.batches_done + 1
        if self.may_skip() and step not in self.skipped_batches and not math.isfinite(norm.item()):
            self.note_skipped(step)
        if step in self.skipped_batches:
            for parameter in parameters_of(optimizer):
                parameter.grad = None  # optimizers leave such parameters and their state alone
            for buffer, before in zip(self.buffers(), self._buffers_before, strict=True):
                buffer.copy_(before)
        else:
            self.note_gradients(norm)

    def note_skipped(self, step: int) -> None:
        self.skipped_batches.append(step)
        if self.trainer.is_global_zero:
            count = f"{len(self.skipped_batches)} of at most {self.max_skipped_batches}"
            _log.warning("batch %d is skipped: its gradients are NaN or infinite (%s)", step, count)

    def may_skip(self) -> bool:
        """Return True if the batch in progress is skipped when its gradients are not finite, or is already."""
        return len(self.skipped_batches) < self.max_skipped_batches or self.batches_done + 1 in self.skipped_batches

    def note_gradients(self, norm: Tensor) -> None:
        """Note the first batch whose gradients have a norm that is not finite.

        On a GPU this does not wait for the device: the run stops at the next log or save.

        Raises:
            DivergedError: On a CPU, the norm is NaN or infinite.
        """
        step = self.batches_done + 1
        if norm.device.type != "cpu":
            noted = 0 if self.diverged_at is None else self.diverged_at
            self.diverged_at = torch.where(~norm.isfinite() & (noted == 0), step, noted)
        elif not math.isfinite(norm.item()):
            self.diverged_at = torch.tensor(step)
            self.check_gradients()

    def check_gradients(self) -> None:
        """Stop the run if gradients were not finite, of a batch that may not be skipped.

        Raises:
            DivergedError: Names the first such batch.
        """
        if self.recorded is not None:
            bad = self.recorded.bad_batches()
            for step in bad[len(self.skipped_batches) : self.max_skipped_batches]:
                self.note_skipped(step)
            if len(bad) > len(self.skipped_batches):
                self.diverged_at = torch.tensor(bad[-1])
        if self.diverged_at is not None and (step := int(self.diverged_at)):
            sums = self.running_means.sums
            terms = [f"{name} is {float(total)}" for name, total in sums.items() if not math.isfinite(total)]
            cause = f" ({', '.join(terms)})" if terms else ""
            skipped = f", after {len(self.skipped_batches)} skipped batches" if self.skipped_batches else ""
            raise DivergedError(
                f"the gradients of batch {step} are NaN or infinite{cause}{skipped}; earlier checkpoints "
                "are kept. Try a smaller learning rate or trainer.gradient_clip_val, or look at the batch: "
                f"train_batches()[{step - 1}] of the data module"
            )

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        if self.record is None:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        else:  # the recorded step, in `training_step`
            optimizer_closure()
        self.end_of_optimizer_step()

    def end_of_optimizer_step(self) -> None:
        self._buffers_before = None
        is_skipped = self.batches_done + 1 in self.skipped_batches
        if self.averaged is not None and self.record is None and not is_skipped:
            self.update_average(torch.tensor(self.average_weight()))
        self.stopwatch.enter(OTHER)

    def average_weight(self) -> float:
        """Return the weight of the next batch's parameters in the moving average."""
        done = self.batches_done
        return 1 - min(self.ema, (1 + done) / (10 + done))

    @torch.no_grad()
    def update_average(self, weight: Tensor) -> None:
        """Update the moving average: average the parameters, which have a weight of (), and copy the buffers."""
        averages, parameters = list(self.averaged.parameters()), list(self.network.parameters())
        torch._foreach_lerp_(averages, parameters, [weight.to(averages[0], non_blocking=True)] * len(averages))
        for averaged, buffer in zip(self.averaged.buffers(), self.network.buffers(), strict=True):
            averaged.copy_(buffer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the running means, unless the weights are NaN or infinite.

        Raises:
            DivergedError: Gradients or weights are not finite; earlier checkpoints are kept.
        """
        self.check_gradients()
        if not get_total_norm(self.parameters()).isfinite():
            raise DivergedError(
                f"the weights are not finite after {self.batches_done} batches and were not saved; earlier checkpoints "
                "are kept. Try a smaller learning rate"
            )
        checkpoint["recorded"] = self.running_means.state_dict(self._of_all_processes)
        checkpoint["gradient_norms"] = self.gradient_norms.state_dict(self._of_all_processes)
        if self.provenance:
            checkpoint["provenance"] = self.provenance
        if self.skipped_batches:
            checkpoint["skipped_batches"] = self.skipped_batches

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        place = self.trainer.global_rank, self.trainer.world_size
        self.running_means.load_state_dict(checkpoint["recorded"], *place)
        if "gradient_norms" in checkpoint:  # not in those of earlier versions
            self.gradient_norms.load_state_dict(checkpoint["gradient_norms"], *place)
        self.skipped_batches = list(checkpoint.get("skipped_batches", []))

    def _of_all_processes(self, values: Tensor) -> Tensor:
        return self.all_gather(values).view(-1, len(values))  # (K,) -> (P, K)

    @property
    def batches_done(self) -> int:
        """Number of batches trained, including those before a resume, independent of the number of optimizers."""
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.processed

    def configure_optimizers(self) -> Any:
        with settings_of("model.optimizer"):
            optimizer = self.optimizer(self._parameter_groups())
        with settings_of("model.scheduler"):
            return with_scheduler(optimizer, self.scheduler)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Return one parameter group per learning rate."""
        groups: dict[str, list[nn.Parameter]] = {"": [], **{prefix: [] for prefix in self.lr_factors}}
        for name, parameter in self.network.named_parameters():
            groups[next(filter(name.startswith, self.lr_factors), "")].append(parameter)
        if unmatched := [prefix for prefix in self.lr_factors if not groups[prefix]]:
            names = ", ".join(name for name, _ in self.network.named_parameters())
            raise InputError(f"lr_factors: no parameter name begins with {unmatched}; the names are {names}")
        base = self.optimizer.keywords.get("lr") if self.lr_factors else None
        if self.lr_factors and base is None:
            raise InputError("lr_factors are relative to model.optimizer.lr: set that as well")
        return [
            {"params": parameters} | ({"lr": base * self.lr_factors[prefix]} if prefix else {})
            for prefix, parameters in groups.items()
            if parameters
        ]


@contextmanager
def settings_of(key: str) -> Iterator[None]:
    """Name the key whose settings a class does not accept.

    Raises:
        InputError: An argument is unknown or missing.
    """
    try:
        yield
    except TypeError as error:
        if "argument" not in str(error):
            raise
        raise InputError(f"{key}: {error}. Add it by +{key}.NAME=VALUE, or leave it out by ~{key}.NAME") from error


def with_scheduler(optimizer: Optimizer, scheduler: Callable[[Optimizer], LRScheduler] | None) -> dict[str, Any]:
    """Combine an optimizer and a schedule, stepped once per batch, into the dictionary that Lightning expects.

    Raises:
        InputError: The optimizer needs a closure, as LBFGS does.
    """
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise InputError(
            f"{type(optimizer).__name__} computes the loss several times in a step, and a training step does so once: "
            "choose another optimizer, such as torch.optim.AdamW"
        )
    if scheduler is None:
        return {"optimizer": optimizer}
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler(optimizer), "interval": "step"}}


def center_crop(image: Tensor, height: int, width: int) -> Tensor:
    """Crop (..., H, W) to (..., height, width), with equal margins on opposite sides.

    Raises:
        ValueError: `image` is smaller, or the margins cannot be equal.
    """
    top, left = image.shape[-2] - height, image.shape[-1] - width
    if top < 0 or left < 0 or top % 2 or left % 2:
        raise ValueError(
            f"cannot crop the centre {height}x{width} of {image.shape[-2]}x{image.shape[-1]} with equal margins"
        )
    return image[..., top // 2 : top // 2 + height, left // 2 : left // 2 + width]
