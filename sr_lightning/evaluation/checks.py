"""Checks of an evaluation config, before torch is imported."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from omegaconf import DictConfig

from sr_lightning.data.sources import benchmark_folder
from sr_lightning.errors import InputError
from sr_lightning.metrics.measure_names import check_measures
from sr_lightning.runs.folder import find_checkpoint

NOTHING_TO_SCORE = "nothing to score: give ckpt=FILE (or a list), or model=bicubic scale=x3"


def check_request(cfg: DictConfig) -> None:
    """Check the settings and paths of evaluate.py.

    Raises:
        InputError: Names everything that is wrong or missing.
    """
    problems = []
    for check in _checks(cfg):
        try:
            check()
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))


def _checks(cfg: DictConfig) -> Iterator[Callable[[], Any]]:
    yield partial(_check_report, cfg.report_images)
    yield partial(check_measures, cfg.measures)
    for path in checkpoints_of(cfg.ckpt):
        yield partial(find_checkpoint, path)
    if cfg.runs is None:
        yield partial(_check_subject, cfg.ckpt, "model" in cfg, cfg.scale)
    for name in cfg.benchmarks:
        yield partial(benchmark_folder, cfg.data_root, name)


def checkpoints_of(ckpt: Any) -> list[str]:
    """Return the paths in `ckpt=`: one, several or none."""
    if ckpt is None:
        return []
    return [ckpt] if isinstance(ckpt, str) else [str(path) for path in ckpt]


def _check_report(report: Any) -> None:
    if isinstance(report, bool) or not isinstance(report, int) or report < 0:
        raise InputError(
            f"report_images={report} is not a number of images: set that of each data set in report.html, or 0 for none"
        )


def _check_subject(ckpt: Any, has_model: bool, scale: int | None) -> None:
    if ckpt is None and not (has_model and scale is not None):
        raise InputError(NOTHING_TO_SCORE)
