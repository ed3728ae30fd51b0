"""Pruning: stop a cell of a sweep whose PSNR is below the median of the other cells."""

import logging
from pathlib import Path
from statistics import median
from typing import Any

import pytorch_lightning as pl
from omegaconf.errors import OmegaConfBaseException

from sr_lightning.errors import InputError
from sr_lightning.runs.folder import RunFolder
from sr_lightning.runs.metrics_csv import validation_psnr
from sr_lightning.runs.result import read_result
from sr_lightning.runs.saved_config import read_config
from sr_lightning.utils.messages import reason

log = logging.getLogger(__name__)

MIN_RIVALS = 4  # the median of fewer is not reliable


class Pruning(pl.Callback):
    """Stop training if the best PSNR so far is below the median of the rivals' at the same step.

    The median stopping rule (Golovin et al. 2017, "Google Vizier", section 3.2.2; Optuna's MedianPruner). Rivals are
    the sweep's other cells of the same data, scale, protocol and max_steps that have reached the step, or that early
    stopping has ended. They are read from their config.yaml, metrics.csv and result.json, so pruning works with every
    sweeper and launcher. A stopped cell leaves a last.ckpt from which it can be resumed: no cell is stopped while
    gradients of several batches are accumulated, which no checkpoint has.

    Args:
        run_dir: The cell's directory, beside those of its rivals.
        after: First step at which a cell may be stopped.
    """

    def __init__(self, run_dir: str | Path, after: int) -> None:
        self.run, self.after = RunFolder(run_dir), after
        self._terms: dict[Path, list[Any]] = {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        step = pl_module.batches_done
        is_amid_step = step % trainer.accumulate_grad_batches  # of the optimizer
        if trainer.sanity_checking or trainer.should_stop or step < self.after or is_amid_step:
            return
        hopeless = trainer.is_global_zero and self.is_hopeless(step)
        if trainer.strategy.broadcast(hopeless):  # the first process decides for all
            trainer.should_stop = True  # LastCheckpoint, called later, saves once more

    def is_hopeless(self, step: int) -> bool:
        """Return True if enough rivals have reached a step, and most had a higher PSNR than this cell."""
        rivals, mine = self.rivals(step), best_until(self.run.metrics, step)
        if len(rivals) < MIN_RIVALS or mine >= median(rivals):
            return False
        log.info(
            "stopped at step %d: the best PSNR so far, %.2f dB, is below %.2f dB, the median of %d other cells",
            *(step, mine, median(rivals), len(rivals)),
        )
        return True

    def rivals(self, step: int) -> list[float]:
        """Return the best PSNR in dB up to a step, of every rival that has reached it."""
        found = []
        for rival in (RunFolder(path) for path in self.run.path.parent.iterdir()):
            if (
                rival.path != self.run.path
                and rival.config.is_file()
                and self._terms_of(rival) == self._terms_of(self.run)
            ):
                best = best_until(rival.metrics, step, ended=has_stopped_early(rival))
                found += [] if best is None else [best]
        return found

    def _terms_of(self, run: RunFolder) -> list[Any]:
        """Return the settings that two cells must have in common to be compared."""
        if run.path not in self._terms:
            try:
                cfg = read_config(run.config)
                self._terms[run.path] = [cfg.choices.data, cfg.scale, cfg.max_steps, cfg.protocol]
            except (InputError, OmegaConfBaseException, AttributeError) as error:
                log.warning("%s is not compared with: %s", run.path, reason(error))
                self._terms[run.path] = []
        return self._terms[run.path]


def has_stopped_early(run: RunFolder) -> bool:
    """Return True if early stopping has ended a run."""
    try:
        return "stopped_early" in (read_result(run.path) or {})
    except InputError:  # a damaged result is written again
        return False


def best_until(metrics: Path, step: int, ended: bool = False) -> float | None:
    """Return the highest val/psnr in dB up to a step; None if the run has not reached it, nor `ended` before."""
    validated = validation_psnr(metrics)
    if not validated or (validated[-1][0] < step and not ended):
        return None
    return max(psnr for at, psnr in validated if at <= step)
