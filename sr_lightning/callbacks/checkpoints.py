"""best.ckpt, which is scored, last.ckpt, from which a stopped run resumes, and further ones of high PSNR."""

import re
from functools import cached_property
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint

from sr_lightning.utils.signals import Interrupted, pending_signal


class BestCheckpoint(ModelCheckpoint):
    """ModelCheckpoint that keeps its best score when a run directory was moved before resuming."""

    @cached_property
    def state_key(self) -> str:
        """The callback's name in checkpoints; Lightning asks for it six times per step, and builds it from settings."""
        return super().state_key

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def moved(value: Any) -> Any:
            if isinstance(value, dict):
                return {moved(key): moved(item) for key, item in value.items()}
            return value.replace(old, str(self.dirpath), 1) if isinstance(value, str) else value

        old = str(state_dict["dirpath"])
        super().load_state_dict(moved(state_dict))
        self.current_score = state_dict["current_score"]  # Lightning does not load it


class TopCheckpoints(pl.Callback):
    """Keep the checkpoints of the highest val/psnr, of equal ones the earliest, as step_0001000_psnr_32.5134.ckpt.

    The files are the only state: their number may change in a resumed run. Those of later steps are removed when it
    begins, because they are written again, or are of the schedule before an extension. During training a file is
    removed after the one that replaces it is complete.

    Args:
        folder: Of the files.
        count: Number of files.
    """

    def __init__(self, folder: str | Path, count: int) -> None:
        self.folder, self.count = Path(folder), count

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            for path in self._ranked():
                if step_and_psnr(path)[0] > pl_module.batches_done:
                    path.unlink()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        path = self.folder / f"step_{pl_module.batches_done:07d}_psnr_{pl_module.latest['val/psnr']:.4f}.ckpt"
        if not trainer.strategy.broadcast(path in self._ranked(path)[: self.count]):  # the first process decides
            return
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            for worse in self._ranked()[self.count :]:
                worse.unlink()

    def _ranked(self, *new: Path) -> list[Path]:
        """List the files and new ones, the best first."""

        def order(path: Path) -> tuple[float, int]:
            step, psnr = step_and_psnr(path)
            return -psnr, step

        files = {path for path in self.folder.glob("step_*.ckpt") if step_and_psnr(path)}
        return sorted(files | set(new), key=order)


def step_and_psnr(path: Path) -> tuple[int, float] | None:
    """Return the numbers in the name of a file of `TopCheckpoints`; None for another file."""
    found = re.fullmatch(r"step_(\d+)_psnr_(-?\d+\.\d+)\.ckpt", path.name)
    return (int(found[1]), float(found[2])) if found else None


class LastCheckpoint(Checkpoint):
    """Save every N batches, after the last one, and when a signal ends the run, each time to the same file.

    If a validation follows the batch, the checkpoint is saved after it: Lightning would not repeat the validation on
    resuming, and the best checkpoint could be missed. (ModelCheckpoint(every_n_train_steps=...) saves before it.) The
    last batch is always validated, so that the end of the schedule is scored. While gradients of several batches are
    accumulated, which no checkpoint has, saving waits for the optimizer's step.

    A signal that arrives while `utils.signals.postponed` is in force ends the run after its batch, or within a
    validation after an image; the resumed run then repeats the validation. All processes of a run stop at the same
    place, even if only one has received the signal.

    Args:
        path: The checkpoint file.
        every: Batches between two checkpoints.
        max_steps: Batches of the whole training.

    Raises:
        Interrupted: In the hooks, once the checkpoint is saved after a signal.
    """

    def __init__(self, path: str | Path, every: int, max_steps: int) -> None:
        self.path, self.every, self.max_steps = Path(path), every, max_steps

    def _due(self, trainer: pl.Trainer, done: int) -> bool:
        accumulated = trainer.accumulate_grad_batches
        passed = done // self.every > (done - accumulated) // self.every  # a multiple of `every` since the last step
        return done == self.max_steps or (passed and done % accumulated == 0)

    def _save(self, trainer: pl.Trainer) -> None:
        for logger in trainer.loggers:
            logger.save()  # a checkpoint on the disk has its logged values there as well
        trainer.save_checkpoint(self.path)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        done = batch_idx + 1
        if done == self.max_steps:
            trainer.should_stop = True  # Lightning validates before it stops
        elif done % trainer.val_check_interval:
            signum = signal_of_any_process(trainer) if done % trainer.accumulate_grad_batches == 0 else 0
            if signum or self._due(trainer, done):
                self._save(trainer)
            if signum:
                raise Interrupted(signum, f"saved at step {done}")

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        if pl_module.batches_done % trainer.accumulate_grad_batches and pl_module.batches_done < self.max_steps:
            return
        signum = signal_of_any_process(trainer)
        if signum and trainer.sanity_checking:
            raise Interrupted(signum)
        if signum:
            trainer.fit_loop.epoch_loop.validation_pending = True
            self._save(trainer)
            raise Interrupted(signum, f"saved at step {pl_module.batches_done}")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking and (trainer.should_stop or self._due(trainer, pl_module.batches_done)):
            self._save(trainer)


def signal_of_any_process(trainer: pl.Trainer) -> int:
    """Return the number of a signal that a process of the run has received, the same in all of them; 0 without one."""
    signum = pending_signal()
    if trainer.world_size > 1:
        received = torch.tensor(signum, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(received, torch.distributed.ReduceOp.MAX)
        signum = int(received)
    return signum
