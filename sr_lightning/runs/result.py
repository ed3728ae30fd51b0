"""result.json: what came of a run, written as the last thing it does. Sweeps and tables read it."""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sr_lightning.utils.atomic_files import replacing

RESULT = "result.json"
FINISHED, PRUNED, FAILED = "finished", "pruned", "failed"


def describe(cfg: DictConfig) -> dict[str, Any]:
    """What a run is: name, model, data, experiment, scale, seed, sweep and max_steps."""
    places = ("name", "choices.model", "choices.data", "choices.experiment", "scale", "seed", "sweep", "max_steps")
    return {place.removeprefix("choices."): OmegaConf.select(cfg, place) for place in places}


def write_result(run_dir: str | Path, status: str, cfg: DictConfig, **numbers: Any) -> None:
    """Write result.json, complete or not at all; docs/sweeps.md lists its fields.

    Args:
        run_dir: The run's directory.
        status: "finished", "pruned" or "failed".
        cfg: The run's config.
        **numbers: What is known beyond `describe`; with "failed" at least `error`.
    """
    with replacing(Path(run_dir, RESULT)) as temporary:
        temporary.write_text(json.dumps({"status": status} | describe(cfg) | numbers, indent=1) + "\n")


def record_failure(cfg: DictConfig, error: str) -> None:
    """Write result.json of a run that raised, unless another of its processes has."""
    if read_result(cfg.run_dir) is None:
        write_result(cfg.run_dir, FAILED, cfg, error=error)


def read_result(run_dir: str | Path) -> dict[str, Any] | None:
    """The content of result.json; None where a run has not come to its end."""
    path = Path(run_dir, RESULT)
    return json.loads(path.read_text()) if path.is_file() else None
