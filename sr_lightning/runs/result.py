"""result.json: the outcome of a run, written last. Sweeps and tables read it."""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sr_lightning.runs.folder import RunFolder
from sr_lightning.utils.atomic_files import replacing

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
    if read_result(cfg.run_dir) is None:
        write_result(cfg.run_dir, FAILED, cfg, error=error)


def read_result(run_dir: str | Path) -> dict[str, Any] | None:
    """Read result.json; None if the run has not ended."""
    path = RunFolder(run_dir).result
    return json.loads(path.read_text()) if path.is_file() else None
