"""result.json: the outcome of a run, written last. Sweeps and tables read it."""

import json
import math
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sr_lightning.configs import command
from sr_lightning.errors import InputError
from sr_lightning.runs.folder import RunFolder
from sr_lightning.utils.atomic_files import replacing
from sr_lightning.utils.messages import reason

FINISHED, PRUNED, FAILED = "finished", "pruned", "failed"


def describe(cfg: DictConfig) -> dict[str, Any]:
    """Describe a run by its name, model, data, experiment, scale, seed, sweep and max_steps."""
    keys = ("name", "choices.model", "choices.data", "choices.experiment", "scale", "seed", "sweep", "max_steps")
    return {key.removeprefix("choices."): OmegaConf.select(cfg, key) for key in keys}


def write_result(run_dir: str | Path, status: str, cfg: DictConfig, **numbers: Any) -> None:
    """Write result.json, complete or not at all; docs/sweeps.md lists its fields.

    Args:
        run_dir: The run's directory.
        status: "finished", "pruned" or "failed".
        cfg: The run's config.
        **numbers: Further fields; `error` is required if the status is "failed".
    """
    with replacing(RunFolder(run_dir).result) as temporary:
        temporary.write_text(json.dumps({"status": status} | describe(cfg) | numbers, indent=1, allow_nan=False) + "\n")


def record_failure(cfg: DictConfig, error: str) -> None:
    """Write result.json of a run that raised, unless another of its processes has written it."""
    if not RunFolder(cfg.run_dir).result.is_file():
        write_result(cfg.run_dir, FAILED, cfg, error=error)


def read_result(run_dir: str | Path) -> dict[str, Any] | None:
    """Read result.json; None if the run has not ended.

    Raises:
        InputError: The file is damaged, or its PSNR is not finite.
    """
    path = RunFolder(run_dir).result
    if not path.is_file():
        return None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(result, dict) or not isinstance(result.get("status"), str):
            raise ValueError("it has no status")
        if not math.isfinite(result.get("psnr", 0.0)):
            raise ValueError(f"psnr is {result['psnr']}")
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} cannot be read as the result of a run: {reason(error)}") from error
    return result


def finished_result(run: RunFolder) -> dict[str, Any]:
    """Read result.json of a finished run.

    Raises:
        InputError: It is no run, has not finished, or the file is damaged.
    """
    if not run.config.is_file():
        raise InputError(f"{run.path} is not the directory of a run: it has no config.yaml")
    result = read_result(run.path)
    if result is None or result["status"] != FINISHED:
        raise InputError(f"{run.path} has not finished: {command('train.py')} resume={run.path}")
    return result
