"""Checks of an evaluation config, before torch is imported."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from sr_lightning.data.sources import benchmark_folder, check_benchmarks
from sr_lightning.errors import InputError, raise_all
from sr_lightning.evaluation.wandb_scores import check_connection, check_record
from sr_lightning.metrics.measure_names import check_measures
from sr_lightning.runs.folder import find_checkpoint

NOTHING_TO_SCORE = "nothing to score: give ckpt=FILE (or a list), or model=bicubic scale=x3"


def check_request(cfg: DictConfig, *, with_subject: bool = True) -> None:
    """Check the settings and paths of evaluate.py.

    Args:
        cfg: The config.
        with_subject: It names what is scored.

    Raises:
        InputError: Names everything that is wrong or missing.
    """
    raise_all(*_checks(cfg, with_subject))


def _checks(cfg: DictConfig, with_subject: bool) -> Iterator[Callable[[], Any]]:
    yield partial(_check_count, "report_images", cfg.report_images, "in report.html")
    yield partial(_check_count, "num_comparisons", cfg.num_comparisons, "with a comparison picture")
    yield partial(_check_flag, "self_ensemble", cfg.self_ensemble)
    if cfg.wandb is not None:
        yield partial(_check_flag, "wandb", cfg.wandb)
    yield partial(check_measures, cfg.measures)
    if with_subject:
        yield partial(_check_subject, cfg.ckpt, cfg.runs, "model" in cfg, cfg.scale)
    yield partial(check_benchmarks, cfg.benchmarks, at_least=1)
    if isinstance(cfg.benchmarks, ListConfig):
        for name in cfg.benchmarks:
            yield partial(benchmark_folder, cfg.data_root, name)
    if cfg.wandb is True:
        if cfg.runs is None and not paths_of(cfg.ckpt):
            raise InputError("wandb=true: only scores of ckpt= and runs= belong to runs; leave it out")
        yield check_connection
        for path in paths_of(cfg.ckpt):
            yield partial(_check_record, path)


def paths_of(value: Any) -> list[str]:
    """Return the paths in `ckpt=` or `runs=`: one, several or none."""
    if value is None:
        return []
    return [str(path) for path in (value if isinstance(value, ListConfig | list) else [value])]


def _check_count(key: str, value: Any, use: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InputError(f"{key}={value} is not a number of images: give that of each data set {use}, or 0 for none")


def _check_flag(key: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise InputError(f"{key}={value}: choose true or false")


def _check_record(ckpt: str) -> None:
    check_record(find_checkpoint(ckpt).parents[1])


def _check_subject(ckpt: Any, runs: Any, has_model: bool, scale: int | None) -> None:
    if runs is not None:
        if others := [key for key, given in (("ckpt", ckpt is not None), ("model", has_model)) if given]:
            raise InputError(f"runs= selects the networks to score: leave {' and '.join(others)} out")
        if not paths_of(runs):
            raise InputError("runs=[]: name a folder of runs, such as runs=multirun/NAME")
        if missing := [path for path in paths_of(runs) if not Path(path).expanduser().is_dir()]:
            raise InputError(f"runs: there is no folder {', '.join(missing)}")
    elif not paths_of(ckpt) and not (has_model and scale is not None):
        raise InputError(NOTHING_TO_SCORE)
    raise_all(*(partial(find_checkpoint, path) for path in paths_of(ckpt)))
