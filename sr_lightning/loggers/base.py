"""Loggers that receive more than scalars: pictures, the outcome and the end of a run."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from sr_lightning.evaluation.score_table import NOT_SCORES
from sr_lightning.runs.fingerprint import result_settings


@dataclass(frozen=True)
class Outcome:
    """Results of a finished run.

    Attributes:
        rows: As written to results.csv, of bicubic and the run's network.
        pictures: Comparison pictures, PNG files.
        crops: The place that each picture shows, as in `evaluation.images.EvaluationImages`.
        result: As written to result.json.
    """

    rows: Sequence[dict[str, Any]]
    pictures: Sequence[Path]
    crops: Sequence[dict[str, Any]]
    result: dict[str, Any]

    @property
    def means(self) -> dict[str, float]:
        """Mean scores of the run's network by logged name, such as test/Set5/psnr_y."""
        return {
            f"test/{row['dataset']}/{key}": row[key]
            for row in self.rows
            if row["image"] == "mean" and row["model"] != "bicubic"
            for key in row
            if key not in NOT_SCORES
        }


class RunLogger(Logger):
    """A logger that can show more than scalars; its methods do nothing unless a subclass overrides them."""

    def log_picture(self, name: str, path: Path, step: int) -> None:
        """Show a PNG file under a name, after `step` batches."""

    def log_resources(self, values: Mapping[str, float], step: int) -> None:
        """Show speed and memory after `step` batches; metrics.csv leaves out what differs between equal runs."""

    def log_summary(self, values: Mapping[str, float]) -> None:
        """Show numbers of the whole training, such as its speed."""

    def log_outcome(self, outcome: Outcome) -> None:
        """Show the scores and pictures of a finished run."""

    def close(self, failed: bool) -> None:
        """End the record of the run."""


def settings_shown(config: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """Select the settings of a run that affect its result, by dotted key; lists become texts."""
    settings = result_settings(OmegaConf.create(dict(config)))
    return {key: value if isinstance(value, int | float) else str(value) for key, value in settings.items()}


def run_loggers(loggers: Sequence[Logger]) -> list[RunLogger]:
    """Select the loggers that can show more than scalars."""
    return [logger for logger in loggers if isinstance(logger, RunLogger)]


@rank_zero_only
def log_pictures(loggers: Sequence[Logger], pictures: Mapping[str, Path], step: int) -> None:
    """Pass pictures, {name: PNG file}, to the loggers that show them."""
    for logger in run_loggers(loggers):
        for name, path in pictures.items():
            logger.log_picture(name, path, step)


@contextmanager
def closing(loggers: Sequence[Logger]) -> Iterator[None]:
    """Close the loggers at the end of the block, as failed if it raises."""
    try:
        yield
    except BaseException:
        for logger in run_loggers(loggers):
            logger.close(failed=True)
        raise
    for logger in run_loggers(loggers):
        logger.close(failed=False)
