"""Checks of what evaluate.py is asked to do, before torch is imported."""

from omegaconf import DictConfig

from sr_lightning.data.sources import benchmark_set
from sr_lightning.errors import InputError
from sr_lightning.metrics.measure_names import check_measures
from sr_lightning.runs.folder import find_checkpoint


def check_request(cfg: DictConfig) -> None:
    """Check the settings and paths of evaluate.py.

    Raises:
        InputError: Names everything that is wrong or missing.
    """
    problems = []
    if isinstance(cfg.report, bool) or not isinstance(cfg.report, int) or cfg.report < 0:
        problems.append(f"report={cfg.report}: images of each data set in report.html, a whole number; 0: no report")
    for path in [] if cfg.ckpt is None else [cfg.ckpt] if isinstance(cfg.ckpt, str) else cfg.ckpt:
        try:
            find_checkpoint(path)
        except InputError as error:
            problems.append(str(error))
    if cfg.runs is None and cfg.ckpt is None and ("model" not in cfg or cfg.scale is None):
        problems.append("say what to score: ckpt=FILE (or a list), or model=bicubic scale=x3")
    try:
        check_measures(cfg.measures)
    except InputError as error:
        problems.append(str(error))
    for name in cfg.benchmarks:
        try:
            benchmark_set(cfg.data_root, name, cfg.scale or 2)
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))
