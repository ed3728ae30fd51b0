"""Training loop in which Lightning sees a group of short steps, not each of them."""

import dataclasses
import time
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loops.fetchers import _DataFetcher
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.profilers import PassThroughProfiler
from pytorch_lightning.strategies import SingleDeviceStrategy
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch.nn.parallel import DistributedDataParallel

from sr_lightning.callbacks import BestCheckpoint, LastCheckpoint, Progress
from sr_lightning.data import SRDataModule
from sr_lightning.modules import SRModule
from sr_lightning.utils.stopwatch import DATA

GROUP_SECONDS = 0.05  # a signal waits for the end of the group
HOOKS_WITHIN_A_STEP = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
BATCH_HOOKS = ("on_train_batch_start", *HOOKS_WITHIN_A_STEP, "on_train_batch_end")
CALLED_PER_GROUP = (Progress, BestCheckpoint, LastCheckpoint)  # their hooks need no other batch than the last


class GroupedEpochLoop(_TrainingEpochLoop):
    """Training loop that takes short steps in groups: the last step of a group through Lightning, the others directly.

    Lightning's hooks cost half a millisecond, a third of the step of a small network. The direct steps update the same
    counters, so weights, checkpoints and logs are the same in every bit with groups of any size. A group lasts up to
    `GROUP_SECONDS` and ends where something is logged, validated or saved: nothing observes the loop within a group.

    Every step is Lightning's for a subclass of SRModule, several processes, accumulated gradients, fp16 loss scaling, a
    profiler, and a callback of the user with a hook for each batch.

    Args:
        trainer: The trainer whose loop this is.
        every: A group ends at the multiples of these batch numbers, and at the last batch.
        **limits: `min_steps` and `max_steps` of the trainer.

    Attributes:
        validation_pending: True in a checkpoint that was saved within a validation, which a resumed run repeats.
    """

    def __init__(self, trainer: pl.Trainer, every: tuple[int, ...], **limits: int | None) -> None:
        super().__init__(trainer, **limits)
        self.every = every
        self.validation_pending = False
        self._step_seconds = float("inf")

    @classmethod
    def install(cls, trainer: pl.Trainer, *every: int) -> None:
        """Replace the loop of a new trainer."""
        loop = trainer.fit_loop.epoch_loop
        trainer.fit_loop.epoch_loop = cls(trainer, every, min_steps=loop.min_steps, max_steps=loop.max_steps)

    def reset(self) -> None:
        super().reset()
        if self.batch_progress.current.ready < self.trainer.num_training_batches:
            self.batch_progress.is_last_batch = False  # of a run that was extended

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        super().on_run_start(data_fetcher)
        self._groups = self.can_group()
        if isinstance(self.trainer.strategy.model, DistributedDataParallel):
            settle_buckets(self.trainer.strategy.model)

    def _on_before_fetch(self) -> None:
        self.trainer.lightning_module.stopwatch.enter(DATA)
        super()._on_before_fetch()

    def can_group(self) -> bool:
        """Return True if nothing needs Lightning's hooks at each batch."""
        trainer = self.trainer
        callbacks = [callback for callback in trainer.callbacks if type(callback) not in CALLED_PER_GROUP]
        return (
            type(trainer.lightning_module) is SRModule
            and isinstance(trainer.datamodule, SRDataModule)
            and type(trainer.strategy) is SingleDeviceStrategy
            and getattr(trainer.precision_plugin, "scaler", None) is None
            and isinstance(trainer.profiler, PassThroughProfiler)
            and trainer.accumulate_grad_batches == 1
            and not any(is_overridden(hook, callback) for callback in callbacks for hook in BATCH_HOOKS)
        )

    def on_save_checkpoint(self) -> dict[str, Any]:
        return super().on_save_checkpoint() | ({"validation_pending": True} if self.validation_pending else {})

    def on_load_checkpoint(self, state_dict: dict[str, Any]) -> None:
        super().on_load_checkpoint(state_dict)
        self.validation_pending = state_dict.get("validation_pending", False)

    def _broadcast_sigterm_tensor(self) -> None:
        """Do nothing: `LastCheckpoint` stops all processes at the same step."""

    def advance(self, data_fetcher: _DataFetcher) -> None:
        if self.validation_pending:
            self.validation_pending = self.val_loop.restarting = False
            self._uncount_images()
            self.trainer.should_stop = not self._should_check_val_fx(data_fetcher)  # it was the last batch
            return None  # Lightning validates next
        if not self._groups or self.restarting:  # Lightning may repeat a validation before the first step
            return super().advance(data_fetcher)
        start, steps = time.perf_counter(), self._steps_of_group()
        self._take_steps(data_fetcher, steps - 1)
        super().advance(data_fetcher)
        self._step_seconds = (time.perf_counter() - start) / steps
        return None

    def _uncount_images(self) -> None:
        """Subtract the images of the validation in work from the images of all validations."""
        progress = self.val_loop.batch_progress
        for field in dataclasses.fields(progress.current):
            count = getattr(progress.total, field.name) - getattr(progress.current, field.name)
            setattr(progress.total, field.name, count)

    def _steps_of_group(self) -> int:
        done = self.batch_progress.current.ready
        ends = [every - done % every for every in self.every] + [self.trainer.num_training_batches - done]
        if self.max_steps >= 0:
            ends.append(self.max_steps - self.global_step)
        return int(max(1, min(*ends, GROUP_SECONDS // self._step_seconds)))

    def _take_steps(self, data_fetcher: _DataFetcher, count: int) -> None:
        """Take steps as Lightning does, without hooks, and count them in its counters."""
        trainer, module, data = self.trainer, self.trainer.lightning_module, self.trainer.datamodule
        (optimizer,), precision, schedules = trainer.optimizers, trainer.precision_plugin, trainer.lr_scheduler_configs

        def closure() -> torch.Tensor:
            with precision.train_step_context():
                loss = module.training_step(batch, self.batch_idx + 1)
            optimizer.zero_grad()
            loss.backward()
            module.on_before_optimizer_step(optimizer)
            if trainer.gradient_clip_val:
                module.configure_gradient_clipping(
                    optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm
                )
            return loss

        for _ in range(count):
            batch, _, _ = next(data_fetcher)
            batch = data.on_before_batch_transfer(precision.convert_input(batch), 0)
            batch = data.transfer_batch_to_device(batch, module.device, 0)
            batch = data.on_after_batch_transfer(batch, 0)
            if module.record is None:
                optimizer.step(closure)
            else:
                with precision.train_step_context():
                    module.training_step(batch, self.batch_idx + 1)
            module.end_of_optimizer_step()
            self.batch_progress.increment_by(1)
            for schedule in schedules:
                schedule.scheduler.step()

        progress = self.automatic_optimization.optim_progress.optimizer
        progress.zero_grad.increment_by(count)
        progress.step.increment_by(count)
        self.scheduler_progress.increment_by(count * len(schedules))
        self._batches_that_stepped += count


def settle_buckets(model: DistributedDataParallel) -> None:
    """Let DDP group the gradients before the first step as it groups them in all others.

    It rearranges them after its first backward pass, and from three processes on the order of a sum depends on a
    gradient's place: the first step of a resumed run would differ from that of an uninterrupted one in the last bits.
    Here the first pass is one of zeros.
    """
    wrapped = model.module
    wrapped.forward = lambda: torch.stack([0 * p.sum() for p in wrapped.parameters() if p.requires_grad]).sum()
    try:
        model().backward()
    finally:
        del wrapped.forward
    model.zero_grad()
