"""Stops a sweep's cell that does worse than its rivals did."""

import csv
import logging
from pathlib import Path
from statistics import median
from typing import Any

import pytorch_lightning as pl
from omegaconf import OmegaConf

log = logging.getLogger(__name__)

MIN_RIVALS = 4  # rivals: fewer say nothing


class Pruning(pl.Callback):
    """Stops training where the best PSNR so far lies below the median of what the rivals had at the same step.

    The median stopping rule (Golovin et al. 2017, "Google Vizier", section 3.2.2), Optuna's MedianPruner. Rivals are
    the sweep's other cells of the same data, scale, protocol and max_steps: finished, stopped or running. They are
    known by their config.yaml and metrics.csv, so it works under every sweeper and launcher. A stopped cell leaves a
    last.ckpt from which it can go on.

    Args:
        run_dir: The cell's directory, beside those of its rivals.
        after: Steps before which no cell is stopped.
    """

    def __init__(self, run_dir: str | Path, after: int) -> None:
        self.run_dir, self.after = Path(run_dir), after
        self._terms: dict[Path, list[Any]] = {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        step = pl_module.batches_done
        if trainer.sanity_checking or trainer.should_stop or step < self.after:
            return
        hopeless = trainer.is_global_zero and self.is_hopeless(step)
        if trainer.strategy.broadcast(hopeless):  # the first process has looked, and all do the same
            trainer.should_stop = True  # after LastCheckpoint has saved once more

    def is_hopeless(self, step: int) -> bool:
        """Whether enough rivals have come to a step, and most had more than this cell."""
        rivals, mine = self.rivals(step), best_until(self.run_dir / "metrics.csv", step)
        if len(rivals) < MIN_RIVALS or mine >= median(rivals):
            return False
        log.info("stopped at step %d: %.2f dB; %d others had a median of %.2f", step, mine, len(rivals), median(rivals))
        return True

    def rivals(self, step: int) -> list[float]:
        """The best PSNR up to a step of every other cell that has come so far, in dB."""
        found = []
        for config in self.run_dir.parent.glob("*/config.yaml"):
            if config.parent != self.run_dir and self._terms_of(config) == self._terms_of(self.run_dir / "config.yaml"):
                best = best_until(config.with_name("metrics.csv"), step)
                found += [] if best is None else [best]
        return found

    def _terms_of(self, config: Path) -> list[Any]:
        """What two cells must have in common to be compared."""
        if config not in self._terms:
            cfg = OmegaConf.load(config)
            self._terms[config] = [cfg.choices.data, cfg.scale, cfg.max_steps, cfg.protocol]
        return self._terms[config]


def best_until(metrics: Path, step: int) -> float | None:
    """The highest val/psnr up to a step, in dB; None where the run has not come to it."""
    if not metrics.exists():
        return None
    with open(metrics, newline="") as file:
        validated = [(int(row["step"]), float(row["val/psnr"])) for row in csv.DictReader(file) if row.get("val/psnr")]
    if not validated or validated[-1][0] < step:
        return None
    return max(psnr for at, psnr in validated if at <= step)
